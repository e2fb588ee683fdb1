// SPDX-License-Identifier: Apache-2.0
// Memory slots in the order of their guest addresses: a B+ tree that is copied on write. Copies of a tree are
// cheap and never change; a change copies only the nodes and the slot on its way that some copy still holds,
// and none if nobody does, which is what setting up many slots is.
//
// VMMs set slots up one beside the other, so the leaf of the last change is remembered: a change near it does
// not walk the tree, and takes as long with 30,000 slots as with ten.
#pragma once

#include "base/types.h"
#include "kvm/block_pool.h"
#include "kvm/counted.h"

namespace ring3::kvm {

struct MemorySlot;

// Any thread may read a tree that no thread changes. Copying it and changing it need the same lock; what a
// copy holds may be read, copied and let go without.
class SlotTree {
 public:
  SlotTree();
  SlotTree(const SlotTree& other);
  SlotTree(SlotTree&& other) noexcept;
  SlotTree& operator=(SlotTree other) noexcept;
  ~SlotTree();

  // The slot with the largest base that is less than `limit`; null: there is none. O(log n). It stays as long
  // as some copy has it.
  const MemorySlot* last_below(u64 limit) const;
  // The one that holds the address, if the slots do not overlap.
  const MemorySlot* find(u64 address) const;
  // Whether a slot other than `except` has a byte in [first, end). Not const: it remembers the place, where a
  // slot is probably going to be.
  bool overlaps(u64 first, u64 end, const MemorySlot* except);

  // Changes that throw std::bad_alloc have not happened. Bases are unique. The pool is for copies of slots.
  void insert(Ref<MemorySlot> slot);
  // The slot with this base, for changes of all but the base; in its place there may be a copy of it now.
  MemorySlot& edit(u64 base, BlockPool& pool);
  // Gives the slot another base. It may be a copy of it that has it.
  MemorySlot& move(u64 from, u64 to, BlockPool& pool);
  // What was taken out.
  Ref<MemorySlot> erase(u64 base);

  // The first, in order, for which it holds; allocates nothing. Null: for none.
  template <class F> const MemorySlot* find_if(F&& holds) const {
    return find_if_below(
        root_.get(), [](void* f, const MemorySlot& s) { return (*static_cast<F*>(f))(s); }, &holds);
  }

 private:
  struct Node;
  using Holds = bool (*)(void*, const MemorySlot&);
  Node& reach(u64 base);
  unsigned below_in_place(u64 limit);
  static Ref<MemorySlot> erase_below(Node& node, u64 base);
  static const MemorySlot* find_if_below(const Node* node, Holds holds, void* argument);

  Ref<Node> root_; // null: empty

  // The leaf where the last change was, about where in it, and the bases that belong there. No copy of the
  // tree has it or any node above it. Null: there is none such.
  struct Place {
    Node* leaf = nullptr;
    u64 low = 0;  // the lowest such base
    u64 last = 0; // the highest
    unsigned at = 0;
  };
  mutable Place place_;
};

} // namespace ring3::kvm
