// SPDX-License-Identifier: Apache-2.0
#include "kvm/slot_tree.h"

#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <utility>

namespace ring3::kvm {

// In a leaf, entry i is the slot with base key[i]. Above, it is a node whose smallest key is key[i]. No node
// is empty. Nodes that have become small are not merged: slots come and go in the same places, and an empty
// node is taken out.
struct SlotTree::Node {
  static constexpr unsigned most = 64;

  bool leaf = true;
  unsigned count = 0;
  std::array<u64, most> key{};
  std::array<std::shared_ptr<void>, most> entry; // Node, or const MemorySlot

  const Node& child(unsigned i) const { return *static_cast<const Node*>(entry[i].get()); }
  const MemorySlot& slot(unsigned i) const { return *static_cast<const MemorySlot*>(entry[i].get()); }

  // How many keys are less than `limit`.
  unsigned below(u64 limit) const {
    return static_cast<unsigned>(std::lower_bound(key.begin(), key.begin() + count, limit) - key.begin());
  }
  // The entry under which `base` is or would be.
  unsigned toward(u64 base) const {
    const unsigned n = below(base);
    if (n < count && key[n] == base) return n;
    return n == 0 ? 0 : n - 1;
  }
  void put(unsigned at, u64 k, std::shared_ptr<void> e) {
    std::move_backward(key.begin() + at, key.begin() + count, key.begin() + count + 1);
    std::move_backward(entry.begin() + at, entry.begin() + count, entry.begin() + count + 1);
    key[at] = k;
    entry[at] = std::move(e);
    ++count;
  }
  void remove(unsigned at) {
    std::move(key.begin() + at + 1, key.begin() + count, key.begin() + at);
    std::move(entry.begin() + at + 1, entry.begin() + count, entry.begin() + at);
    entry[--count].reset();
  }
  // Makes room: the upper half, as a node of its own. When keys only grow, halves would never be filled
  // again, so then it is the last entry alone.
  std::shared_ptr<Node> split(bool at_the_end) {
    const auto upper = std::make_shared<Node>();
    const unsigned stay = at_the_end ? most - 1 : most / 2;
    upper->leaf = leaf;
    upper->count = count - stay;
    std::copy(key.begin() + stay, key.begin() + count, upper->key.begin());
    std::move(entry.begin() + stay, entry.begin() + count, upper->entry.begin());
    count = stay;
    return upper;
  }
};

// Slots are immutable, but the tree has one kind of pointer for both.
namespace {
std::shared_ptr<void> erased(std::shared_ptr<const MemorySlot> slot) {
  return std::const_pointer_cast<MemorySlot>(std::move(slot));
}
} // namespace

// A node that no other tree has may be changed where it is. Only copying a tree, under the same lock, could
// give it another holder meanwhile.
SlotTree::Node& SlotTree::own(std::shared_ptr<void>& pointer) {
#ifdef __SANITIZE_THREAD__
  const bool shared = true; // ThreadSanitizer knows no fences
#else
  const bool shared = pointer.use_count() != 1;
  // Whoever let go of it last has read it before.
  std::atomic_thread_fence(std::memory_order_acquire);
#endif
  if (shared) pointer = std::make_shared<Node>(*static_cast<const Node*>(pointer.get()));
  return *static_cast<Node*>(pointer.get());
}

const MemorySlot* SlotTree::last_below(u64 limit) const {
  const Node* node = root_.get();
  if (node == nullptr) return nullptr;
  while (!node->leaf) {
    const unsigned n = node->below(limit);
    if (n == 0) return nullptr;
    node = &node->child(n - 1);
  }
  const unsigned n = node->below(limit);
  return n != 0 ? &node->slot(n - 1) : nullptr;
}

const MemorySlot* SlotTree::find(u64 address) const {
  const MemorySlot* const slot = address == ~u64{0} ? nullptr : last_below(address + 1);
  return slot != nullptr && address - slot->base.value < slot->size ? slot : nullptr;
}

// What had to be split off, to stand behind the node.
std::shared_ptr<SlotTree::Node> SlotTree::insert_below(Node& node, std::shared_ptr<const MemorySlot> slot) {
  const u64 base = slot->base.value;
  std::shared_ptr<Node> upper;
  if (node.leaf) {
    const unsigned at = node.below(base);
    if (node.count < Node::most) {
      node.put(at, base, erased(std::move(slot)));
      return nullptr;
    }
    upper = node.split(at == node.count);
    Node& half = base < upper->key[0] ? node : *upper;
    half.put(half.below(base), base, erased(std::move(slot)));
    return upper;
  }
  const unsigned i = node.toward(base);
  node.key[i] = std::min(node.key[i], base);
  std::shared_ptr<Node> more = insert_below(own(node.entry[i]), std::move(slot));
  if (!more) return nullptr;
  const u64 key = more->key[0];
  if (node.count < Node::most) {
    node.put(i + 1, key, std::move(more));
    return nullptr;
  }
  upper = node.split(i + 1 == node.count);
  Node& half = key < upper->key[0] ? node : *upper;
  half.put(half.below(key), key, std::move(more));
  return upper;
}

void SlotTree::insert(std::shared_ptr<const MemorySlot> slot) {
  if (!root_) root_ = std::make_shared<Node>();
  std::shared_ptr<void> root = std::move(root_);
  Node& node = own(root);
  std::shared_ptr<Node> upper = insert_below(node, std::move(slot));
  root_ = std::static_pointer_cast<Node>(std::move(root));
  if (!upper) return;
  auto above = std::make_shared<Node>();
  above->leaf = false;
  const u64 key = upper->key[0];
  above->put(0, node.key[0], std::move(root_));
  above->put(1, key, std::move(upper));
  root_ = std::move(above);
}

void SlotTree::replace(std::shared_ptr<const MemorySlot> slot) {
  const u64 base = slot->base.value;
  std::shared_ptr<void> root = std::move(root_);
  Node* node = &own(root);
  while (!node->leaf) node = &own(node->entry[node->toward(base)]);
  node->entry[node->toward(base)] = erased(std::move(slot));
  root_ = std::static_pointer_cast<Node>(std::move(root));
}

void SlotTree::erase_below(Node& node, u64 base) {
  const unsigned i = node.toward(base);
  if (!node.leaf) {
    Node& child = own(node.entry[i]);
    erase_below(child, base);
    if (child.count != 0) {
      node.key[i] = child.key[0];
      return;
    }
  }
  node.remove(i);
}

void SlotTree::erase(u64 base) {
  std::shared_ptr<void> root = std::move(root_);
  Node& node = own(root);
  erase_below(node, base);
  if (node.count == 0) return;
  // A root with one child is that child.
  while (!static_cast<Node*>(root.get())->leaf && static_cast<Node*>(root.get())->count == 1)
    root = std::shared_ptr<void>(static_cast<Node*>(root.get())->entry[0]);
  root_ = std::static_pointer_cast<Node>(std::move(root));
}

const MemorySlot* SlotTree::find_if_below(const Node* node, Holds holds, void* argument) {
  for (unsigned i = 0; node != nullptr && i < node->count; ++i) {
    if (!node->leaf) {
      if (const MemorySlot* found = find_if_below(&node->child(i), holds, argument)) return found;
    } else if (holds(argument, node->slot(i))) {
      return &node->slot(i);
    }
  }
  return nullptr;
}

} // namespace ring3::kvm
