// SPDX-License-Identifier: Apache-2.0
// KVM's memory slots (api.rst 4.35): ranges of guest-physical memory backed by the VMM's own mappings.
//
// The table is a persistent structure. Writers build a new version that shares what did not change and
// publish it; readers hold a snapshot and never lock. Lookup and update are O(log n) in the number of slots,
// up to 32,764 of them.
#pragma once

#include "base/address.h"
#include "base/types.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

constexpr u32 max_memory_slots = 32764;            // KVM_USER_MEM_SLOTS: ids 0 to this, less one
constexpr u64 max_slot_pages = (u64{1} << 31) - 1; // KVM_MEM_MAX_NR_PAGES

// One bit a page, set by any thread without locks. Shared between table versions of the same slot.
class DirtyBitmap {
 public:
  explicit DirtyBitmap(u64 pages);
  void mark(u64 page_in_slot);
  // Copies the bitmap out and clears it; out has at least words() words.
  void take(std::span<u64> out);
  std::size_t words() const { return words_; }

 private:
  std::size_t words_;
  std::unique_ptr<std::atomic<u64>[]> bits_;
};

// One slot, immutable once published.
struct MemorySlot {
  u32 id = 0;
  u32 flags = 0; // KVM_MEM_*
  GuestPhys base;
  u64 size = 0; // bytes, page multiple, not 0
  std::byte* host = nullptr;
  std::shared_ptr<DirtyBitmap> dirty; // null unless KVM_MEM_LOG_DIRTY_PAGES

  bool contains(GuestPhys a) const { return a.value - base.value < size; }
  bool read_only() const { return (flags & KVM_MEM_READONLY) != 0; }
};

// A published version of the table. Cheap to copy and to hold; a holder keeps its slots' records (not the
// VMM's mappings) alive.
class SlotSnapshot {
 public:
  struct Node;
  SlotSnapshot() = default;
  explicit SlotSnapshot(std::shared_ptr<const Node> root) : root_(std::move(root)) {}

  // The slot that holds `a`, or null. The pointer is valid while this snapshot lives.
  const MemorySlot* find(GuestPhys a) const;

 private:
  friend class MemorySlots;
  std::shared_ptr<const Node> root_;
};

class MemorySlots {
 public:
  MemorySlots();
  ~MemorySlots();

  // KVM_SET_USER_MEMORY_REGION: create, move, change flags, or delete (memory_size 0). 0 or -errno as KVM:
  // EINVAL for misalignment, wrap, unknown flags, bad slot id or a size/backing change of a live slot; EEXIST
  // for overlap with another slot. Publishes the new version; making vCPUs let go of the old one is the
  // caller's work.
  int set(const kvm_userspace_memory_region& region);

  SlotSnapshot snapshot() const;
  // Grows with every published change. Relaxed; to notice that a snapshot is old.
  u64 generation() const { return generation_.load(std::memory_order_acquire); }

  // KVM_GET_DIRTY_LOG: copies and clears. -ENOENT without such a slot or without logging, -EINVAL if out is
  // too small.
  int get_dirty_log(u32 slot, std::span<u64> out);

  std::size_t count() const;

 private:
  struct Impl;
  mutable std::mutex lock_;
  std::unique_ptr<Impl> impl_;
  std::atomic<u64> generation_{0};
};

} // namespace ring3::kvm
