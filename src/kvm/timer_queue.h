// SPDX-License-Identifier: Apache-2.0
// Deadlines that vCPU threads themselves notice: there is no timer thread. A running vCPU compares
// next_deadline() with the clock every few thousand instructions; a halted one sleeps until the earliest of
// its queues.
#pragma once

#include "base/types.h"

#include <atomic>
#include <deque>
#include <functional>
#include <limits>
#include <mutex>

namespace ring3::kvm {

class TimerQueue {
 public:
  using Id = u32;
  static constexpr u64 never = std::numeric_limits<u64>::max();

  // Registers a timer that is not armed. The callback runs on the thread that calls run_expired(), without
  // the queue's lock held, and may arm timers again. Timers are registered once and live as long as the
  // queue.
  Id add(std::function<void(u64 now_ns)> callback);

  // One-shot at deadline_ns on the Clock's scale; replaces an earlier deadline. `never` disarms. Any thread.
  void arm(Id id, u64 deadline_ns);
  void disarm(Id id) { arm(id, never); }
  u64 deadline(Id id) const;

  // Earliest deadline, or `never`. Any thread, one relaxed load.
  u64 next_deadline() const { return next_.load(std::memory_order_relaxed); }

  // Runs every timer whose deadline is <= now_ns, each once. Any thread; several may call it for one queue.
  void run_expired(u64 now_ns);

  // Called (without the lock) after arm() made the earliest deadline earlier, so that a sleeper can shorten
  // its sleep. Set it before the queue is used by a second thread.
  void set_on_earlier(std::function<void()> callback) { on_earlier_ = std::move(callback); }

 private:
  struct Timer {
    std::function<void(u64)> callback;
    u64 deadline = never;
  };
  void publish_next();

  mutable std::mutex lock_;
  std::deque<Timer> timers_; // a deque: callbacks run unlocked and must not move when another is added
  std::atomic<u64> next_{never};
  std::function<void()> on_earlier_;
};

} // namespace ring3::kvm
