// SPDX-License-Identifier: Apache-2.0
#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <utility>

namespace ring3::kvm {
namespace {

constexpr u64 user_address_limit = (u64{1} << 47) - page_size; // Linux TASK_SIZE_MAX with 4-level paging
constexpr u64 guest_phys_limit = u64{1} << 52;                 // the architecture's largest MAXPHYADDR

constexpr u32 space_of(u32 slot) { return slot >> 16; }

bool holds(const MemorySlot& slot, const void* host, GuestPhys& out) {
  const auto at = reinterpret_cast<u64>(host);
  u64 offset = at - reinterpret_cast<u64>(slot.host);
  if (offset >= slot.size && slot.private_backing)
    offset = at - reinterpret_cast<u64>(slot.private_backing->host());
  if (offset >= slot.size) return false;
  out = slot.base + offset;
  return true;
}

} // namespace

bool SlotSnapshot::find_host(const void* host, GuestPhys& out) const {
  return slots_.find_if([&](const MemorySlot& slot) { return holds(slot, host, out); }) != nullptr;
}

struct MemorySlots::Impl {
  // By number in its address space, null: none. In pieces, which are there when a slot of theirs has been.
  static constexpr std::size_t piece = 512;
  using Piece = std::array<const MemorySlot*, piece>;
  struct Space {
    SlotTree slots;
    std::array<std::unique_ptr<Piece>, (max_memory_slots + piece - 1) / piece> by_id;
  };
  BlockPool slot_pool{sizeof(MemorySlot)};
  BlockPool bitmap_pool{sizeof(DirtyBitmap)};
  std::array<Space, max_address_spaces> spaces;
  std::shared_ptr<const PrivatePages> private_pages; // null: none
  std::size_t count = 0;

  // Null: there is none. The number is a valid one.
  const MemorySlot* find(u32 slot) const {
    const std::size_t number = slot & 0xffff;
    const Piece* const some = spaces[space_of(slot)].by_id[number / piece].get();
    return some != nullptr ? (*some)[number % piece] : nullptr;
  }
  const MemorySlot*& place(u32 slot) {
    const std::size_t number = slot & 0xffff;
    std::unique_ptr<Piece>& some = spaces[space_of(slot)].by_id[number / piece];
    if (!some) some = std::make_unique<Piece>();
    return (*some)[number % piece];
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
  Ref<MemorySlot> deleted;
  Ref<DirtyBitmap> bitmap;
  const std::scoped_lock guard(lock_);
  SlotTree& slots = impl_->spaces[space_of(region.slot)].slots;
  const MemorySlot* const old = impl_->find(region.slot);

  if (region.memory_size == 0) {
    if (old == nullptr) return -EINVAL;
    deleted = slots.erase(old->base.value);
    if (const auto& backing = deleted->private_backing)
      backing->memory->unbind(backing->offset, deleted->size);
    impl_->place(region.slot) = nullptr;
    --impl_->count;
    generation_.fetch_add(1, std::memory_order_acq_rel);
    return 0;
  }

  // The VMM's address is an integer in KVM's structure; here is the one place where it becomes a pointer.
  auto* const host = reinterpret_cast<std::byte*>(region.userspace_addr);
  if (old != nullptr) {
    const bool is_private = ((region.flags | old->flags) & mem_guest_memfd) != 0;
    const bool read_only_changes = ((region.flags ^ old->flags) & KVM_MEM_READONLY) != 0;
    if (is_private || host != old->host || region.memory_size != old->size || read_only_changes)
      return -EINVAL;
    if (region.guest_phys_addr == old->base.value && region.flags == old->flags) return 0;
  }
  const u64 end = region.guest_phys_addr + region.memory_size;
  if (slots.overlaps(region.guest_phys_addr, end, old)) return -EEXIST;
  if (end > guest_phys_limit) return -EINVAL;

  Ref<PrivateBacking> backing;
  if ((region.flags & mem_guest_memfd) != 0) {
    if (memory.error != 0 || !memory.memory) return memory.error != 0 ? memory.error : -EINVAL;
    backing = make_ref<PrivateBacking>();
    backing->memory = memory.memory;
    backing->offset = region.guest_memfd_offset;
    const int bound = memory.memory->bind(this, region.guest_memfd_offset, region.memory_size);
    if (bound != 0) return bound;
  }

  const bool logs = (region.flags & KVM_MEM_LOG_DIRTY_PAGES) != 0;
  if (logs && (old == nullptr || !old->dirty))
    bitmap = make_ref_in<DirtyBitmap>(impl_->bitmap_pool, region.memory_size >> page_shift,
                                      dirty_log_.initially_set() && !dirty_log_.uses_ring());
  const MemorySlot*& published = impl_->place(region.slot);
  MappedPages& mapped = mapped_[space_of(region.slot)];
  const PageRange pages{region.guest_phys_addr >> page_shift, end >> page_shift};
  const bool any_mapped = mapped.may_have(pages);
  if (old == nullptr) {
    Ref<MemorySlot> slot = make_ref_in<MemorySlot>(impl_->slot_pool);
    slot->id = region.slot;
    slot->flags = region.flags;
    slot->base = GuestPhys{region.guest_phys_addr};
    slot->size = region.memory_size;
    slot->host = host;
    slot->dirty = std::move(bitmap);
    slot->private_backing = Ref<const PrivateBacking>::adopt(backing.release());
    const MemorySlot* const made = slot.get();
    slots.insert(std::move(slot));
    if (any_mapped) mapped.forget(pages);
    published = made;
    ++impl_->count;
  } else {
    // Each of these may have put a copy in the place of the record.
    MemorySlot* slot = &slots.edit(old->base.value, impl_->slot_pool);
    published = slot;
    if (slot->base.value != region.guest_phys_addr) {
      slot = &slots.move(slot->base.value, region.guest_phys_addr, impl_->slot_pool);
      published = slot;
      if (any_mapped) mapped.forget(pages);
    } else if (any_mapped) {
      toggle_logging(*slot);
    }
    slot->flags = region.flags;
    if (!logs || bitmap) std::swap(slot->dirty, bitmap);
  }
  generation_.fetch_add(1, std::memory_order_acq_rel);
  return 0;
}

SlotMappings MemorySlots::mappings(const MemorySlot& slot) const {
  return {slot, impl_->private_pages.get(), mapped_[space_of(slot.id)]};
}

// What is mapped changes before vCPUs can see the slot do so, which leaves no page unnoticed: those that
// still go by the old layout may record pages, and each notes what it reaches by the new one.
void MemorySlots::toggle_logging(const MemorySlot& old) const {
  const SlotMappings mapped = mappings(old);
  if (old.dirty) {
    if (!old.read_only()) mapped.recover();
  } else if (dirty_log_.initially_set() || old.read_only()) { // what cannot be written may stay as it is
    mapped.keep();
  } else {
    mapped.split({0, old.size >> page_shift});
  }
}

MappingSizes MemorySlots::mapping_sizes() const {
  MappingSizes sizes;
  const std::scoped_lock guard(lock_);
  for (const Impl::Space& space : impl_->spaces) {
    space.slots.find_if([&](const MemorySlot& slot) {
      mappings(slot).count(sizes);
      return false;
    });
  }
  return sizes;
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
  mapped_[0].forget(range); // as KVM: the guest has to reach the other memory first
  touch();
  return 0;
}

// The checks of all dirty-log calls, in KVM's order.
int MemorySlots::find_dirty(u32 slot, Ref<DirtyBitmap>& out) const {
  if (dirty_log_.uses_ring()) return -ENXIO;
  if (!valid_number(slot)) return -EINVAL;
  const std::scoped_lock guard(lock_);
  const MemorySlot* const found = impl_->find(slot);
  if (found == nullptr || !found->dirty) return -ENOENT;
  out = found->dirty;
  return 0;
}

int MemorySlots::get_dirty_log(u32 slot, std::span<u64> out, bool& cleared) {
  cleared = false;
  Ref<DirtyBitmap> dirty;
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
  Ref<DirtyBitmap> dirty;
  const int error = find_dirty(args.slot, dirty);
  if (error == -ENXIO || error == -EINVAL) return error;
  if (args.first_page % 64 != 0) return -EINVAL;
  if (error != 0) return error;
  if (args.first_page > dirty->pages()) return -EINVAL;
  const u64 rest = dirty->pages() - args.first_page;
  if (args.num_pages > rest || (args.num_pages < rest && args.num_pages % 64 != 0)) return -EINVAL;
  const u64 words = (u64{args.num_pages} + 63) / 64;
  if (bits.size() < words) return -EINVAL;
  if (dirty_log_.initially_set()) split_cleared(args, bits.first(words));
  cleared = dirty->clear(args.first_page, bits.first(words));
  return 0;
}

// What is going to be cleared is split first, as KVM does it: by words of the bitmap, from the first such
// page of the word to the last.
void MemorySlots::split_cleared(const kvm_clear_dirty_log& args, std::span<const u64> bits) const {
  const std::scoped_lock guard(lock_);
  const MemorySlot* const slot = impl_->find(args.slot);
  if (slot == nullptr || !slot->dirty) return;
  const SlotMappings mapped = mappings(*slot);
  PageRange pages{0, 0}; // of words one after the other
  for (std::size_t i = 0; i < bits.size(); ++i) {
    const u64 word = args.first_page / 64 + i;
    const u64 mask = bits[i] & slot->dirty->marked(word);
    if (mask == 0) continue;
    const u64 first = word * 64 + static_cast<u64>(std::countr_zero(mask));
    if (pages.first == pages.end || word != (pages.end + 63) / 64) {
      mapped.split(pages);
      pages.first = first;
    }
    pages.end = word * 64 + static_cast<u64>(std::bit_width(mask));
  }
  mapped.split(pages);
}

bool MemorySlots::reset_dirty(u32 slot, u64 page) {
  if (!valid_number(slot)) return false; // the VMM wrote it
  Ref<DirtyBitmap> dirty;
  {
    const std::scoped_lock guard(lock_);
    const MemorySlot* const found = impl_->find(slot);
    if (found == nullptr) return false;
    dirty = found->dirty;
    if (dirty && page < dirty->pages() && dirty_log_.initially_set())
      mappings(*found).split({page, page + 1});
  }
  return dirty && dirty->clear_page(page);
}

std::size_t MemorySlots::dirty_words(u32 slot) const {
  if (!valid_number(slot)) return 0;
  const std::scoped_lock guard(lock_);
  const MemorySlot* const found = impl_->find(slot);
  return found == nullptr || !found->dirty ? 0 : found->dirty->words();
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
