// SPDX-License-Identifier: Apache-2.0
#include "kvm/timer_queue.h"

#include <algorithm>

namespace ring3::kvm {

TimerQueue::Id TimerQueue::add(std::function<void(u64)> callback) {
  const std::scoped_lock guard(lock_);
  timers_.push_back(Timer{std::move(callback), never});
  return static_cast<Id>(timers_.size() - 1);
}

void TimerQueue::arm(Id id, u64 deadline_ns) {
  bool earlier = false;
  {
    const std::scoped_lock guard(lock_);
    const u64 before = next_.load(std::memory_order_relaxed);
    timers_.at(id).deadline = deadline_ns;
    publish_next();
    earlier = next_.load(std::memory_order_relaxed) < before;
  }
  if (earlier && on_earlier_) on_earlier_();
}

u64 TimerQueue::deadline(Id id) const {
  const std::scoped_lock guard(lock_);
  return timers_.at(id).deadline;
}

void TimerQueue::run_expired(u64 now_ns) {
  if (next_deadline() > now_ns) return;
  for (std::size_t i = 0;; ++i) {
    const std::function<void(u64)>* callback = nullptr;
    {
      const std::scoped_lock guard(lock_);
      while (i < timers_.size() && timers_[i].deadline > now_ns) ++i;
      if (i >= timers_.size()) return;
      // Disarmed before the call, so that two threads that meet here do not run it twice.
      timers_[i].deadline = never;
      publish_next();
      callback = &timers_[i].callback;
    }
    (*callback)(now_ns);
  }
}

void TimerQueue::publish_next() {
  u64 earliest = never;
  for (const Timer& timer : timers_) earliest = std::min(earliest, timer.deadline);
  next_.store(earliest, std::memory_order_relaxed);
}

} // namespace ring3::kvm
