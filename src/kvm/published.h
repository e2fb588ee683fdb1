// SPDX-License-Identifier: Apache-2.0
// A table that many threads read without locks while it is now and then replaced as a whole. A writer returns
// from publish() when nobody reads the version before any more, so what the old table referred to may then be
// let go. (The scheme of Linux's SRCU: Documentation/RCU/Design/Requirements, "Sleepable RCU".)
#pragma once

#include "base/types.h"

#include <array>
#include <atomic>
#include <memory>
#include <sched.h>

namespace ring3::kvm {

template <class T> class Published {
 public:
  Published() = default;
  ~Published() { std::unique_ptr<const T>(current_.load(std::memory_order_relaxed)).reset(); }
  Published(const Published&) = delete;
  Published& operator=(const Published&) = delete;

  // Access to the version that was current when it was made. Short-lived: a writer waits for it. Any thread
  // but the one that publishes.
  class Reader {
   public:
    explicit Reader(const Published& p) : count_(&p.count_[p.phase_.load(std::memory_order_seq_cst)]) {
      count_->fetch_add(1, std::memory_order_seq_cst);
      table_ = p.current_.load(std::memory_order_seq_cst);
    }
    ~Reader() { count_->fetch_sub(1, std::memory_order_seq_cst); }
    Reader(const Reader&) = delete;
    Reader& operator=(const Reader&) = delete;
    // Null before the first publish().
    const T* get() const { return table_; }

   private:
    std::atomic<u32>* count_;
    const T* table_;
  };
  Reader read() const { return Reader(*this); }

  // Whether there is a table at all; one load, for paths that mostly find none.
  bool empty() const { return current_.load(std::memory_order_relaxed) == nullptr; }

  // The current version, for the one who writes.
  const T* latest() const { return current_.load(std::memory_order_relaxed); }

  // Makes `next` (or null) current and waits until the version before it is not read any more. One thread at
  // a time, and not one that holds a Reader or a lock that readers take.
  void publish(std::unique_ptr<const T> next) {
    const std::unique_ptr<const T> old(current_.exchange(next.release(), std::memory_order_seq_cst));
    // Whoever may still see `old` counted himself in before the exchange, in either phase. New readers count
    // in the other phase, so that each wait ends; two flips, because a reader may have chosen its phase long
    // ago.
    for (int flip = 0; flip < 2; ++flip) {
      const u32 phase = phase_.load(std::memory_order_relaxed);
      phase_.store(1 - phase, std::memory_order_seq_cst);
      while (count_[phase].load(std::memory_order_seq_cst) != 0) sched_yield();
    }
  }

 private:
  std::atomic<const T*> current_{nullptr};
  std::atomic<u32> phase_{0};
  mutable std::array<std::atomic<u32>, 2> count_{};
};

} // namespace ring3::kvm
