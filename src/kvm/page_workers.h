// SPDX-License-Identifier: Apache-2.0
// Threads that wait for pages in the place of vCPUs: each touches one page that is not in memory (see
// kvm/residency.h), sleeps in the host's fault, and says when it is over.
//
// A page may never come, so nobody waits for a thread: what threads and vCPUs share belongs to whoever lets
// go of it last, and a thread that is stuck when its VM ends is all that is left of it. A child process has
// no such threads: there, everything is refused.
#pragma once

#include "base/types.h"

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <sys/types.h>
#include <vector>

namespace ring3::kvm {

struct FetchedPage {
  u32 token;
  bool there; // else the memory itself is gone
};

// The pages that were brought for one vCPU.
class FetchedPages {
 public:
  static constexpr std::size_t max_expected = 64; // at a time; more cost memory
  // `arrived` is called on any thread, after each arrival, until forget().
  explicit FetchedPages(std::function<void()> arrived);
  FetchedPages(const FetchedPages&) = delete;
  FetchedPages& operator=(const FetchedPages&) = delete;

  // The vCPU's thread. The pages that have come, the oldest first.
  bool empty() const { return count_.load(std::memory_order_acquire) == 0; }
  std::optional<FetchedPage> first() const;
  void drop_first();
  // Nobody asks for these any more; when this returns, `arrived` is not called again.
  void forget();

  // Any thread.
  void arrive(FetchedPage page);

 private:
  const pid_t owner_;
  mutable std::mutex lock_;
  std::function<void()> arrived_;
  std::vector<FetchedPage> pages_;
  std::atomic<std::size_t> count_{0};
};

// Of one VM. Threads are made as they are needed.
class PageWorkers {
 public:
  static constexpr unsigned max_threads = 16;

  PageWorkers();
  ~PageWorkers();
  PageWorkers(const PageWorkers&) = delete;
  PageWorkers& operator=(const PageWorkers&) = delete;

  // Has a thread touch the page, by a load, and then hand `token` to `to`, whether that succeeded or not: the
  // memory may be gone. False: all threads are busy, or there is none to be had. Any thread.
  bool fetch(const std::byte* page, u32 token, const std::shared_ptr<FetchedPages>& to);

 private:
  struct Shared;
  const pid_t owner_;
  const std::shared_ptr<Shared> shared_;
};

} // namespace ring3::kvm
