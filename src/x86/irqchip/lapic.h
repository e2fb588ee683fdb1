// SPDX-License-Identifier: Apache-2.0
// The local APIC of one vCPU, in xAPIC and x2APIC mode. Source: SDM vol. 3, chapter 11 "APIC"; KVM where that
// leaves freedom (a disabled APIC keeps its registers, and its page then reads as ones; no aliasing of IDs
// above 255).
//
// Threads: the vCPU's own thread, except for the group marked "any thread", which other vCPUs and devices use
// to post interrupts. Registers are atomics: IRR and TMR are written by posters, the addressing registers are
// read by them.
#pragma once

#include "base/types.h"
#include "kvm/clock.h"
#include "kvm/timer_queue.h"
#include "x86/irqchip/apic_message.h"
#include "x86/irqchip/apic_timer.h"
#include "x86/irqchip/vcpu_events.h"

#include <array>
#include <atomic>
#include <linux/kvm.h>

namespace ring3::x86 {

// What of CPUID shapes the APIC.
struct LapicFeatures {
  unsigned max_phys_bits = 52; // MAXPHYADDR, for the reserved bits of IA32_APIC_BASE
  bool x2apic = true;
  bool tsc_deadline = true;
  bool cmci = false;         // an LVT for corrected machine checks
  bool directed_eoi = false; // "suppress EOI broadcasts"; not with KVM's I/O APIC, which has no EOI register
};

class Lapic {
 public:
  static constexpr u64 default_base = 0xfee0'0000;
  static constexpr u64 bootstrap_bit = u64{1} << 8;
  static constexpr u64 x2apic_bit = u64{1} << 10;
  static constexpr u64 enable_bit = u64{1} << 11;

  // `id`: the x2APIC ID, for ever; its low 8 bits are the first xAPIC ID. `bootstrap`: the BSP flag. Starts
  // in the power-up state. The references must outlive the APIC.
  Lapic(u32 id, bool bootstrap, ApicBus& bus, const kvm::Clock& clock, kvm::TimerQueue& timers,
        VcpuEvents& events, const GuestTsc& tsc);
  Lapic(const Lapic&) = delete;
  Lapic& operator=(const Lapic&) = delete;

  void set_features(const LapicFeatures& features);
  // The cycle of the timer's bus, before it is used (ApicTimer::set_bus_cycle).
  void set_bus_cycle(u64 ns) { timer_.set_bus_cycle(ns); }

  // IA32_APIC_BASE (MSR 0x1b). false: #GP (reserved bits, invalid transition). A host-initiated write
  // (KVM_SET_SREGS, KVM_SET_MSRS) may make any transition between valid modes.
  // may_set_base() is the check alone.
  static bool may_set_base(u64 old, u64 value, const LapicFeatures& features, bool host_initiated);
  u64 base_msr() const { return base_.load(std::memory_order_relaxed); }
  bool set_base_msr(u64 value, bool host_initiated = false);

  // Whether the APIC's page holds gpa. A disabled or x2APIC-mode APIC claims it too, as KVM does by default.
  bool claims_mmio(u64 gpa) const { return gpa >> 12 == (base_msr() & base_address_mask) >> 12; }
  void mmio_read(u32 offset, void* data, u32 size);
  void mmio_write(u32 offset, const void* data, u32 size);

  // MSRs 0x800-0x8ff; false: #GP.
  bool read_x2apic_msr(u32 msr, u64& value);
  bool write_x2apic_msr(u32 msr, u64 value);

  // IA32_TSC_DEADLINE (MSR 0x6e0): reads 0 and ignores writes outside TSC-deadline mode.
  u64 tsc_deadline() const { return timer_.tsc_deadline(); }
  void set_tsc_deadline(u64 tsc) { timer_.set_tsc_deadline(tsc); }
  // To call when the answer of GuestTsc::clock_ns_at() changes.
  void tsc_changed() { timer_.tsc_changed(); }

  // CR8 view of TPR, 0-15.
  u8 cr8() const { return static_cast<u8>(reg(task_priority) >> 4); }
  void set_cr8(u8 value) { set_task_priority(static_cast<u32>(value & 15) << 4); }

  // Highest vector that is above the processor priority, or -1; acknowledge() moves it to in-service. Callers
  // deliver spurious_vector() if it went away between the two.
  int highest_pending() const;
  void acknowledge(int vector);
  // EOI, however the guest says it. For the paravirtual one: whether an interrupt is in service whose end is
  // nobody else's business, and no other waits for it.
  void end_of_interrupt();
  bool eoi_is_private() const;
  u8 spurious_vector() const { return static_cast<u8>(reg(spurious)); }

  // Power-up (false) or INIT (true), which keeps the mode and the ID.
  void reset(bool init);

  // KVM_GET_LAPIC and KVM_SET_LAPIC. The ID is in the xAPIC format unless `wide_ids` (KVM_CAP_X2APIC_API).
  // -EINVAL if a wide ID is not this APIC's. KVM_SET_LAPIC comes after IA32_APIC_BASE, as in KVM.
  void get_state(kvm_lapic_state& out, bool wide_ids = false) const;
  int set_state(const kvm_lapic_state& in, bool wide_ids = false);

  // A corrected machine check, or one that needs no action: the CMCI.
  void corrected_machine_check() { deliver_local(lvt_cmci); }
  // A performance counter overflowed; the entry masks itself.
  void performance_interrupt();

  // -- Any thread.

  u32 id() const { return id_; }
  u8 xapic_id() const { return static_cast<u8>(reg(id_register) >> 24); }
  bool enabled() const { return (base_msr() & enable_bit) != 0; }
  bool x2apic_mode() const { return (base_msr() & x2apic_modes) == x2apic_modes; }
  bool software_enabled() const { return (reg(spurious) & software_enable_bit) != 0; }
  // Whether a message to `destination` is for this APIC. Broadcasts are the caller's to recognize.
  bool matches_physical(u32 destination) const;
  bool matches_logical(u32 destination) const;
  // For lowest-priority delivery: lower wins.
  u32 arbitration() const { return arbitration_.load(std::memory_order_relaxed); }
  u32 task_priority_class() const { return reg(task_priority) >> 4 & 15; }
  void count_arbitration() { arbitration_.fetch_add(1, std::memory_order_relaxed); }
  // Takes a message that is for this APIC. Whether it had an effect.
  bool accept(const ApicMessage& message);
  // LINT0 in ExtINT mode, or APIC off (virtual wire): the PIC interrupts this vCPU.
  bool accepts_pic() const;
  // An edge at LINT0 or LINT1.
  void raise_lint(unsigned pin);
  // Whether LINT0 delivers NMIs (the old NMI watchdog, fed by the PIT).
  bool lint0_is_nmi() const;
  // KVM_SET/GET_IRQCHIP and the like have changed what the PIC shows.
  void notify() { events_.event_pending(); }
  // KVM_HC_KICK_CPU.
  void unhalt() { events_.post_unhalt(); }

 private:
  // Register numbers: the xAPIC offset / 16, the x2APIC MSR less 0x800 (SDM table 11-1 and 11-6).
  enum Register : u32 {
    id_register = 0x02,
    version_register = 0x03,
    task_priority = 0x08,
    arbitration_priority = 0x09,
    processor_priority = 0x0a,
    eoi_register = 0x0b,
    logical_destination = 0x0d,
    destination_format = 0x0e,
    spurious = 0x0f,
    isr = 0x10,
    tmr = 0x18,
    irr = 0x20,
    error_status = 0x28,
    lvt_cmci = 0x2f,
    icr_low = 0x30,
    icr_high = 0x31,
    lvt_timer = 0x32,
    lvt_thermal = 0x33,
    lvt_performance = 0x34,
    lvt_lint0 = 0x35,
    lvt_lint1 = 0x36,
    lvt_error = 0x37,
    initial_count = 0x38,
    current_count = 0x39,
    divide_configuration = 0x3e,
    self_ipi = 0x3f,
  };
  static constexpr std::array<Register, 7> lvt_registers{lvt_timer, lvt_thermal, lvt_performance, lvt_lint0,
                                                         lvt_lint1, lvt_error,   lvt_cmci};
  static constexpr u64 x2apic_modes = x2apic_bit | enable_bit;
  static constexpr u64 base_address_mask = ~u64{0xfff};
  static constexpr u32 software_enable_bit = 1u << 8;

  u32 reg(u32 number) const { return regs_[number].load(std::memory_order_relaxed); }
  void set_reg(u32 number, u32 value) { regs_[number].store(value, std::memory_order_relaxed); }

  // 256-bit vector sets: IRR, ISR and TMR.
  void set_vector(Register set, u8 vector);
  void clear_vector(Register set, u8 vector);
  bool has_vector(Register set, u8 vector) const;
  int highest_vector(Register set) const;

  u32 version() const;
  u32 writable_lvt_bits(Register lvt) const;
  u32 processor_priority_value() const;
  bool is_readable(u32 number) const;
  u32 read_register(u32 number) const;
  bool write_register(u32 number, u32 value); // false: #GP in x2APIC mode, nothing in xAPIC mode
  bool write_lvt(Register lvt, u32 value);
  void write_spurious(u32 value);
  void set_task_priority(u32 value);
  void send_ipi(u32 low, u32 destination);
  bool accept_fixed(u8 vector, bool level_triggered);
  void deliver_local(Register lvt);
  void record_error(u32 error);
  void recheck();
  void set_x2apic_addressing();

  const u32 id_;
  const bool bootstrap_;
  ApicBus& bus_;
  VcpuEvents& events_;
  LapicFeatures features_;
  std::atomic<u64> base_{default_base};
  std::array<std::atomic<u32>, 64> regs_{};
  std::atomic<u32> errors_{0}; // not yet shown in the error status register
  std::atomic<u32> arbitration_{0};
  ApicTimer timer_;
};

} // namespace ring3::x86
