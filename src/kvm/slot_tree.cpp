// SPDX-License-Identifier: Apache-2.0
#include "kvm/slot_tree.h"

#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

namespace ring3::kvm {

// In a leaf, entry i is the slot with base key[i]. Above, it is a node whose keys are key[i] or more, and
// less than key[i + 1]. No node is empty. Nodes that have become small are not merged: slots come and go in
// the same places, and an empty node is taken out.
struct SlotTree::Node : Counted {
  static constexpr unsigned most = 64;

  // Each is a holder of what it points to. Not Refs, since they are moved by the dozen with each change.
  union Entry {
    Node* node;
    MemorySlot* slot;
  };

  bool leaf = true;
  unsigned count = 0;
  std::array<u64, most> key; // the first `count` are there
  std::array<Entry, most> entry;

  Node() {} // NOLINT(modernize-use-equals-default): the arrays are filled later
  Node(const Node& other) : Counted(other), leaf(other.leaf), count(other.count) {
    std::copy_n(other.key.begin(), count, key.begin());
    for (unsigned i = 0; i < count; ++i) entry[i] = other.held(i);
  }
  Node& operator=(const Node&) = delete;
  ~Node() {
    for (unsigned i = 0; i < count; ++i) let_go(i);
  }

  // One more holder of the entry.
  Entry held(unsigned i) const {
    if (leaf) return {.slot = Ref<MemorySlot>::of(entry[i].slot).release()};
    return {.node = Ref<Node>::of(entry[i].node).release()};
  }
  void let_go(unsigned i) {
    if (leaf)
      Ref<MemorySlot>::adopt(entry[i].slot);
    else
      Ref<Node>::adopt(entry[i].node);
  }

  // How many keys are less than `limit`. The ends come first: slots are mostly made and deleted in order.
  unsigned below(u64 limit) const {
    if (count == 0 || limit <= key[0]) return 0;
    if (key[count - 1] < limit) return count;
    unsigned first = 0;
    for (unsigned left = count; left > 1;) { // without a branch that depends on the keys
      const unsigned half = left / 2;
      first = key[first + half] < limit ? first + half : first;
      left -= half;
    }
    return first + 1;
  }
  // The entry under which `base` is or would be.
  unsigned toward(u64 base) const {
    const unsigned n = below(base);
    if (n < count && key[n] == base) return n;
    return n == 0 ? 0 : n - 1;
  }
  // The entry now is the holder. There is room.
  void put(unsigned at, u64 k, Entry e) {
    std::memmove(&key[at] + 1, &key[at], (count - at) * sizeof(u64));
    std::memmove(&entry[at] + 1, &entry[at], (count - at) * sizeof(Entry));
    key[at] = k;
    entry[at] = e;
    ++count;
  }
  // The caller is the holder of the entry now.
  Entry take(unsigned at) {
    const Entry taken = entry[at];
    --count;
    std::memmove(&key[at], &key[at] + 1, (count - at) * sizeof(u64));
    std::memmove(&entry[at], &entry[at] + 1, (count - at) * sizeof(Entry));
    return taken;
  }
  // Makes room: the upper half, as a node of its own. When keys only grow, halves would never be filled
  // again, so then it is the last entry alone.
  Ref<Node> split(bool at_the_end) {
    Ref<Node> upper = make_ref<Node>();
    const unsigned stay = at_the_end ? most - 1 : most / 2;
    upper->leaf = leaf;
    upper->count = count - stay;
    std::copy(key.begin() + stay, key.begin() + count, upper->key.begin());
    std::copy(entry.begin() + stay, entry.begin() + count, upper->entry.begin());
    count = stay;
    return upper;
  }

  // The node that is to be changed, in the place of one that some other tree may have too.
  static Node& own(Node*& node) {
    if (!Ref<Node>::is_only(node)) {
      Ref<Node> copy = make_ref<Node>(*node);
      Ref<Node>::adopt(std::exchange(node, copy.release()));
    }
    return *node;
  }
};

SlotTree::SlotTree() = default;
SlotTree::~SlotTree() = default;

SlotTree::SlotTree(const SlotTree& other) : root_(other.root_) {
  // Only a tree that is changed has a place, and copying that needs the lock.
  if (other.place_.leaf != nullptr) other.place_ = {};
}
SlotTree::SlotTree(SlotTree&& other) noexcept
    : root_(std::move(other.root_)), place_(std::exchange(other.place_, {})) {}
SlotTree& SlotTree::operator=(SlotTree other) noexcept {
  std::swap(root_, other.root_);
  place_ = std::exchange(other.place_, {});
  return *this;
}

const MemorySlot* SlotTree::last_below(u64 limit) const {
  const Node* node = root_.get();
  if (node == nullptr) return nullptr;
  const Node* before = nullptr; // the last one all of whose keys are less than those under `node`
  unsigned n = node->below(limit);
  while (!node->leaf && n != 0) {
    if (n > 1) before = node->entry[n - 2].node;
    node = node->entry[n - 1].node;
    n = node->below(limit);
  }
  if (n != 0) return node->entry[n - 1].slot;
  if (before == nullptr) return nullptr;
  while (!before->leaf) before = before->entry[before->count - 1].node;
  return before->entry[before->count - 1].slot;
}

const MemorySlot* SlotTree::find(u64 address) const {
  const MemorySlot* const slot = address == ~u64{0} ? nullptr : last_below(address + 1);
  return slot != nullptr && address - slot->base.value < slot->size ? slot : nullptr;
}

// The leaf where the base is or would be, which no other tree has, and neither the nodes above. The tree is
// not empty.
SlotTree::Node& SlotTree::reach(u64 base) {
  if (place_.leaf != nullptr && base >= place_.low && base <= place_.last) return *place_.leaf;
  place_ = {};
  Node* root = root_.release();
  Place place{nullptr, 0, ~u64{0}};
  try {
    Node::own(root);
    Node* node = root;
    while (!node->leaf) {
      const unsigned i = node->toward(base);
      place.low = node->key[i];
      if (i + 1 < node->count) place.last = node->key[i + 1] - 1;
      node = &Node::own(node->entry[i].node);
    }
    place.leaf = node;
  } catch (...) {
    root_ = Ref<Node>::adopt(root);
    throw;
  }
  root_ = Ref<Node>::adopt(root);
  place_ = place;
  return *place.leaf;
}

// place_.leaf->below(), which most often is where it was the last time or a little behind.
unsigned SlotTree::below_in_place(u64 limit) {
  const Node& leaf = *place_.leaf;
  unsigned n = std::min(place_.at, leaf.count);
  if (n == 0 || leaf.key[n - 1] < limit) {
    for (const unsigned end = std::min(n + 3, leaf.count); n < end; ++n)
      if (limit <= leaf.key[n]) return place_.at = n;
    if (n == leaf.count) return place_.at = n;
  }
  return place_.at = leaf.below(limit);
}

bool SlotTree::overlaps(u64 first, u64 end, const MemorySlot* except) {
  if (!root_) return false;
  const Node& leaf = reach(first);
  // The slot before the end, other than that: slots are disjoint.
  const MemorySlot* last = nullptr;
  if (end - 1 <= place_.last) {
    unsigned n = below_in_place(end);
    if (n != 0 && leaf.entry[n - 1].slot == except) --n;
    if (n != 0) last = leaf.entry[n - 1].slot;
  }
  if (last == nullptr) {
    last = last_below(end);
    if (last != nullptr && last == except) last = last_below(last->base.value);
  }
  return last != nullptr && last->base.value + last->size > first;
}

void SlotTree::insert(Ref<MemorySlot> slot) {
  const u64 base = slot->base.value;
  if (!root_) root_ = make_ref<Node>();
  Node& near = reach(base);
  if (near.count < Node::most && base >= place_.low) {
    near.put(below_in_place(base), base, {.slot = slot.release()});
    return;
  }
  // The way down again, where each full node is split before it is entered: there is room above it.
  place_ = {};
  if (root_->count == Node::most) {
    Ref<Node> above = make_ref<Node>();
    above->leaf = false;
    const u64 key = root_->key[0];
    above->put(0, key, {.node = root_.release()});
    root_ = std::move(above);
  }
  Node* node = root_.get();
  while (!node->leaf) {
    const unsigned i = node->toward(base);
    Node* child = &Node::own(node->entry[i].node);
    if (child->count == Node::most) {
      Ref<Node> upper = child->split(base > child->key[Node::most - 1]);
      Node* const added = upper.get();
      node->put(i + 1, added->key[0], {.node = upper.release()});
      if (base >= added->key[0]) child = added;
    }
    // The tree's lowest base may be below all keys; further down, it belongs to the node it came to.
    if (child == node->entry[i].node) node->key[i] = std::min(node->key[i], base);
    node = child;
  }
  node->put(node->below(base), base, {.slot = slot.release()});
}

MemorySlot& SlotTree::edit(u64 base, BlockPool& pool) {
  Node& leaf = reach(base);
  MemorySlot*& slot = leaf.entry[below_in_place(base)].slot;
  if (!Ref<MemorySlot>::is_only(slot)) {
    Ref<MemorySlot> copy = make_ref_in<MemorySlot>(pool, *slot);
    Ref<MemorySlot>::adopt(std::exchange(slot, copy.release()));
  }
  return *slot;
}

MemorySlot& SlotTree::move(u64 from, u64 to, BlockPool& pool) {
  MemorySlot& slot = edit(from, pool);
  Node& leaf = *place_.leaf; // where edit() has just found it
  const unsigned at = place_.at;
  const u64 low = at != 0 ? leaf.key[at - 1] + 1 : place_.low;
  const u64 last = at + 1 < leaf.count ? leaf.key[at + 1] - 1 : place_.last;
  if (to >= low && to <= last) { // the order stays what it was
    leaf.key[at] = to;
    slot.base = GuestPhys{to};
    return slot;
  }
  Ref<MemorySlot> moved = make_ref_in<MemorySlot>(pool, slot);
  moved->base = GuestPhys{to};
  MemorySlot& result = *moved;
  insert(std::move(moved));
  erase(from);
  return result;
}

Ref<MemorySlot> SlotTree::erase_below(Node& node, u64 base) {
  if (node.leaf) return Ref<MemorySlot>::adopt(node.take(node.below(base)).slot);
  const unsigned i = node.toward(base);
  Node& child = *node.entry[i].node;
  Ref<MemorySlot> erased = erase_below(child, base);
  if (child.count == 0) Ref<Node>::adopt(node.take(i).node);
  return erased;
}

Ref<MemorySlot> SlotTree::erase(u64 base) {
  Node& near = reach(base);
  if (near.count > 1) return Ref<MemorySlot>::adopt(near.take(below_in_place(base)).slot);
  place_ = {};
  Ref<MemorySlot> erased = erase_below(*root_, base); // reach() has made them ours
  if (root_->count == 0) {
    root_ = {};
    return erased;
  }
  // A root with one child is that child.
  while (!root_->leaf && root_->count == 1) root_ = Ref<Node>::of(root_->entry[0].node);
  return erased;
}

const MemorySlot* SlotTree::find_if_below(const Node* node, Holds holds, void* argument) {
  for (unsigned i = 0; node != nullptr && i < node->count; ++i) {
    if (!node->leaf) {
      if (const MemorySlot* found = find_if_below(node->entry[i].node, holds, argument)) return found;
    } else if (holds(argument, *node->entry[i].slot)) {
      return node->entry[i].slot;
    }
  }
  return nullptr;
}

} // namespace ring3::kvm
