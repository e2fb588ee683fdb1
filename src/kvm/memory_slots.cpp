// SPDX-License-Identifier: Apache-2.0
#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <utility>

namespace ring3::kvm {
namespace {

constexpr u64 user_address_limit = (u64{1} << 47) - page_size; // Linux TASK_SIZE_MAX with 4-level paging
constexpr u64 guest_phys_limit = u64{1} << 52;                 // the architecture's largest MAXPHYADDR

// Whether a slot other than `self` has a byte in [first, end). Slots are disjoint.
bool overlaps(const SlotTree& slots, u64 first, u64 end, u32 self) {
  const MemorySlot* last = slots.last_below(end);
  if (last != nullptr && last->id == self) last = slots.last_below(last->base.value);
  return last != nullptr && last->base.value + last->size > first;
}

constexpr u32 space_of(u32 slot) { return slot >> 16; }

bool holds(const MemorySlot& slot, const void* host, GuestPhys& out) {
  const auto at = reinterpret_cast<u64>(host);
  u64 offset = at - reinterpret_cast<u64>(slot.host);
  if (offset >= slot.size && slot.private_memory)
    offset = at - reinterpret_cast<u64>(slot.private_memory->host()) - slot.private_offset;
  if (offset >= slot.size) return false;
  out = slot.base + offset;
  return true;
}

} // namespace

bool SlotSnapshot::find_host(const void* host, GuestPhys& out) const {
  return slots_.find_if([&](const MemorySlot& slot) { return holds(slot, host, out); }) != nullptr;
}

struct MemorySlots::Impl {
  using ById = std::vector<std::shared_ptr<const MemorySlot>>; // by number in its address space; null: none
  struct Space {
    SlotTree slots;
    ById by_id;
  };
  std::array<Space, max_address_spaces> spaces;
  std::shared_ptr<const PrivatePages> private_pages; // null: none
  std::size_t count = 0;

  // Null: there is none. The number is a valid one.
  const std::shared_ptr<const MemorySlot>* find(u32 slot) const {
    const ById& all = spaces[space_of(slot)].by_id;
    const std::size_t number = slot & 0xffff;
    return number < all.size() && all[number] ? &all[number] : nullptr;
  }
  std::shared_ptr<const MemorySlot>& place(u32 slot) {
    ById& all = spaces[space_of(slot)].by_id;
    const std::size_t number = slot & 0xffff;
    if (number >= all.size()) all.resize(number + 1);
    return all[number];
  }
};

MemorySlots::MemorySlots(bool private_memory)
    : private_memory_(private_memory), impl_(std::make_unique<Impl>()) {}
MemorySlots::~MemorySlots() = default;

bool MemorySlots::valid_number(u32 slot) const {
  return space_of(slot) < address_spaces() && (slot & 0xffff) < max_memory_slots;
}

// The checks that need no table, in KVM's order (kvm_set_memory_region); all of them are EINVAL.
bool MemorySlots::well_formed(const UserspaceMemoryRegion2& r) const {
  // Private memory is neither logged nor read-only.
  const bool is_private = (r.flags & mem_guest_memfd) != 0;
  const u32 known =
      is_private && private_memory_ ? mem_guest_memfd : u32{KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY};
  if ((r.flags & ~known) != 0) return false;
  if (((r.memory_size | r.guest_phys_addr | r.userspace_addr) & page_offset_mask) != 0) return false;
  if (r.memory_size > user_address_limit || r.userspace_addr > user_address_limit - r.memory_size)
    return false;
  if (is_private && ((r.guest_memfd_offset & page_offset_mask) != 0 ||
                     r.guest_memfd_offset + r.memory_size < r.guest_memfd_offset))
    return false;
  if (!valid_number(r.slot)) return false;
  if (r.guest_phys_addr + r.memory_size < r.guest_phys_addr) return false;
  return (r.memory_size >> page_shift) <= max_slot_pages;
}

int MemorySlots::set(const kvm_userspace_memory_region& region) {
  if ((region.flags & mem_guest_memfd) != 0) return -EINVAL; // has no field for the descriptor
  UserspaceMemoryRegion2 wide{};
  wide.slot = region.slot;
  wide.flags = region.flags;
  wide.guest_phys_addr = region.guest_phys_addr;
  wide.memory_size = region.memory_size;
  wide.userspace_addr = region.userspace_addr;
  return set(wide, {});
}

int MemorySlots::set(const UserspaceMemoryRegion2& region, const PrivateMemory& memory) {
  if (!well_formed(region)) return -EINVAL;
  // What nobody else holds goes after the lock.
  std::shared_ptr<const MemorySlot> old;
  const std::scoped_lock guard(lock_);
  SlotTree& slots = impl_->spaces[space_of(region.slot)].slots;
  if (const auto* const found = impl_->find(region.slot)) old = *found;

  if (region.memory_size == 0) {
    if (!old) return -EINVAL;
    if (old->private_memory) old->private_memory->unbind(old->private_offset, old->size);
    slots.erase(old->base.value);
    impl_->place(region.slot).reset();
    --impl_->count;
    generation_.fetch_add(1, std::memory_order_acq_rel);
    return 0;
  }

  // The VMM's address is an integer in KVM's structure; here is the one place where it becomes a pointer.
  auto* const host = reinterpret_cast<std::byte*>(region.userspace_addr);
  if (old) {
    const bool is_private = ((region.flags | old->flags) & mem_guest_memfd) != 0;
    const bool read_only_changes = ((region.flags ^ old->flags) & KVM_MEM_READONLY) != 0;
    if (is_private || host != old->host || region.memory_size != old->size || read_only_changes)
      return -EINVAL;
    if (region.guest_phys_addr == old->base.value && region.flags == old->flags) return 0;
  }
  const u64 end = region.guest_phys_addr + region.memory_size;
  if (overlaps(slots, region.guest_phys_addr, end, region.slot)) return -EEXIST;
  if (end > guest_phys_limit) return -EINVAL;

  if ((region.flags & mem_guest_memfd) != 0) {
    if (memory.error != 0 || !memory.memory) return memory.error != 0 ? memory.error : -EINVAL;
    const int bound = memory.memory->bind(this, region.guest_memfd_offset, region.memory_size);
    if (bound != 0) return bound;
  }

  auto slot = std::make_shared<MemorySlot>();
  slot->id = region.slot;
  slot->flags = region.flags;
  slot->base = GuestPhys{region.guest_phys_addr};
  slot->size = region.memory_size;
  slot->host = host;
  if ((region.flags & mem_guest_memfd) != 0) {
    slot->private_memory = memory.memory;
    slot->private_offset = region.guest_memfd_offset;
  }
  if ((region.flags & KVM_MEM_LOG_DIRTY_PAGES) != 0) {
    slot->dirty = old && old->dirty
                      ? old->dirty
                      : std::make_shared<DirtyBitmap>(region.memory_size >> page_shift,
                                                      dirty_log_.initially_set() && !dirty_log_.uses_ring());
  }

  if (old && old->base == slot->base) {
    slots.replace(slot);
  } else {
    if (old) slots.erase(old->base.value);
    slots.insert(slot);
  }
  if (!old) ++impl_->count;
  impl_->place(region.slot) = std::move(slot);
  generation_.fetch_add(1, std::memory_order_acq_rel);
  return 0;
}

SlotSnapshot MemorySlots::snapshot(u32 address_space) const {
  const std::scoped_lock guard(lock_);
  return SlotSnapshot{impl_->spaces[address_space].slots, impl_->private_pages};
}

int MemorySlots::set_attributes(const MemoryAttributes& args) {
  if (args.flags != 0 || (args.attributes & ~supported_attributes()) != 0) return -EINVAL;
  if (args.size == 0 || args.address + args.size < args.address) return -EINVAL;
  if (((args.address | args.size) & page_offset_mask) != 0) return -EINVAL;
  const PageRange range{args.address >> page_shift, (args.address + args.size) >> page_shift};
  const bool is_private = (args.attributes & memory_attribute_private) != 0;
  std::shared_ptr<const PrivatePages> retired;
  const std::scoped_lock guard(lock_);
  const PrivatePages none;
  const PrivatePages& now = impl_->private_pages ? *impl_->private_pages : none;
  if (now.all(range, is_private)) return 0;
  auto next = std::make_shared<const PrivatePages>(now.with(range, is_private));
  retired = std::exchange(impl_->private_pages, next->empty() ? nullptr : std::move(next));
  touch();
  return 0;
}

// The checks of all dirty-log calls, in KVM's order.
int MemorySlots::find_dirty(u32 slot, std::shared_ptr<DirtyBitmap>& out) const {
  if (dirty_log_.uses_ring()) return -ENXIO;
  if (!valid_number(slot)) return -EINVAL;
  const std::scoped_lock guard(lock_);
  const auto* const found = impl_->find(slot);
  if (found == nullptr || !(*found)->dirty) return -ENOENT;
  out = (*found)->dirty;
  return 0;
}

int MemorySlots::get_dirty_log(u32 slot, std::span<u64> out, bool& cleared) {
  cleared = false;
  std::shared_ptr<DirtyBitmap> dirty;
  if (const int error = find_dirty(slot, dirty); error != 0) return error;
  if (out.size() < dirty->words()) return -EINVAL;
  if (dirty_log_.manual()) {
    dirty->copy(out);
  } else {
    cleared = dirty->take(out);
  }
  return 0;
}

int MemorySlots::clear_dirty_log(const kvm_clear_dirty_log& args, std::span<const u64> bits, bool& cleared) {
  cleared = false;
  std::shared_ptr<DirtyBitmap> dirty;
  const int error = find_dirty(args.slot, dirty);
  if (error == -ENXIO || error == -EINVAL) return error;
  if (args.first_page % 64 != 0) return -EINVAL;
  if (error != 0) return error;
  if (args.first_page > dirty->pages()) return -EINVAL;
  const u64 rest = dirty->pages() - args.first_page;
  if (args.num_pages > rest || (args.num_pages < rest && args.num_pages % 64 != 0)) return -EINVAL;
  const u64 words = (u64{args.num_pages} + 63) / 64;
  if (bits.size() < words) return -EINVAL;
  cleared = dirty->clear(args.first_page, bits.first(words));
  return 0;
}

bool MemorySlots::reset_dirty(u32 slot, u64 page) {
  if (!valid_number(slot)) return false; // the VMM wrote it
  std::shared_ptr<DirtyBitmap> dirty;
  {
    const std::scoped_lock guard(lock_);
    const auto* const found = impl_->find(slot);
    if (found == nullptr) return false;
    dirty = (*found)->dirty;
  }
  return dirty && dirty->clear_page(page);
}

std::size_t MemorySlots::dirty_words(u32 slot) const {
  if (!valid_number(slot)) return 0;
  const std::scoped_lock guard(lock_);
  const auto* const found = impl_->find(slot);
  return found == nullptr || !(*found)->dirty ? 0 : (*found)->dirty->words();
}

bool MemorySlots::find_host(const void* host, GuestPhys& out) const {
  const std::scoped_lock guard(lock_);
  return std::ranges::any_of(impl_->spaces, [&](const Impl::Space& space) {
    return space.slots.find_if([&](const MemorySlot& slot) { return holds(slot, host, out); }) != nullptr;
  });
}

std::size_t MemorySlots::count() const {
  const std::scoped_lock guard(lock_);
  return impl_->count;
}

} // namespace ring3::kvm
