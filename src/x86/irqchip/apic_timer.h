// SPDX-License-Identifier: Apache-2.0
// The timer of a local APIC: one-shot, periodic and TSC-deadline (SDM vol. 3, 11.5.4). A
// tick is a cycle of the bus times the divisor; the bus has 1 GHz unless the VMM says otherwise. The vCPU's
// own thread only.
#pragma once

#include "base/types.h"
#include "kvm/clock.h"
#include "kvm/timer_queue.h"
#include "x86/irqchip/vcpu_events.h"

#include <functional>

namespace ring3::x86 {

class ApicTimer {
 public:
  // The LVT timer register's mode field, bits 18:17.
  enum class Mode : u8 { OneShot = 0, Periodic = 1, TscDeadline = 2, Reserved = 3 };
  // Shortest period, as KVM's module parameter min_timer_period_us: a guest cannot keep the host busy with
  // ticks.
  static constexpr u64 min_period_ns = 200'000;

  static constexpr u64 default_bus_cycle_ns = 1; // APIC_BUS_CYCLE_NS_DEFAULT

  // `expired` is called from set_*() if the time has passed already, and from the queue's run_expired().
  ApicTimer(const kvm::Clock& clock, kvm::TimerQueue& queue, const GuestTsc& tsc,
            std::function<void()> expired);

  // Before the timer is first used. `ns` times 128 times 2^32 is below 2^64.
  void set_bus_cycle(u64 ns) { bus_cycle_ns_ = ns; }

  void reset();
  void set_mode(Mode mode);
  void set_divide(u32 tdcr);
  void set_initial_count(u32 count); // ignored in TSC-deadline mode
  u32 initial_count() const { return initial_count_; }
  u32 current_count() const;
  // Sets both counts, as KVM_SET_LAPIC does; the timer goes on from `current`.
  void restore(u32 initial, u32 current);

  u64 tsc_deadline() const { return tsc_deadline_; }
  void set_tsc_deadline(u64 tsc); // ignored in the other modes
  // The relation of TSC and Clock has changed.
  void tsc_changed();

 private:
  u64 count_to_ns(u64 count) const { return (count << divide_shift_) * bus_cycle_ns_; }
  u64 ns_to_count(u64 ns) const { return ns / bus_cycle_ns_ >> divide_shift_; }
  void update_period();
  void arm(u64 target_ns);
  void fire(u64 now_ns);

  const kvm::Clock& clock_;
  kvm::TimerQueue& queue_;
  const GuestTsc& tsc_;
  std::function<void()> expired_;
  kvm::TimerQueue::Id id_;
  Mode mode_ = Mode::OneShot;
  u64 bus_cycle_ns_ = default_bus_cycle_ns;
  unsigned divide_shift_ = 1;
  u32 initial_count_ = 0;
  u64 period_ns_ = 0;
  u64 target_ns_ = kvm::TimerQueue::never;
  u64 tsc_deadline_ = 0;
};

} // namespace ring3::x86
