// SPDX-License-Identifier: Apache-2.0
#include "base/zeroed_array.h"

#include "base/types.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <vector>

namespace ring3::test {
namespace {

constexpr std::size_t page = 4096;

std::size_t resident_pages(std::span<u64> array) {
  std::vector<unsigned char> in_memory((array.size_bytes() + page - 1) / page);
  EXPECT_EQ(mincore(array.data(), array.size_bytes(), in_memory.data()), 0);
  return static_cast<std::size_t>(
      std::ranges::count_if(in_memory, [](unsigned char c) { return (c & 1) != 0; }));
}

TEST(ZeroedArray, TakesMemoryWhereItIsTouched) {
  ZeroedArray<u64> array(64 * page / sizeof(u64));
  ASSERT_EQ(madvise(array.all().data(), array.all().size_bytes(), MADV_NOHUGEPAGE), 0);
  EXPECT_EQ(resident_pages(array.all()), 0u);
  array[5] = 7;
  array[40 * page / sizeof(u64)] = 8;
  EXPECT_EQ(resident_pages(array.all()), 2u);
  EXPECT_EQ(array[5], 7u);
  EXPECT_EQ(array[6], 0u);
}

TEST(ZeroedArray, CanBeCleared) {
  ZeroedArray<u64> array(64 * page / sizeof(u64));
  array[5] = 7;
  array.clear();
  EXPECT_EQ(array[5], 0u);
  // Locked memory is not given back.
  if (mlock(array.all().data(), page) == 0) {
    array[5] = 7;
    array.clear();
    EXPECT_EQ(array[5], 0u);
  }
}

TEST(ZeroedArray, ReportsThatThereIsNoMemory) {
  EXPECT_THROW(ZeroedArray<u64>(std::size_t{1} << 57), std::bad_alloc);
}

} // namespace
} // namespace ring3::test
