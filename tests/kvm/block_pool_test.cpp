// SPDX-License-Identifier: Apache-2.0
#include "kvm/block_pool.h"

#include <gtest/gtest.h>
#include <optional>
#include <set>
#include <thread>
#include <vector>

namespace ring3::kvm {
namespace {

struct Object : Counted, Pooled {
  explicit Object(u64 v) : value(v) { ++alive; }
  Object(const Object& other) : Counted(other), value(other.value) { ++alive; }
  ~Object() { --alive; }
  Object& operator=(const Object&) = delete;

  u64 value;
  u64 more[5] = {};
  static inline std::atomic<int> alive{0};
};

TEST(BlockPool, ObjectsAreApartAndKeepTheirContents) {
  BlockPool pool(sizeof(Object));
  std::vector<Ref<Object>> objects;
  for (u64 i = 0; i < 100'000; ++i)
    objects.push_back(make_ref_in<Object>(pool, i)); // more than one huge page
  std::set<const Object*> places;
  for (u64 i = 0; i < objects.size(); ++i) {
    ASSERT_EQ(objects[i]->value, i);
    ASSERT_EQ(reinterpret_cast<u64>(objects[i].get()) % alignof(Object), 0U);
    places.insert(objects[i].get());
  }
  const Object* last = nullptr;
  for (const Object* p : places) {
    if (last != nullptr) {
      ASSERT_GE(p, last + 1);
    }
    last = p;
  }
  objects.clear();
  EXPECT_EQ(Object::alive, 0);
}

#ifndef __SANITIZE_ADDRESS__
TEST(BlockPool, DeletedBlocksAreUsedAgain) {
  BlockPool pool(sizeof(Object));
  std::set<const Object*> places;
  for (u64 i = 0; i < 10'000; ++i) places.insert(make_ref_in<Object>(pool, i).get());
  EXPECT_LE(places.size(), 2U);
}
#endif

TEST(BlockPool, ObjectsOutliveIt) {
  std::optional<BlockPool> pool(sizeof(Object));
  const Ref<Object> kept = make_ref_in<Object>(*pool, 7U);
  Ref<Object> dropped = make_ref_in<Object>(*pool, 8U);
  pool.reset();
  dropped = {};
  EXPECT_EQ(kept->value, 7U);
  EXPECT_EQ(Object::alive, 1);
}

TEST(BlockPool, OthersDelete) {
  std::optional<BlockPool> pool(sizeof(Object));
  for (int round = 0; round < 20; ++round) {
    std::vector<Ref<Object>> objects;
    for (u64 i = 0; i < 4000; ++i) objects.push_back(make_ref_in<Object>(*pool, i));
    std::vector<Ref<Object>> copies = objects;
    std::jthread other([mine = std::move(copies)]() mutable { mine.clear(); });
    std::jthread third([mine = std::move(objects)]() mutable { mine.clear(); });
    for (u64 i = 0; i < 4000; ++i) EXPECT_EQ(make_ref_in<Object>(*pool, i)->value, i);
    if (round == 19) pool.reset(); // while they delete
  }
  EXPECT_EQ(Object::alive, 0);
}

TEST(Counted, TheOnlyHolder) {
  struct Plain : Counted {};
  const Ref<Plain> a = make_ref<Plain>();
#ifndef __SANITIZE_THREAD__
  EXPECT_TRUE(Ref<Plain>::is_only(a.get()));
#endif
  const Ref<Plain> b = a; // NOLINT: the copy is what is tested
  EXPECT_FALSE(Ref<Plain>::is_only(a.get()));
  const Plain copy(*a);
  EXPECT_EQ(b.get(), a.get());
  EXPECT_NE(&copy, a.get());
}

} // namespace
} // namespace ring3::kvm
