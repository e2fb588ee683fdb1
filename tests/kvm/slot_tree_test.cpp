// SPDX-License-Identifier: Apache-2.0
#include "kvm/slot_tree.h"

#include "kvm/memory_slots.h"

#include <gtest/gtest.h>
#include <map>
#include <random>
#include <vector>

namespace ring3::kvm {
namespace {

BlockPool pool(sizeof(MemorySlot)); // NOLINT: outlived by what trees still have

Ref<MemorySlot> slot_at(u64 base, u32 id = 0) {
  auto s = make_ref_in<MemorySlot>(pool);
  s->id = id;
  s->base = GuestPhys{base};
  s->size = page_size;
  return s;
}

using Model = std::map<u64, u32>;

void expect_same(const SlotTree& tree, const Model& model, std::mt19937_64& random, u64 limit) {
  for (int i = 0; i < 50; ++i) {
    const u64 a = random() % limit;
    const auto after = model.lower_bound(a);
    const MemorySlot* const last = tree.last_below(a);
    if (after == model.begin()) {
      EXPECT_EQ(last, nullptr);
    } else {
      ASSERT_NE(last, nullptr);
      EXPECT_EQ(last->base.value, std::prev(after)->first);
      EXPECT_EQ(last->id, std::prev(after)->second);
    }
    const MemorySlot* const found = tree.find(a);
    EXPECT_EQ(found != nullptr, model.contains(a & ~page_offset_mask));
  }
  std::vector<u64> order;
  tree.find_if([&](const MemorySlot& s) {
    order.push_back(s.base.value);
    return false;
  });
  ASSERT_EQ(order.size(), model.size());
  std::size_t i = 0;
  for (const auto& [base, id] : model) EXPECT_EQ(order[i++], base);
}

TEST(SlotTree, Empty) {
  const SlotTree tree;
  EXPECT_EQ(tree.find(0), nullptr);
  EXPECT_EQ(tree.last_below(~u64{0}), nullptr);
}

TEST(SlotTree, EndsOfTheAddressSpace) {
  SlotTree tree;
  tree.insert(slot_at(0));
  tree.insert(slot_at(~page_offset_mask));
  EXPECT_NE(tree.find(0), nullptr);
  EXPECT_NE(tree.find(~u64{0} - 1), nullptr);
  EXPECT_EQ(tree.find(page_size), nullptr);
  EXPECT_EQ(tree.last_below(0), nullptr);
}

// Against a model, and copies of the tree against copies of the model: they must not change.
TEST(SlotTree, RandomChangesAndCopies) {
  std::mt19937_64 random(7);
  struct Version {
    SlotTree tree;
    Model model;
  };
  SlotTree tree;
  Model model;
  std::vector<Version> versions;
  constexpr u64 places = 6000;
  constexpr u64 limit = places * page_size;
  for (u32 step = 0; step < 60'000; ++step) {
    const u64 base = random() % places * page_size;
    // Full and empty by turns.
    const bool grow = step / 15'000 % 2 == 0 ? random() % 4 != 0 : random() % 4 == 0;
    if (!model.contains(base)) {
      if (!grow) continue;
      tree.insert(slot_at(base, step));
      model[base] = step;
    } else if (random() % 3 == 0) {
      tree.edit(base, pool).id = step;
      model[base] = step;
      // Elsewhere, near or far.
      const u64 to = random() % 2 != 0 ? base + page_size : random() % places * page_size;
      if (to < limit && !model.contains(to)) {
        EXPECT_EQ(tree.move(base, to, pool).base.value, to);
        model.erase(base);
        model[to] = step;
      }
    } else if (!grow) {
      tree.erase(base);
      model.erase(base);
    }
    if (step % 6000 == 17) versions.push_back({tree, model});
    if (step % 2000 == 0) expect_same(tree, model, random, limit);
  }
  for (const Version& v : versions) expect_same(v.tree, v.model, random, limit);
  while (!model.empty()) {
    tree.erase(model.begin()->first);
    model.erase(model.begin());
  }
  expect_same(tree, model, random, limit);
}

TEST(SlotTree, ManyInOrderAndBack) {
  std::mt19937_64 random(8);
  SlotTree tree;
  Model model;
  constexpr u32 count = 32764;
  for (u32 i = 0; i < count; ++i) {
    tree.insert(slot_at(u64{i} * page_size, i));
    model[u64{i} * page_size] = i;
  }
  expect_same(tree, model, random, u64{count} * page_size);
  for (u32 i = count; i-- > 100;) {
    tree.erase(u64{i} * page_size);
    model.erase(u64{i} * page_size);
  }
  expect_same(tree, model, random, u64{count} * page_size);
}

} // namespace
} // namespace ring3::kvm
