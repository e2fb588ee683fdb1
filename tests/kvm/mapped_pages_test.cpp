// SPDX-License-Identifier: Apache-2.0
#include "kvm/mapped_pages.h"

#include <bit>
#include <gtest/gtest.h>
#include <thread>
#include <vector>

namespace ring3::kvm {
namespace {

constexpr u64 region = MappedPages::region_pages;
constexpr u64 last_page = (u64{1} << 40) - 1; // of 52 bits of addresses

void record(MappedPages& mapped, u64 page) { mapped.record(GuestPhys{page << page_shift}); }

std::vector<u64> pages(const MappedPages& mapped, PageRange range = {0, last_page + 1}) {
  std::vector<u64> all;
  mapped.for_each(range, [&](u64 number, MappedPages::Region& r) {
    for (u64 i = 0; i < region; ++i)
      if ((r.word(i / 64) >> i % 64 & 1) != 0) all.push_back(number * region + i);
  });
  return all;
}

using Pages = std::vector<u64>;

TEST(MappedPages, AreFoundInOrder) {
  MappedPages mapped;
  EXPECT_EQ(pages(mapped), Pages{});
  const Pages some{0,        1, 63, 64, 511, 512, (1 << 18) - 1, 1 << 18, u64{1} << 29, (u64{1} << 29) + 700,
                   last_page};
  for (const u64 page : {last_page, u64{1}, u64{0}, u64{1}}) record(mapped, page);
  for (const u64 page : some) record(mapped, page);
  EXPECT_EQ(pages(mapped), some);
  EXPECT_EQ(pages(mapped, {0, 1}), (Pages{0, 1, 63, 64, 511})) << "whole regions";
  EXPECT_EQ(pages(mapped, {513, (u64{1} << 29) + 1}), (Pages{512, (1 << 18) - 1, 1 << 18, u64{1} << 29}));
  EXPECT_EQ(pages(mapped, {5, 5}), Pages{});
  EXPECT_EQ(pages(mapped, {u64{1} << 41, u64{1} << 52}), Pages{}) << "beyond the addresses of slots";
}

TEST(MappedPages, AreForgottenInRanges) {
  MappedPages mapped;
  for (u64 page = 500; page < 1600; ++page) record(mapped, page);
  mapped.forget({501, 1599});
  EXPECT_EQ(pages(mapped), (Pages{500, 1599}));
  mapped.forget({1599, u64{1} << 52});
  EXPECT_EQ(pages(mapped), Pages{500});
  record(mapped, 700);
  EXPECT_EQ(pages(mapped), (Pages{500, 700}));
}

TEST(MappedPages, Masks) {
  constexpr MappedPages::Mask none{};
  const auto ones = [](const MappedPages::Mask& mask) {
    int n = 0;
    for (const u64 word : mask) n += std::popcount(word);
    return n;
  };
  EXPECT_EQ(ones(MappedPages::mask_of(3, {0, 1 << 20})), 512);
  EXPECT_EQ(MappedPages::mask_of(3, {0, 3 * region}), none);
  EXPECT_EQ(MappedPages::mask_of(3, {4 * region, 5 * region}), none);
  EXPECT_EQ(MappedPages::mask_of(3, {3 * region + 70, 3 * region + 70}), none);
  const MappedPages::Mask some = MappedPages::mask_of(3, {3 * region + 60, 3 * region + 130});
  EXPECT_EQ(some[0], u64{0xf} << 60);
  EXPECT_EQ(some[1], ~u64{0});
  EXPECT_EQ(some[2], 3u);
  EXPECT_EQ(ones(some), 70);
}

TEST(MappedPages, ThreadsRecordAtOnce) {
  MappedPages mapped;
  constexpr u64 count = 4 * region;
  std::vector<std::thread> threads;
  for (u64 i = 0; i < 3; ++i)
    threads.emplace_back([&mapped, i] {
      for (u64 page = i; page < count; page += 2) record(mapped, page);
    });
  while (pages(mapped).size() < count / 2) std::this_thread::yield(); // looks meanwhile
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(pages(mapped).size(), count);
}

} // namespace
} // namespace ring3::kvm
