// SPDX-License-Identifier: Apache-2.0
#include "kvm/coalesced_ring.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <thread>

namespace ring3::kvm {
namespace {

class CoalescedRingTest : public testing::Test {
 protected:
  CoalescedRingTest() { std::memset(page_.data(), 0, page_.size()); }
  kvm_coalesced_mmio_ring* page() { return reinterpret_cast<kvm_coalesced_mmio_ring*>(page_.data()); }
  // As C lays it out.
  kvm_coalesced_mmio entry(u32 i) const {
    kvm_coalesced_mmio e;
    std::memcpy(&e, page_.data() + 8 + i * 24, sizeof e);
    return e;
  }
  bool write(IoSpace space, u64 address, u64 value, std::size_t size) {
    std::array<std::byte, 8> bytes;
    std::memcpy(bytes.data(), &value, sizeof value);
    return ring_.write(space, address, std::span(bytes).first(size));
  }
  static kvm_coalesced_mmio_zone zone(u64 address, u32 size, u32 pio = 0) {
    kvm_coalesced_mmio_zone z{};
    z.addr = address;
    z.size = size;
    z.pio = pio;
    return z;
  }

  // The page and what lies around it, to see that nothing else is written.
  alignas(4096) std::array<std::byte, 3 * 4096> page_;
  CoalescedRing ring_;
};

TEST_F(CoalescedRingTest, HoldsWhatKvmsHolds) {
  EXPECT_EQ(CoalescedRing::entries, (4096 - 8) / 24u);
  ring_.attach(page());
  ASSERT_EQ(ring_.add(zone(0x1000, 8)), 0);
  for (u32 i = 0; i + 1 < CoalescedRing::entries; ++i) ASSERT_TRUE(write(IoSpace::mmio, 0x1004, i, 4)) << i;
  EXPECT_FALSE(write(IoSpace::mmio, 0x1004, 0, 4)) << "one entry stays free";
  EXPECT_EQ(page()->first, 0u);
  EXPECT_EQ(page()->last, CoalescedRing::entries - 1);
  for (u32 i = 0; i + 1 < CoalescedRing::entries; ++i) {
    const kvm_coalesced_mmio e = entry(i);
    EXPECT_EQ(e.phys_addr, 0x1004u);
    EXPECT_EQ(e.len, 4u);
    EXPECT_EQ(e.pio, 0u);
    u32 value;
    std::memcpy(&value, e.data, sizeof value);
    EXPECT_EQ(value, i);
  }
  page()->first = 1;
  EXPECT_TRUE(write(IoSpace::mmio, 0x1000, 1, 8));
  EXPECT_EQ(page()->last, 0u);
}

TEST_F(CoalescedRingTest, OnlyWritesWhollyInAZone) {
  ring_.attach(page());
  ASSERT_EQ(ring_.add(zone(0x1000, 6)), 0);
  ASSERT_EQ(ring_.add(zone(0x80, 2, 1)), 0);
  EXPECT_TRUE(write(IoSpace::mmio, 0x1002, 0, 4));
  EXPECT_FALSE(write(IoSpace::mmio, 0x1003, 0, 4));
  EXPECT_FALSE(write(IoSpace::mmio, 0xfff, 0, 2));
  EXPECT_FALSE(write(IoSpace::mmio, ~u64{0}, 0, 8));
  EXPECT_FALSE(write(IoSpace::pio, 0x1000, 0, 1));
  EXPECT_FALSE(write(IoSpace::mmio, 0x80, 0, 1));
  EXPECT_TRUE(write(IoSpace::pio, 0x80, 0, 2));
  EXPECT_EQ(entry(1).pio, 1u);
  EXPECT_FALSE(write(IoSpace::pio, 0x80, 0, 4));
}

TEST_F(CoalescedRingTest, ZonesComeAndGo) {
  ring_.attach(page());
  EXPECT_EQ(ring_.add(zone(0, 1, 2)), -EINVAL);
  EXPECT_EQ(ring_.remove(zone(0, 1, 2)), -EINVAL);
  EXPECT_EQ(ring_.remove(zone(0x1000, 8)), 0) << "no such zone: no error";
  ASSERT_EQ(ring_.add(zone(0x1000, 0x100)), 0);
  ASSERT_EQ(ring_.add(zone(0x1000, 8)), 0);
  ASSERT_EQ(ring_.add(zone(0x2000, 8)), 0);
  EXPECT_EQ(ring_.remove(zone(0x1000, 0x101)), 0);
  EXPECT_TRUE(write(IoSpace::mmio, 0x1000, 0, 1)) << "no zone includes that";
  EXPECT_EQ(ring_.remove(zone(0x1000, 8)), 0);
  EXPECT_FALSE(write(IoSpace::mmio, 0x1000, 0, 1)) << "both that include it went";
  EXPECT_TRUE(write(IoSpace::mmio, 0x2000, 0, 1));
}

TEST_F(CoalescedRingTest, AsManyZonesAsKvm) {
  for (u32 i = 0; i < CoalescedRing::max_zones; ++i) ASSERT_EQ(ring_.add(zone(u64{i} << 12, 1)), 0);
  EXPECT_EQ(ring_.add(zone(0, 1)), -ENOSPC);
  EXPECT_EQ(ring_.add(zone(0, 1, 1)), 0) << "ports are another bus";
  EXPECT_EQ(ring_.remove(zone(0, 1)), 0);
  EXPECT_EQ(ring_.add(zone(0, 1)), 0);
}

TEST_F(CoalescedRingTest, WithoutAPageEverythingGoesToUserSpace) {
  ASSERT_EQ(ring_.add(zone(0x1000, 8)), 0);
  EXPECT_FALSE(write(IoSpace::mmio, 0x1000, 0, 4));
}

TEST_F(CoalescedRingTest, AnyIndicesAreSafe) {
  auto* const middle = reinterpret_cast<kvm_coalesced_mmio_ring*>(page_.data() + 4096);
  ring_.attach(middle);
  ASSERT_EQ(ring_.add(zone(0x1000, 8)), 0);
  std::mt19937 random(1);
  const auto index = [&random] { return static_cast<u32>(random() % 4 == 0 ? random() : random() % 200); };
  for (int i = 0; i < 100000; ++i) {
    middle->first = index();
    middle->last = index();
    const bool valid = middle->last < CoalescedRing::entries;
    const bool done = write(IoSpace::mmio, 0x1000, ~u64{0}, 8);
    EXPECT_TRUE(valid || !done);
  }
  const auto untouched = [](std::byte b) { return b == std::byte{0}; };
  EXPECT_TRUE(std::all_of(page_.begin(), page_.begin() + 4096, untouched));
  EXPECT_TRUE(std::all_of(page_.begin() + 8192, page_.end(), untouched));
}

TEST_F(CoalescedRingTest, WritersAndTheReaderMeet) {
  ring_.attach(page());
  ASSERT_EQ(ring_.add(zone(0x1000, 0x1000)), 0);
  constexpr u32 writers = 2;
  constexpr u32 each = 20000;
  std::array<std::thread, writers> threads;
  for (u32 w = 0; w < writers; ++w)
    threads[w] = std::thread([this, w] {
      for (u32 i = 0; i < each; ++i)
        while (!write(IoSpace::mmio, 0x1000 + 8 * w, i, 4)) std::this_thread::yield();
    });
  std::array<u32, writers> next{};
  const std::atomic_ref<u32> first(page()->first);
  const std::atomic_ref<u32> last(page()->last);
  for (u32 taken = 0; taken < writers * each;) {
    const u32 at = first.load(std::memory_order_relaxed);
    if (at == last.load(std::memory_order_acquire)) {
      std::this_thread::yield();
      continue;
    }
    const kvm_coalesced_mmio e = entry(at);
    u32 value;
    std::memcpy(&value, e.data, sizeof value);
    const u32 w = (static_cast<u32>(e.phys_addr) - 0x1000) / 8;
    ASSERT_EQ(value, next.at(w)) << "in order";
    ++next.at(w);
    first.store((at + 1) % CoalescedRing::entries, std::memory_order_release);
    ++taken;
  }
  for (std::thread& t : threads) t.join();
}

} // namespace
} // namespace ring3::kvm
