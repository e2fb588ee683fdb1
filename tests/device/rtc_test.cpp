// SPDX-License-Identifier: Apache-2.0
#include "device/rtc.h"

#include "fake_clock.h"

#include <gtest/gtest.h>

namespace ring3::device {
namespace {

constexpr u64 second = 1'000'000'000;

struct RtcTest : testing::Test {
  RtcTest()
      : rtc(
            clock, [this](bool l) { line = l; }, [] {}, CmosContents{u64{3} << 30, u64{2} << 30, 4}) {}
  u8 get(u8 index) {
    rtc.write(0, 1, index);
    return static_cast<u8>(rtc.read(1, 1));
  }
  void put(u8 index, u8 value) {
    rtc.write(0, 1, index);
    rtc.write(1, 1, value);
  }
  FakeClock clock;
  bool line = false;
  Rtc rtc;
};

TEST_F(RtcTest, TimeOfDayInBcd) {
  EXPECT_EQ(get(0), 0x20);
  EXPECT_EQ(get(2), 0x13);
  EXPECT_EQ(get(4), 0x22);
  EXPECT_EQ(get(6), 3); // Tuesday
  EXPECT_EQ(get(7), 0x14);
  EXPECT_EQ(get(8), 0x11);
  EXPECT_EQ(get(9), 0x23);
  EXPECT_EQ(get(0x32), 0x20);
  EXPECT_EQ(get(13), 0x80);
}

TEST_F(RtcTest, BinaryAndTwelveHours) {
  put(11, 0x04);
  EXPECT_EQ(get(4), 0x80 | 10);
  EXPECT_EQ(get(9), 23);
  put(11, 0x06);
  EXPECT_EQ(get(4), 22);
}

TEST_F(RtcTest, SettingTheTime) {
  put(11, 0x82);
  put(0, 0x59);
  put(2, 0x59);
  put(4, 0x23);
  put(7, 0x31);
  put(8, 0x12);
  put(9, 0x99);
  put(0x32, 0x19);
  clock.advance(5 * second); // stopped while being set
  put(11, 0x02);
  EXPECT_EQ(get(0), 0x59);
  clock.advance(second);
  EXPECT_EQ(get(0), 0x00);
  EXPECT_EQ(get(8), 0x01);
  EXPECT_EQ(get(9), 0x00);
  EXPECT_EQ(get(0x32), 0x20);
}

TEST_F(RtcTest, UpdateInProgress) {
  EXPECT_EQ(get(10) & 0x80, 0);
  clock.advance(second - 100'000);
  EXPECT_EQ(get(10) & 0x80, 0x80);
}

TEST_F(RtcTest, UpdateInterrupt) {
  EXPECT_FALSE(rtc.next_deadline_ns());
  put(11, 0x12);
  const auto deadline = rtc.next_deadline_ns();
  ASSERT_TRUE(deadline);
  clock.advance(*deadline - clock.now);
  rtc.service();
  EXPECT_TRUE(line);
  EXPECT_FALSE(rtc.next_deadline_ns());
  EXPECT_EQ(get(12) & 0x90, 0x90);
  EXPECT_FALSE(line);
  EXPECT_TRUE(rtc.next_deadline_ns());
}

TEST_F(RtcTest, AlarmWithWildcards) {
  get(12);
  put(1, 0x25);
  put(3, 0xff);
  put(5, 0xff);
  put(11, 0x22);
  for (int i = 0; i < 4; ++i) {
    clock.advance(second);
    rtc.service();
    EXPECT_FALSE(line) << i;
  }
  clock.advance(second);
  rtc.service();
  EXPECT_TRUE(line);
  EXPECT_EQ(get(12) & 0xa0, 0xa0);
}

TEST_F(RtcTest, PeriodicInterrupt) {
  put(11, 0x42); // 1024 Hz
  const auto deadline = rtc.next_deadline_ns();
  ASSERT_TRUE(deadline);
  EXPECT_LE(*deadline - clock.now, 976'563u);
  clock.advance(*deadline - clock.now);
  rtc.service();
  EXPECT_TRUE(line);
  EXPECT_EQ(get(12) & 0xc0, 0xc0);
  EXPECT_FALSE(line);
}

TEST_F(RtcTest, MemorySizeBytes) {
  EXPECT_EQ(get(0x15) | get(0x16) << 8, 640);
  EXPECT_EQ(get(0x17) | get(0x18) << 8, 0xffff);
  EXPECT_EQ(get(0x34) | get(0x35) << 8, (3 * 1024 - 16) * 16);
  EXPECT_EQ(get(0x5b) | get(0x5c) << 8 | get(0x5d) << 16, 2 * 1024 * 16);
  EXPECT_EQ(get(0x5f), 3);
}

TEST_F(RtcTest, AnyRegisterSequenceIsSurvived) {
  u32 seed = 7;
  for (int i = 0; i < 20000; ++i) {
    seed = seed * 1664525 + 1013904223;
    if (seed & 0x100)
      put(static_cast<u8>(seed >> 24), static_cast<u8>(seed >> 16));
    else
      get(static_cast<u8>(seed >> 24));
    clock.advance(seed >> 4);
    rtc.next_deadline_ns();
    rtc.service();
  }
}

} // namespace
} // namespace ring3::device
