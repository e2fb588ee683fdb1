// SPDX-License-Identifier: Apache-2.0
// The interrupt hardware that KVM keeps "in the kernel", for one VM: PIC pair, I/O APIC, optionally the PIT,
// the GSI routing between them, and the bus that joins the local APICs of the vCPUs.
//
// Threads: everything here may be called from any thread. One mutex guards PIC, I/O APIC and PIT; messages to
// local APICs, MSIs and pic_pending() take no lock. VcpuEvents and TimerQueue callbacks are called with the
// mutex held and must not call back into IrqChip.
#pragma once

#include "base/types.h"
#include "kvm/clock.h"
#include "kvm/irq_routing.h"
#include "kvm/irqfd.h"
#include "kvm/timer_queue.h"
#include "x86/irqchip/apic_map.h"
#include "x86/irqchip/apic_message.h"
#include "x86/irqchip/ioapic.h"
#include "x86/irqchip/lapic.h"
#include "x86/irqchip/pic.h"
#include "x86/irqchip/pit.h"

#include <array>
#include <atomic>
#include <linux/kvm.h>
#include <mutex>
#include <optional>
#include <span>

namespace ring3::x86 {

class IrqChip final : public ApicBus {
 public:
  // Who drives an interrupt line: a line is high while any source holds it up.
  static constexpr unsigned user_source = 0;                          // KVM_IRQ_LINE, irqfd
  static constexpr unsigned resampler_source = Pic::resampler_source; // level-triggered irqfd
  static constexpr unsigned pit_source = 2;

  // `timers`: the VM's own queue, for the PIT and for interrupt storms; some thread (one vCPU will do) must
  // run it. `split`: only local APICs and the routing of MSIs are here, PIC and I/O APIC are in user space
  // (KVM_CAP_SPLIT_IRQCHIP); the first so many GSIs are the MSIs of its I/O APIC's pins.
  IrqChip(const kvm::Clock& clock, kvm::TimerQueue& timers, std::optional<u32> split = std::nullopt);

  // PIC and I/O APIC are here. Without them, no port and no address is, and what concerns them is -ENXIO.
  bool has_pic() const { return !user_pins_; }

  // Makes a local APIC reachable, for as long as this object lives. 0, -EINVAL or -EEXIST (ApicMap::attach).
  int attach(Lapic& apic) { return apics_.attach(apic); }
  Lapic* find_apic(u32 id) const { return apics_.find(id); }

  // KVM_CREATE_PIT2; port 0x61 only with KVM_PIT_SPEAKER_DUMMY. -ENOENT without a PIC, -EEXIST the second
  // time, -EINVAL for unknown flags.
  int create_pit(const kvm_pit_config& config);

  // false: not a port or an address of these chips. Size 1, 2 or 4; a wide access is that many byte accesses.
  bool pio_read(u16 port, u8 size, u32& value);
  bool pio_write(u16 port, u8 size, u32 value);
  bool mmio_read(u64 gpa, void* data, u32 size);
  bool mmio_write(u64 gpa, const void* data, u32 size);

  // KVM_IRQ_LINE_STATUS: the number of targets reached, 0 if coalesced, -1 if masked or without a route.
  int set_irq_line(u32 gsi, bool level, unsigned source = user_source);
  // KVM_SIGNAL_MSI: the number of local APICs reached, -1 if none is addressed, -EINVAL for unknown flags
  // (or, with 32-bit IDs on, a reserved address bit).
  int send_msi(const kvm_msi& msi);
  // KVM_SET_GSI_ROUTING. -EINVAL for routes to chips that are not here.
  int set_routing(std::span<const kvm_irq_routing_entry> entries);
  std::shared_ptr<const kvm::IrqRoutes> routes() const { return routing_.routes(); }
  // KVM_CAP_X2APIC_API.
  void set_x2apic_api(bool wide_ids, bool no_broadcast_quirk);
  bool wide_ids() const { return wide_ids_.load(std::memory_order_relaxed); }

  // The PIC's interrupt request, for vCPUs whose Lapic::accepts_pic(); the acknowledge cycle gives the
  // vector.
  bool pic_pending() const { return pic_output_.load(std::memory_order_acquire); }
  int pic_acknowledge();

  // KVM_GET/SET_IRQCHIP: -EINVAL for an unknown chip_id.
  int get_state(kvm_irqchip& chip);
  int set_state(const kvm_irqchip& chip);
  // KVM_GET/SET_PIT2 and KVM_REINJECT_CONTROL: -ENXIO without a PIT.
  int get_pit_state(kvm_pit_state2& out);
  int set_pit_state(const kvm_pit_state2& in);
  // On (KVM's default): a tick waits until the guest has acknowledged the one before; off: it may merge with
  // it.
  int set_pit_reinject(bool on);

  // Whose resampled interrupts are let go when the guest acknowledges them. Before any vCPU runs; lives as
  // long as this object is used.
  void set_irqfds(const kvm::IrqFds& irqfds) { irqfds_ = &irqfds; }
  // Another set of GSIs is resampled.
  void resampled_changed();

  // ApicBus.
  int deliver(const ApicMessage& message, const Lapic* source) override {
    return apics_.deliver(message, source);
  }
  void broadcast_eoi(u8 vector, bool level_triggered) override;
  bool wants_edge_eoi(u8 vector) const override;
  bool reports_eoi(const Lapic& at, u8 vector, bool level_triggered) const override;
  void addressing_changed() override { apics_.refresh(); }

 private:
  // All private members need lock_ held, but for decode_msi().
  ApicMessage decode_msi(const kvm_msi& msi) const;
  bool claims_port(u16 port) const;
  u8 read_port(u16 port);
  void write_port(u16 port, u8 value);
  int set_line(u32 gsi, bool level, unsigned source);
  void settle();
  void watch_eoi_vectors();
  void let_go_resampled(u32 pic_lines, u32 ioapic_pins);
  void pit_expired(u64 now_ns);
  void pit_acknowledged();
  void pit_pulse();
  void pit_rescheduled();
  void restart_reinjection();

  const kvm::Clock& clock_;
  kvm::TimerQueue& timers_;
  kvm::IrqRouting routing_;
  ApicMap apics_;
  std::atomic<bool> wide_ids_{false};
  std::atomic<bool> pic_output_{false};
  std::atomic<u64> ioapic_base_{IoApic::default_base};
  // Vectors of the I/O APIC pins that the PIT or a resampled irqfd drives: their EOI is the acknowledgement
  // even if they are edges. Or, with the I/O APIC in user space, of its level-triggered pins.
  std::array<std::atomic<u64>, 4> eoi_vectors_{};
  const kvm::IrqFds* irqfds_ = nullptr;
  const std::optional<u32> user_pins_;

  std::mutex lock_;
  Pic pic_;
  IoApic ioapic_;
  std::optional<Pit> pit_;
  bool speaker_port_ = false;
  bool reinject_ = true;
  bool pit_acked_ = true;
  u64 pit_pending_ = 0; // ticks owed to the guest
  kvm::TimerQueue::Id pit_timer_;
  kvm::TimerQueue::Id storm_timer_;
};

} // namespace ring3::x86
