// SPDX-License-Identifier: Apache-2.0
// Which pages of this process are somewhere else, so that whoever touches one sleeps until it is brought: on
// the host's swap, or missing where the VMM serves faults itself (userfaultfd(2), as after a post-copy
// migration). For asynchronous page faults of the guest: an answer is a hint and may be wrong either way.
//
// A page of shared memory that the host has swapped out is not recognized: /proc/PID/pagemap shows it as one
// that was never touched. Nor is a page that only lacks write permission (UFFDIO_REGISTER_MODE_WP).
#pragma once

#include "base/types.h"

#include <array>
#include <atomic>
#include <cstddef>

namespace ring3::kvm {

// There is one, as there is one address space. Any thread, no locks.
class Residency {
 public:
  static Residency& of_process() { return process_; }
  constexpr Residency() = default;
  Residency(const Residency&) = delete;
  Residency& operator=(const Residency&) = delete;

  // Whether there can be such pages at all.
  bool armed() const { return reasons_.load(std::memory_order_relaxed) != 0; }

  // Would an access to the page at this address sleep? Costs a system call, if armed(). Never an error: where
  // the host does not tell, no.
  bool may_block(const std::byte* page);

  // UFFDIO_REGISTER for missing pages, and UFFDIO_UNREGISTER, have succeeded. A range may stay after its
  // userfaultfd was closed: the host has no way to tell.
  void registered(u64 start, u64 size);
  void unregistered(u64 start, u64 size);

  // Asks the host whether anything of this process is swapped out. Tens of microseconds if the host has swap.
  void look_for_swap();

  // There is a VM: opens what may_block() reads, once a process, so that it is not open from some moment on.
  void prepare();

 private:
  static constexpr u32 swapped = 1, user_ranges = 2;
  static constexpr unsigned max_ranges = 64; // more are not noticed
  // Empty if `end` is 0. Two writers of one slot are two calls for the same memory at once.
  struct Range {
    std::atomic<u64> start{0}, end{0};
  };

  void set_reason(u32 reason, bool on);
  bool in_user_range(u64 address) const;
  bool any_user_range() const;

  static Residency process_;

  std::atomic<u32> reasons_{0};
  std::array<Range, max_ranges> ranges_{};
};

} // namespace ring3::kvm
