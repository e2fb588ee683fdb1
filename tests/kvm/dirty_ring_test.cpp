// SPDX-License-Identifier: Apache-2.0
#include "kvm/dirty_ring.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <random>
#include <thread>
#include <utility>
#include <vector>

namespace ring3::kvm {
namespace {

constexpr u32 size = 1024;
constexpr u32 request = 1u << 11;
using Pages = std::vector<std::pair<u32, u64>>;

class DirtyRingTest : public testing::Test {
 protected:
  // What a VMM does with the oldest entries.
  u32 harvest(u32 most = size) {
    u32 n = 0;
    for (; n < most; ++n, ++fetched_) {
      const std::atomic_ref<u32> flags(memory_[fetched_ % size].flags);
      if (flags.load(std::memory_order_acquire) != KVM_DIRTY_GFN_F_DIRTY) break;
      seen_.emplace_back(memory_[fetched_ % size].slot, memory_[fetched_ % size].offset);
      flags.store(KVM_DIRTY_GFN_F_RESET, std::memory_order_release);
    }
    return n;
  }
  Pages reset() {
    Pages pages;
    ring_.reset([&pages](u32 slot, u64 page) { pages.emplace_back(slot, page); });
    return pages;
  }

  std::vector<kvm_dirty_gfn> memory_{size};
  std::atomic<u32> exit_word_{0};
  DirtyRing ring_{memory_, exit_word_, request};
  u32 fetched_ = 0;
  Pages seen_;
};

TEST_F(DirtyRingTest, AnEntryGoesRound) {
  EXPECT_TRUE(reset().empty());
  ring_.push(3, 0x1234);
  EXPECT_EQ(memory_[0].flags, static_cast<u32>(KVM_DIRTY_GFN_F_DIRTY));
  EXPECT_EQ(memory_[0].slot, 3u);
  EXPECT_EQ(memory_[0].offset, 0x1234u);
  EXPECT_TRUE(reset().empty()) << "not harvested";
  EXPECT_EQ(harvest(), 1u);
  EXPECT_EQ(reset(), (Pages{{3, 0x1234}}));
  EXPECT_EQ(memory_[0].flags, 0u);
  EXPECT_TRUE(reset().empty());
  for (u32 i = 0; i < 10 * size; ++i) {
    ring_.push(1, i);
    ASSERT_EQ(harvest(), 1u);
    ASSERT_EQ(reset(), (Pages{{1, i}}));
  }
  EXPECT_EQ(exit_word_.load(), 0u);
}

TEST_F(DirtyRingTest, OnlyInSequence) {
  for (u32 i = 0; i < 4; ++i) ring_.push(0, i);
  memory_[2].flags = KVM_DIRTY_GFN_F_RESET;
  EXPECT_TRUE(reset().empty()) << "the oldest one is not harvested";
  memory_[0].flags = KVM_DIRTY_GFN_F_RESET | KVM_DIRTY_GFN_F_DIRTY; // bit 0 is ignored
  memory_[1].flags = KVM_DIRTY_GFN_F_RESET;
  EXPECT_EQ(reset(), (Pages{{0, 0}, {0, 1}, {0, 2}}));
}

TEST_F(DirtyRingTest, TheSoftLimitAsksForTheExit) {
  const u32 limit = size - DirtyRing::reserved;
  for (u32 i = 0; i + 1 < limit; ++i) ring_.push(0, i);
  EXPECT_EQ(exit_word_.load(), 0u);
  EXPECT_FALSE(ring_.full());
  ring_.push(0, limit - 1);
  EXPECT_EQ(exit_word_.load(), request);
  EXPECT_TRUE(ring_.full());
  EXPECT_TRUE(ring_.full()) << "until there is room";
  EXPECT_EQ(harvest(1), 1u);
  EXPECT_TRUE(ring_.full());
  EXPECT_EQ(reset().size(), 1u);
  EXPECT_FALSE(ring_.full());
}

TEST_F(DirtyRingTest, NothingIsLostBeyondTheEnd) {
  constexpr u32 pushed = 3 * size + 17;
  for (u32 i = 0; i < pushed; ++i) ring_.push(9, i);
  for (u32 round = 0; round < 10; ++round) {
    ring_.full();
    harvest();
    reset();
  }
  EXPECT_FALSE(ring_.full());
  ASSERT_EQ(seen_.size(), pushed);
  for (u32 i = 0; i < pushed; ++i) EXPECT_EQ(seen_[i], (std::pair<u32, u64>{9, i}));
}

TEST_F(DirtyRingTest, WhateverTheVmmWrites) {
  std::mt19937 random(1);
  const auto any = [&random] { return static_cast<u32>(random()); };
  u64 pushed = 0;
  u64 taken = 0;
  for (u32 i = 0; i < 50000; ++i) {
    if (any() % 2 == 0) {
      ring_.push(any(), any());
      ++pushed;
    }
    kvm_dirty_gfn& e = memory_[any() % size];
    e.flags = any();
    e.slot = any();
    e.offset = any();
    if (any() % 16 == 0) taken += reset().size();
    ring_.full();
  }
  EXPECT_LE(taken, pushed) << "no more than there was";
  for (kvm_dirty_gfn& e : memory_) e.flags = KVM_DIRTY_GFN_F_RESET;
  EXPECT_LE(reset().size(), size);
}

TEST_F(DirtyRingTest, VcpuHarvesterAndResetMeet) {
  constexpr u32 total = 100000;
  std::thread vcpu([this] {
    for (u32 i = 0; i < total; ++i) {
      while (ring_.full()) std::this_thread::yield();
      ring_.push(2, i);
    }
  });
  Pages taken;
  while (taken.size() < total) {
    harvest();
    const Pages now = reset();
    taken.insert(taken.end(), now.begin(), now.end());
    if (now.empty()) std::this_thread::yield();
  }
  vcpu.join();
  EXPECT_EQ(taken, seen_);
  for (u32 i = 0; i < total; ++i) ASSERT_EQ(seen_[i].second, i);
}

} // namespace
} // namespace ring3::kvm
