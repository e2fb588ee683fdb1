// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/apic_timer.h"

#include <algorithm>

namespace ring3::x86 {

using kvm::TimerQueue;

namespace {
// VMMs choose how long a cycle of the bus is: the end may be beyond the end of time.
u64 later(u64 from_ns, u64 ns) {
  return ns < TimerQueue::never - from_ns ? from_ns + ns : TimerQueue::never - 1;
}
} // namespace

ApicTimer::ApicTimer(const kvm::Clock& clock, TimerQueue& queue, const GuestTsc& tsc,
                     std::function<void()> expired)
    : clock_(clock), queue_(queue), tsc_(tsc), expired_(std::move(expired)),
      id_(queue.add([this](u64 now_ns) { fire(now_ns); })) {}

void ApicTimer::reset() {
  mode_ = Mode::OneShot;
  divide_shift_ = 1;
  initial_count_ = 0;
  period_ns_ = 0;
  tsc_deadline_ = 0;
  arm(TimerQueue::never);
}

void ApicTimer::arm(u64 target_ns) {
  target_ns_ = target_ns;
  queue_.arm(id_, target_ns);
}

void ApicTimer::update_period() {
  period_ns_ = count_to_ns(initial_count_);
  if (mode_ == Mode::Periodic && period_ns_ != 0) period_ns_ = std::max(period_ns_, min_period_ns);
}

void ApicTimer::set_mode(Mode mode) {
  if (mode == mode_) return;
  // One-shot and periodic share a counter, which goes on; TSC-deadline shares nothing with them
  // (SDM 11.5.4.1).
  if (mode == Mode::TscDeadline || mode_ == Mode::TscDeadline) {
    initial_count_ = 0;
    tsc_deadline_ = 0;
    arm(TimerQueue::never);
  }
  mode_ = mode;
  update_period();
}

void ApicTimer::set_divide(u32 tdcr) {
  const unsigned code = (tdcr & 3) | (tdcr >> 1 & 4);
  const unsigned shift = (code + 1) & 7; // 7 is divide by 1
  if (shift == divide_shift_) return;
  const u64 now = clock_.now_ns();
  if (mode_ != Mode::TscDeadline && target_ns_ != TimerQueue::never) {
    // The ticks that remain take their new length.
    const u64 remaining = target_ns_ > now ? target_ns_ - now : 0;
    const u64 ticks = ns_to_count(remaining);
    divide_shift_ = shift;
    update_period();
    arm(later(now, count_to_ns(ticks)));
    return;
  }
  divide_shift_ = shift;
  update_period();
}

void ApicTimer::set_initial_count(u32 count) {
  if (mode_ == Mode::TscDeadline) return;
  initial_count_ = count;
  update_period();
  arm(period_ns_ == 0 ? TimerQueue::never : later(clock_.now_ns(), period_ns_));
}

u32 ApicTimer::current_count() const {
  if (mode_ == Mode::TscDeadline || target_ns_ == TimerQueue::never) return 0;
  const u64 now = clock_.now_ns();
  u64 remaining = 0;
  if (target_ns_ > now) {
    remaining = target_ns_ - now;
  } else if (mode_ == Mode::Periodic) {
    // The tick is due but has not been taken: the counter has gone on without it.
    remaining = period_ns_ - (now - target_ns_) % period_ns_;
  }
  return static_cast<u32>(std::min<u64>(ns_to_count(remaining), initial_count_));
}

void ApicTimer::restore(u32 initial, u32 current) {
  if (mode_ == Mode::TscDeadline) return;
  initial_count_ = initial;
  update_period();
  if (period_ns_ == 0) return arm(TimerQueue::never);
  const u64 now = clock_.now_ns();
  u64 remaining = std::min(count_to_ns(current), period_ns_);
  // A one-shot at 0 may have expired just before the state was taken: KVM fires it again rather than lose it.
  if (remaining == 0 && mode_ == Mode::Periodic) remaining = period_ns_;
  arm(later(now, remaining));
}

void ApicTimer::set_tsc_deadline(u64 tsc) {
  if (mode_ != Mode::TscDeadline) return;
  tsc_deadline_ = tsc;
  tsc_changed();
}

void ApicTimer::tsc_changed() {
  if (mode_ != Mode::TscDeadline) return;
  if (tsc_deadline_ == 0) return arm(TimerQueue::never);
  target_ns_ = std::min(tsc_.clock_ns_at(tsc_deadline_), TimerQueue::never - 1);
  const u64 now = clock_.now_ns();
  if (target_ns_ <= now) return fire(now);
  arm(target_ns_);
}

void ApicTimer::fire(u64 now_ns) {
  if (target_ns_ > now_ns) return queue_.arm(id_, target_ns_);
  if (mode_ == Mode::Periodic && period_ns_ != 0) {
    // Ticks that were missed are one interrupt: they would merge in IRR. The next is on the original grid.
    arm(later(target_ns_ + (now_ns - target_ns_) / period_ns_ * period_ns_, period_ns_));
  } else {
    tsc_deadline_ = 0;
    arm(TimerQueue::never);
  }
  expired_();
}

} // namespace ring3::x86
