// SPDX-License-Identifier: Apache-2.0
// Memory slots in the order of their guest addresses: a B+ tree that is copied on write. Copies of a tree are
// cheap and never change; a change copies only the nodes on its way that some copy still holds, and none if
// nobody does, which is what setting up many slots is.
#pragma once

#include "base/types.h"

#include <memory>

namespace ring3::kvm {

struct MemorySlot;

// Any thread may read a tree that no thread changes. Copying it and changing it need the same lock; what a
// copy holds may be read and let go without.
class SlotTree {
 public:
  // The slot with the largest base that is less than `limit`; null: there is none. O(log n). It stays as long
  // as some copy has it.
  const MemorySlot* last_below(u64 limit) const;
  // The one that holds the address, if the slots do not overlap.
  const MemorySlot* find(u64 address) const;

  // Bases are unique.
  void insert(std::shared_ptr<const MemorySlot> slot);
  // Puts it in the place of the slot with the same base.
  void replace(std::shared_ptr<const MemorySlot> slot);
  void erase(u64 base);

  // The first, in order, for which it holds; allocates nothing. Null: for none.
  template <class F> const MemorySlot* find_if(F&& holds) const {
    return find_if_below(
        root_.get(), [](void* f, const MemorySlot& s) { return (*static_cast<F*>(f))(s); }, &holds);
  }

 private:
  struct Node;
  using Holds = bool (*)(void*, const MemorySlot&);
  static std::shared_ptr<Node> insert_below(Node& node, std::shared_ptr<const MemorySlot> slot);
  static void erase_below(Node& node, u64 base);
  static const MemorySlot* find_if_below(const Node* node, Holds holds, void* argument);
  static Node& own(std::shared_ptr<void>& pointer);

  std::shared_ptr<Node> root_; // null: empty
};

} // namespace ring3::kvm
