// SPDX-License-Identifier: Apache-2.0
#include "device/bus.h"

#include <array>
#include <gtest/gtest.h>
#include <vector>

namespace ring3::device {
namespace {

struct Recorder final : Device {
  u64 read(u64 offset, unsigned size) override {
    log.push_back({offset, size, 0});
    return 0x1122334455667788 >> (8 * offset);
  }
  void write(u64 offset, unsigned size, u64 value) override { log.push_back({offset, size, value}); }
  struct Entry {
    u64 offset;
    unsigned size;
    u64 value;
    bool operator==(const Entry&) const = default;
  };
  std::vector<Entry> log;
};

TEST(Bus, UnclaimedReadsAreAllOnes) {
  Bus bus;
  std::array<u8, 4> data{};
  bus.read(0x1234, data);
  EXPECT_EQ(data, (std::array<u8, 4>{0xff, 0xff, 0xff, 0xff}));
  bus.write(0x1234, data);
}

TEST(Bus, RefusesOverlapEmptyAndWrap) {
  Bus bus;
  Recorder d;
  EXPECT_TRUE(bus.add(0x10, 0x10, d));
  EXPECT_FALSE(bus.add(0x1f, 1, d));
  EXPECT_FALSE(bus.add(0x08, 9, d));
  EXPECT_FALSE(bus.add(0x00, 0x100, d));
  EXPECT_FALSE(bus.add(0x40, 0, d));
  EXPECT_FALSE(bus.add(~u64{0}, 2, d));
  EXPECT_TRUE(bus.add(0x20, 1, d));
  EXPECT_TRUE(bus.add(0x0f, 1, d));
  EXPECT_TRUE(bus.add(~u64{0}, 1, d));
}

TEST(Bus, SplitsWideAccessesForNarrowDevices) {
  Bus bus;
  Recorder d;
  ASSERT_TRUE(bus.add(0x10, 4, d, 1));
  bus.write(0x10, std::array<u8, 2>{0xaa, 0xbb});
  EXPECT_EQ(d.log, (std::vector<Recorder::Entry>{{0, 1, 0xaa}, {1, 1, 0xbb}}));
}

TEST(Bus, AccessAcrossTheEndOfAWindow) {
  Bus bus;
  Recorder d;
  ASSERT_TRUE(bus.add(0x10, 4, d, 8));
  std::array<u8, 8> data{};
  bus.read(0x0e, data);
  EXPECT_EQ(data, (std::array<u8, 8>{0xff, 0xff, 0x88, 0x77, 0x66, 0x55, 0xff, 0xff}));
}

} // namespace
} // namespace ring3::device
