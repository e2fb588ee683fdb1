// SPDX-License-Identifier: Apache-2.0
// The table is a treap keyed by guest-physical base. An update copies the O(log n) nodes between the root and
// the change and shares the rest. Priorities are a hash of the slot's id, so a table's shape depends on its
// contents only.
#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <unordered_map>
#include <utility>

namespace ring3::kvm {
namespace {

constexpr u64 user_address_limit = (u64{1} << 47) - page_size; // Linux TASK_SIZE_MAX with 4-level paging
constexpr u64 guest_phys_limit = u64{1} << 52;                 // the architecture's largest MAXPHYADDR

// SplitMix64's finalizer.
constexpr u64 priority_of(u32 id) {
  u64 x = id + 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

} // namespace

struct SlotSnapshot::Node {
  u64 base;
  u64 size;
  u64 priority;
  std::shared_ptr<const Node> left;
  std::shared_ptr<const Node> right;
  std::shared_ptr<const MemorySlot> slot;
};

namespace {

using Node = SlotSnapshot::Node;
using Tree = std::shared_ptr<const Node>;

Tree with_children(const Node& n, Tree left, Tree right) {
  return std::make_shared<const Node>(
      Node{n.base, n.size, n.priority, std::move(left), std::move(right), n.slot});
}

// Nodes with a base below `key`, and the others.
std::pair<Tree, Tree> split(const Tree& t, u64 key) {
  if (!t) return {};
  if (t->base < key) {
    auto [low, high] = split(t->right, key);
    return {with_children(*t, t->left, std::move(low)), std::move(high)};
  }
  auto [low, high] = split(t->left, key);
  return {std::move(low), with_children(*t, std::move(high), t->right)};
}

// Every base of a is below every base of b.
Tree merge(const Tree& a, const Tree& b) {
  if (!a) return b;
  if (!b) return a;
  if (a->priority > b->priority) return with_children(*a, a->left, merge(a->right, b));
  return with_children(*b, merge(a, b->left), b->right);
}

Tree insert(const Tree& t, std::shared_ptr<const MemorySlot> slot) {
  const u64 base = slot->base.value;
  const u64 priority = priority_of(slot->id);
  if (t && t->priority > priority) {
    if (base < t->base) return with_children(*t, insert(t->left, std::move(slot)), t->right);
    return with_children(*t, t->left, insert(t->right, std::move(slot)));
  }
  auto [low, high] = split(t, base);
  const u64 size = slot->size;
  return std::make_shared<const Node>(
      Node{base, size, priority, std::move(low), std::move(high), std::move(slot)});
}

Tree erase(const Tree& t, u64 base) {
  if (!t) return t;
  if (base < t->base) return with_children(*t, erase(t->left, base), t->right);
  if (base > t->base) return with_children(*t, t->left, erase(t->right, base));
  return merge(t->left, t->right);
}

// Whether a slot other than `self` has a byte in [first, end). Slots are disjoint, so in order of their ends
// too.
bool overlaps(const Node* t, u64 first, u64 end, u32 self) {
  while (t != nullptr) {
    if (t->base >= end) {
      t = t->left.get();
    } else if (t->base + t->size <= first) {
      t = t->right.get();
    } else if (t->slot->id != self) {
      return true;
    } else {
      // Only the slot being moved lies here: its neighbours on both sides can still collide.
      return overlaps(t->left.get(), first, end, self) || overlaps(t->right.get(), first, end, self);
    }
  }
  return false;
}

constexpr u32 space_of(u32 slot) { return slot >> 16; }

} // namespace

const MemorySlot* SlotSnapshot::find(GuestPhys a) const {
  const Node* n = root_.get();
  while (n != nullptr) {
    if (a.value < n->base) {
      n = n->left.get();
    } else if (a.value - n->base < n->size) {
      return n->slot.get();
    } else {
      n = n->right.get();
    }
  }
  return nullptr;
}

struct MemorySlots::Impl {
  std::array<Tree, max_address_spaces> roots;
  std::shared_ptr<const PrivatePages> private_pages; // null: none
  std::unordered_map<u32, std::shared_ptr<const MemorySlot>> by_id;
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
  // The old version is let go after the lock: freeing it may be long.
  Tree retired;
  const std::scoped_lock guard(lock_);
  Tree& root = impl_->roots[space_of(region.slot)];
  const auto entry = impl_->by_id.find(region.slot);
  const std::shared_ptr<const MemorySlot> old = entry == impl_->by_id.end() ? nullptr : entry->second;

  if (region.memory_size == 0) {
    if (!old) return -EINVAL;
    if (old->private_memory) old->private_memory->unbind(old->private_offset, old->size);
    retired = std::exchange(root, erase(root, old->base.value));
    impl_->by_id.erase(entry);
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
  if (overlaps(root.get(), region.guest_phys_addr, end, region.slot)) return -EEXIST;
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

  Tree next = old ? erase(root, old->base.value) : root;
  next = insert(next, slot);
  impl_->by_id[region.slot] = std::move(slot);
  retired = std::exchange(root, std::move(next));
  generation_.fetch_add(1, std::memory_order_acq_rel);
  return 0;
}

SlotSnapshot MemorySlots::snapshot(u32 address_space) const {
  const std::scoped_lock guard(lock_);
  return SlotSnapshot{impl_->roots[address_space], impl_->private_pages};
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
  const auto entry = impl_->by_id.find(slot);
  if (entry == impl_->by_id.end() || !entry->second->dirty) return -ENOENT;
  out = entry->second->dirty;
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
  std::shared_ptr<DirtyBitmap> dirty;
  {
    const std::scoped_lock guard(lock_);
    const auto entry = impl_->by_id.find(slot);
    if (entry == impl_->by_id.end()) return false;
    dirty = entry->second->dirty;
  }
  return dirty && dirty->clear_page(page);
}

std::size_t MemorySlots::dirty_words(u32 slot) const {
  const std::scoped_lock guard(lock_);
  const auto entry = impl_->by_id.find(slot);
  return entry == impl_->by_id.end() || !entry->second->dirty ? 0 : entry->second->dirty->words();
}

bool MemorySlots::backs(const void* host) const {
  GuestPhys ignored;
  return find_host(host, ignored);
}

bool MemorySlots::find_host(const void* host, GuestPhys& out) const {
  const std::scoped_lock guard(lock_);
  const auto at = reinterpret_cast<u64>(host);
  for (const auto& [id, slot] : impl_->by_id) {
    u64 offset = at - reinterpret_cast<u64>(slot->host);
    if (offset >= slot->size && slot->private_memory)
      offset = at - reinterpret_cast<u64>(slot->private_memory->host()) - slot->private_offset;
    if (offset >= slot->size) continue;
    out = slot->base + offset;
    return true;
  }
  return false;
}

std::size_t MemorySlots::count() const {
  const std::scoped_lock guard(lock_);
  return impl_->by_id.size();
}

} // namespace ring3::kvm
