// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/translation_context.h"

#include <gtest/gtest.h>
#include <memory>

namespace ring3::x86::jit {
namespace {

// Two targets of one place.
constexpr u64 target = 0x40'1000, other = target + (u64{1} << 32), third = target + (u64{2} << 32);
static_assert(JumpTable::index(target) == JumpTable::index(other));

TEST(JumpTable, NothingIsNoTarget) {
  for (unsigned i = 0; i < JumpTable::entries; ++i) EXPECT_NE(JumpTable::index(JumpTable::nothing(i)), i);
  const auto table = std::make_unique<JumpTable>();
  for (const u64 any : {u64{0}, u64{1}, u64{1} << 63, ~u64{0}}) EXPECT_EQ(table->find(any), nullptr);
  const u64 hostile = u64{1} << 63;
  const JumpEntry& e = table->entry[JumpTable::index(hostile)];
  EXPECT_NE(e.target, hostile);
}

TEST(JumpTable, KeepsTwoTargetsOfAPlace) {
  JumpTable t;
  const u8 code[3]{};
  EXPECT_EQ(t.find(target), nullptr);
  t.put(target, &code[0]);
  t.put(other, &code[1]);
  t.put(other, &code[1]); // again: it drives out nobody
  EXPECT_EQ(t.find(target), &code[0]);
  EXPECT_EQ(t.find(other), &code[1]);
  t.put(third, &code[2]);
  EXPECT_EQ(t.find(target), nullptr);
  EXPECT_EQ(t.find(third), &code[2]);
}

TEST(JumpTable, FindsNothingWhereNothingWasPut) {
  JumpTable t;
  EXPECT_EQ(t.find(0), nullptr);
  for (u64 at = 0; at < 1 << 20; at += 4093) EXPECT_EQ(t.find(at), nullptr);
}

TEST(JumpTable, IsEmptyWhenClearedHoweverMuchWasPut) {
  JumpTable t;
  const u8 code = 0;
  for (const u64 count : {1u, 100u, 8192u, 8193u, 65535u, 65536u, 65537u, 300'000u}) {
    for (u64 i = 0; i < count; ++i) t.put(i * 3, &code);
    t.clear();
    for (u64 i = 0; i < count; ++i) ASSERT_EQ(t.find(i * 3), nullptr);
  }
}

} // namespace
} // namespace ring3::x86::jit
