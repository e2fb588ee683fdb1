// SPDX-License-Identifier: Apache-2.0
// KVM's memory slots (api.rst 4.35): ranges of guest-physical memory backed by the VMM's own mappings.
//
// The table is a persistent structure. Writers build a new version that shares what did not change and
// publish it; readers hold a snapshot and never lock. Lookup and update are O(log n) in the number of slots,
// up to 32,764 of them.
#pragma once

#include "base/address.h"
#include "base/types.h"
#include "kvm/dirty_log.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

constexpr u32 max_memory_slots = 32764;            // KVM_USER_MEM_SLOTS: ids 0 to this, less one
constexpr u64 max_slot_pages = (u64{1} << 31) - 1; // KVM_MEM_MAX_NR_PAGES

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

  // KVM_GET_DIRTY_LOG: copies, and clears unless the VMM clears itself. -ENXIO with dirty rings, -ENOENT
  // without such a slot or without logging, -EINVAL if out is too small. `cleared`: permissions to store are
  // to be revoked (DirtyLog).
  int get_dirty_log(u32 slot, std::span<u64> out, bool& cleared);
  // KVM_CLEAR_DIRTY_LOG with the bitmap of args.num_pages bits. The same errors, and -EINVAL for a range that
  // is not one of whole words within the slot.
  int clear_dirty_log(const kvm_clear_dirty_log& args, std::span<const u64> bits, bool& cleared);
  // KVM_RESET_DIRTY_RINGS takes back an entry with these contents. Whether a bit was cleared.
  bool reset_dirty(u32 slot, u64 page);

  DirtyLog& dirty_log() { return dirty_log_; }
  const DirtyLog& dirty_log() const { return dirty_log_; }

  // Words that get_dirty_log() needs; 0 without such a slot or without logging.
  std::size_t dirty_words(u32 slot) const;

  // Is this an address in the VMM's memory that some slot uses? O(slots); for faults.
  bool backs(const void* host) const;

  std::size_t count() const;

 private:
  int find_dirty(u32 slot, std::shared_ptr<DirtyBitmap>& out) const;

  struct Impl;
  mutable std::mutex lock_;
  std::unique_ptr<Impl> impl_;
  std::atomic<u64> generation_{0};
  DirtyLog dirty_log_;
};

} // namespace ring3::kvm
