// SPDX-License-Identifier: Apache-2.0
// The I/O APIC: 24 pins, version 0x11 (no EOI register), as KVM has it. Source: Intel 82093AA datasheet
// (290566-001), and KVM for what it leaves open: polarity is ignored, a masked edge is lost. Not thread-safe:
// IrqChip's lock is held by every caller.
#pragma once

#include "base/types.h"
#include "x86/irqchip/apic_message.h"

#include <array>
#include <linux/kvm.h>

namespace ring3::x86 {

class IoApic {
 public:
  static constexpr unsigned pins = KVM_IOAPIC_NUM_PINS;
  static constexpr u64 default_base = 0xfec0'0000;

  explicit IoApic(ApicBus& bus) : bus_(bus) {}

  u64 base() const { return base_; }
  void read(u32 offset, void* data, u32 size) const;
  void write(u32 offset, const void* data, u32 size);

  // The level of a pin as `source` 0-31 drives it; high while anyone holds it up. The number of local APICs
  // reached, 0 if coalesced, -1 if masked or still in service.
  int set_pin(unsigned pin, bool level, unsigned source);

  // A local APIC finished `vector`. Pins that have it and were in service are asked again.
  void end_of_interrupt(u8 vector, bool level_triggered);

  // Pins whose vector ended since the last call, and pins that a write unmasked.
  u32 take_ended();
  u32 take_unmasked();
  // After 10000 successive ends with the line still up, the next delivery waits for retry(): an interrupt
  // storm must leave the guest time to run. true once, when the caller shall arrange for retry() in
  // storm_delay_ns.
  static constexpr u64 storm_delay_ns = 10'000'000;
  bool take_storm();
  void retry();

  u8 vector(unsigned pin) const { return static_cast<u8>(entries_[pin]); }
  // The pins that have a vector, one bit each.
  u32 pins_of(u8 vector) const;

  void get_state(kvm_ioapic_state& out) const;
  void set_state(const kvm_ioapic_state& in);

 private:
  u32 read_register() const;
  void write_register(u32 value);
  void write_entry(unsigned pin, bool high, u32 value);
  int service(unsigned pin);
  int raise(unsigned pin);

  ApicBus& bus_;
  u64 base_ = default_base;
  u8 select_ = 0;
  u8 id_ = 0;
  u32 irr_ = 0;             // line levels, one bit a pin
  u32 edges_delivered_ = 0; // edges that irr_ still shows but that have been sent
  u32 ended_ = 0;
  u32 unmasked_ = 0;
  u32 delayed_ = 0; // pins that wait for retry()
  bool storm_ = false;
  std::array<u64, pins> entries_ = masked_entries();
  std::array<u32, pins> holders_{};
  std::array<u32, pins> successive_ends_{};

  static constexpr std::array<u64, pins> masked_entries() {
    std::array<u64, pins> e{};
    e.fill(u64{1} << 16);
    return e;
  }
};

} // namespace ring3::x86
