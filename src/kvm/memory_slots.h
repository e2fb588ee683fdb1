// SPDX-License-Identifier: Apache-2.0
// KVM's memory slots (api.rst 4.35): ranges of guest-physical memory backed by the VMM's own mappings.
//
// The table is a persistent structure (slot_tree.h): writers change what no reader has, and copies of what
// some reader has; readers hold a snapshot and never lock. Lookup and update are O(log n) in the number
// of slots, up to 32,764 of them.
//
// A slot's number has its address space in bits 16 and up (api.rst 4.35). The spaces have slots, layouts and
// dirty logs of their own; a vCPU looks at one of them at a time.
#pragma once

#include "base/address.h"
#include "base/types.h"
#include "kvm/block_pool.h"
#include "kvm/counted.h"
#include "kvm/dirty_log.h"
#include "kvm/guest_memfd.h"
#include "kvm/mapped_pages.h"
#include "kvm/mapping_sizes.h"
#include "kvm/memory_attributes.h"
#include "kvm/slot_tree.h"
#include "kvm/uapi_6_12.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

constexpr u32 max_memory_slots = 32764;            // KVM_USER_MEM_SLOTS: ids 0 to this, less one
constexpr u32 max_address_spaces = 2;              // KVM_MAX_NR_ADDRESS_SPACES: 1 is what SMM sees
constexpr u64 max_slot_pages = (u64{1} << 31) - 1; // KVM_MEM_MAX_NR_PAGES

// The memory of a KVM_MEM_GUEST_MEMFD slot.
struct PrivateBacking : Counted {
  std::shared_ptr<GuestMemfd> memory; // not null
  u64 offset = 0;                     // bytes

  std::byte* host() const { return memory->host() + offset; }
};

// One slot. It never changes while a snapshot has it. Small: there are up to 32,764.
struct MemorySlot : Counted, Pooled {
  u32 id = 0;    // with the address space in bits 16 and up
  u32 flags = 0; // KVM_MEM_*
  GuestPhys base;
  u64 size = 0; // bytes, page multiple, not 0
  std::byte* host = nullptr;
  Ref<DirtyBitmap> dirty;                    // null unless KVM_MEM_LOG_DIRTY_PAGES
  Ref<const PrivateBacking> private_backing; // null unless KVM_MEM_GUEST_MEMFD

  bool contains(GuestPhys a) const { return a.value - base.value < size; }
  bool read_only() const { return (flags & KVM_MEM_READONLY) != 0; }
};

// What the descriptor of a KVM_MEM_GUEST_MEMFD slot turned out to be: memory, or why it is none (-EBADF,
// -EINVAL), to be said after all other mistakes.
struct PrivateMemory {
  std::shared_ptr<GuestMemfd> memory;
  int error = 0;
};

// A published version of the table. Cheap to copy and to hold; a holder keeps its slots' records (not the
// VMM's mappings) alive.
class SlotSnapshot {
 public:
  SlotSnapshot() = default;
  SlotSnapshot(const SlotTree& slots, std::shared_ptr<const PrivatePages> private_pages)
      : slots_(slots), private_(std::move(private_pages)) {}

  // The slot that holds `a`, or null. The pointer is valid while this snapshot lives.
  const MemorySlot* find(GuestPhys a) const { return slots_.find(a.value); }
  // Whether the guest's accesses are to the slot's private memory (KVM_MEMORY_ATTRIBUTE_PRIVATE).
  bool is_private(GuestPhys a) const { return private_ && private_->contains(a.frame()); }
  // Is this an address in the VMM's memory that some slot uses? Its guest address then is in `out`. O(slots);
  // allocates and locks nothing.
  bool find_host(const void* host, GuestPhys& out) const;

 private:
  friend class MemorySlots;
  SlotTree slots_;
  std::shared_ptr<const PrivatePages> private_; // null: no page is
};

class MemorySlots {
 public:
  // `private_memory`: slots may have it (KVM_X86_SW_PROTECTED_VM), and there is one address space only.
  explicit MemorySlots(bool private_memory = false);
  ~MemorySlots();

  // KVM_SET_USER_MEMORY_REGION: create, move, change flags, or delete (memory_size 0). 0 or -errno as KVM:
  // EINVAL for misalignment, wrap, unknown flags, bad slot id or a size/backing change of a live slot; EEXIST
  // for overlap with another slot. Publishes the new version; making vCPUs let go of the old one is the
  // caller's work.
  int set(const kvm_userspace_memory_region& region);
  // KVM_SET_USER_MEMORY_REGION2. A slot with private memory can only be made and deleted.
  int set(const UserspaceMemoryRegion2& region, const PrivateMemory& memory);

  bool has_private_memory() const { return private_memory_; }
  u32 address_spaces() const { return private_memory_ ? 1 : max_address_spaces; }
  u64 supported_attributes() const { return private_memory_ ? memory_attribute_private : 0; }

  // KVM_SET_MEMORY_ATTRIBUTES: 0 or -EINVAL. Publishes, like set().
  int set_attributes(const MemoryAttributes& args);

  // What the slots refer to has changed, but not they: whoever looks at the generation looks anew.
  void touch() { generation_.fetch_add(1, std::memory_order_acq_rel); }

  // The current version of one address space.
  SlotSnapshot snapshot(u32 address_space = 0) const;
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

  // Where vCPUs note what they reach in an address space.
  MappedPages& mapped_pages(u32 address_space) const { return mapped_[address_space]; }
  // How the memory of all slots is mapped for the guest. The current version's, so not while a new one is on
  // its way to the vCPUs.
  MappingSizes mapping_sizes() const;

  // Words that get_dirty_log() needs; 0 without such a slot or without logging.
  std::size_t dirty_words(u32 slot) const;

  // The guest's address of it, in any address space that has one; false: no slot uses it.
  bool find_host(const void* host, GuestPhys& out) const;

  std::size_t count() const;

 private:
  int find_dirty(u32 slot, Ref<DirtyBitmap>& out) const;
  SlotMappings mappings(const MemorySlot& slot) const;
  void toggle_logging(const MemorySlot& old) const;
  void split_cleared(const kvm_clear_dirty_log& args, std::span<const u64> bits) const;

  bool well_formed(const UserspaceMemoryRegion2& r) const;
  bool valid_number(u32 slot) const;

  const bool private_memory_;
  struct Impl;
  mutable std::mutex lock_;
  std::unique_ptr<Impl> impl_;
  std::atomic<u64> generation_{0};
  DirtyLog dirty_log_;
  const std::unique_ptr<MappedPages[]> mapped_ = std::make_unique<MappedPages[]>(max_address_spaces);
};

} // namespace ring3::kvm
