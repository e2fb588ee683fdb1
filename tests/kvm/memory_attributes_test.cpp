// SPDX-License-Identifier: Apache-2.0
#include "kvm/memory_attributes.h"

#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace ring3::kvm {
namespace {

TEST(PrivatePages, MatchesABitmap) {
  constexpr u64 pages = 200;
  std::mt19937_64 random(7);
  PrivatePages set;
  std::vector<bool> model(pages, false);
  for (int round = 0; round < 3000; ++round) {
    const u64 first = random() % pages;
    const u64 end = first + 1 + random() % std::min<u64>(pages - first, 1 + random() % 40);
    const bool is_private = (random() & 1) != 0;
    bool all = true;
    for (u64 p = first; p < end; ++p) all = all && model[p] == is_private;
    ASSERT_EQ(set.all({first, end}, is_private), all) << round;
    set = set.with({first, end}, is_private);
    for (u64 p = first; p < end; ++p) model[p] = is_private;
    bool any = false;
    for (u64 p = 0; p < pages; ++p) {
      ASSERT_EQ(set.contains(p), model[p]) << round << ' ' << p;
      any = any || model[p];
    }
    ASSERT_EQ(set.empty(), !any);
  }
}

TEST(PrivatePages, RangesReachTheEndOfTheAddressSpace) {
  constexpr u64 end = u64{1} << 52;
  const PrivatePages set = PrivatePages{}.with({end - 2, end}, true);
  EXPECT_TRUE(set.contains(end - 1));
  EXPECT_FALSE(set.contains(end));
  EXPECT_FALSE(set.contains(0));
  EXPECT_TRUE(set.with({0, end}, false).empty());
}

} // namespace
} // namespace ring3::kvm
