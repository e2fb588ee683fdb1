// SPDX-License-Identifier: Apache-2.0
// The dirty ring of a vCPU (api.rst 8.29): the pages it was the first to write, in memory shared with the
// VMM, which may write anything to it.
//
// An entry is 0, then DIRTY (we wrote it), then RESET (the VMM has seen it), then 0 again by
// KVM_RESET_DIRTY_RINGS. A page enters a ring when its bit in the slot's DirtyBitmap is set, and its bit is
// cleared when the entry is reset, so a page is in one ring at most, however many vCPUs write to it.
//
// From the soft limit on, the vCPU leaves the guest and may not enter it again until the VMM has made room.
// The entries beyond the limit are for what it writes until then: the rest of a block, and the delivery of
// events. Should they not suffice, pages wait outside the ring; none is lost.
#pragma once

#include "base/types.h"

#include <atomic>
#include <linux/kvm.h>
#include <span>
#include <vector>

namespace ring3::kvm {

class DirtyRing {
 public:
  // As KVM has it on processors that log 512 pages by themselves, so that a VMM may use the same sizes.
  static constexpr u32 reserved = 64 + 512;
  static constexpr u32 max_entries = 65536;

  // `entries`: a power of two, more than `reserved`. From the soft limit on, `request` is set in exit_word.
  DirtyRing(std::span<kvm_dirty_gfn> entries, std::atomic<u32>& exit_word, u32 request);
  DirtyRing(const DirtyRing&) = delete;
  DirtyRing& operator=(const DirtyRing&) = delete;

  // --- the vCPU's thread ---

  void push(u32 slot, u64 page);
  // Whether the vCPU must not enter the guest.
  bool full();

  // --- any thread, one at a time ---

  // Takes back the entries that the VMM has marked, oldest first, up to one that is not: reset(slot, page)
  // for each. Slot and page are whatever the VMM wrote there. Returns how many.
  template <class F> u32 reset(F&& reset) {
    u32 count = 0;
    // No more than are in use: the VMM could go on marking entries for ever.
    for (u32 most = used(); count < most; ++count) {
      u32 slot;
      u64 page;
      if (!take_back(slot, page)) break;
      reset(slot, page);
    }
    return count;
  }

 private:
  struct Page {
    u32 slot;
    u64 page;
  };
  u32 used() const {
    return pushed_.load(std::memory_order_acquire) - taken_back_.load(std::memory_order_acquire);
  }
  bool take_back(u32& slot, u64& page);
  void write(Page p);

  const std::span<kvm_dirty_gfn> entries_;
  std::atomic<u32>& exit_word_;
  const u32 request_;
  // Both only grow and wrap around; entries are found by their low bits.
  std::atomic<u32> pushed_{0};
  std::atomic<u32> taken_back_{0};
  std::vector<Page> waiting_; // found no room; the vCPU's thread
};

} // namespace ring3::kvm
