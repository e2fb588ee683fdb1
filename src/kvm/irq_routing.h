// SPDX-License-Identifier: Apache-2.0
// The GSI routing table of a VM (api.rst 4.52, KVM_SET_GSI_ROUTING): from a global interrupt number to pins
// of the interrupt chips and to MSIs. Any thread; a reader gets an immutable version and keeps it as long as
// it likes.
#pragma once

#include "base/types.h"

#include <array>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

constexpr u32 max_irq_routes = 4096; // KVM_MAX_IRQ_ROUTES: also the number of GSIs
constexpr u32 pic_pins = 16;
constexpr u32 ioapic_pins = KVM_IOAPIC_NUM_PINS;

struct IrqRoute {
  enum class Kind : u8 { Pic, IoApic, Msi };
  Kind kind = Kind::Pic;
  u32 gsi = 0;
  u32 pin = 0;   // Pic: 0-15, IoApic: 0-23
  kvm_msi msi{}; // Msi
};

// One version of the table.
class IrqRoutes {
 public:
  IrqRoutes(); // without any route
  // The routes of one GSI, at most three; empty for a GSI without any.
  std::span<const IrqRoute> of(u32 gsi) const;
  // The GSI that leads to a pin, or -1; the last one set, as in KVM.
  int gsi_of_pic(u32 pin) const { return pin < pic_pins ? pic_gsi_[pin] : -1; }
  int gsi_of_ioapic(u32 pin) const { return pin < ioapic_pins ? ioapic_gsi_[pin] : -1; }

 private:
  friend class IrqRouting;
  std::vector<IrqRoute> routes_; // by GSI
  std::array<int, pic_pins> pic_gsi_;
  std::array<int, ioapic_pins> ioapic_gsi_;
};

class IrqRouting {
 public:
  // KVM's table for x86 with all chips in the kernel: GSI n to I/O APIC pin n for 0-23, and to PIC pin n for
  // 0-15.
  IrqRouting();

  // KVM_SET_GSI_ROUTING. 0 or -EINVAL: a GSI or pin out of range, an unknown type or flag, a GSI with two
  // routes to one chip, or with an MSI and anything else. The table is unchanged after an error.
  int set_routing(std::span<const kvm_irq_routing_entry> entries);

  std::shared_ptr<const IrqRoutes> routes() const;

 private:
  mutable std::mutex lock_;
  std::shared_ptr<const IrqRoutes> routes_;
};

} // namespace ring3::kvm
