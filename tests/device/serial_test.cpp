// SPDX-License-Identifier: Apache-2.0
#include "device/serial.h"

#include <gtest/gtest.h>
#include <string>

namespace ring3::device {
namespace {

constexpr u64 data = 0, ier = 1, iir = 2, fcr = 2, lcr = 3, mcr = 4, lsr = 5, msr = 6, scr = 7;
constexpr u8 rts_dtr_out2 = 0x0b;

struct SerialTest : testing::Test {
  SerialTest()
      : serial(
            [this](bool level) {
              line = level;
              edges += level;
            },
            [this](u8 b) { sent += static_cast<char>(b); }, [this] { ++rooms; }) {}
  void out(u64 port, u8 value) { serial.write(port, 1, value); }
  u8 in(u64 port) { return static_cast<u8>(serial.read(port, 1)); }
  std::size_t input(std::string_view text) {
    return serial.input({reinterpret_cast<const u8*>(text.data()), text.size()});
  }
  bool line = false;
  int edges = 0;
  int rooms = 0;
  std::string sent;
  Serial serial;
};

TEST_F(SerialTest, TransmitsAndIsAlwaysEmpty) {
  EXPECT_EQ(in(lsr), 0x60);
  out(data, 'h');
  out(data, 'i');
  EXPECT_EQ(sent, "hi");
  EXPECT_EQ(in(lsr), 0x60);
  EXPECT_FALSE(line);
}

TEST_F(SerialTest, DivisorLatchAndScratch) {
  out(lcr, 0x83);
  EXPECT_EQ(in(data), 12);
  out(data, 1);
  out(ier, 2);
  EXPECT_EQ(in(data), 1);
  EXPECT_EQ(in(ier), 2);
  out(lcr, 0x03);
  EXPECT_EQ(in(ier), 0);
  EXPECT_TRUE(sent.empty());
  out(scr, 0x5a);
  EXPECT_EQ(in(scr), 0x5a);
}

TEST_F(SerialTest, FifoBitsInIirFollowFcr) {
  EXPECT_EQ(in(iir), 0x01);
  out(fcr, 0x01);
  EXPECT_EQ(in(iir), 0xc1);
}

TEST_F(SerialTest, ThreInterruptMakesAnEdgeForEachByte) {
  out(mcr, rts_dtr_out2);
  out(ier, 0x02);
  EXPECT_TRUE(line);
  EXPECT_EQ(in(iir), 0x02);
  EXPECT_FALSE(line); // reading the source clears it
  EXPECT_EQ(in(iir), 0x01);
  out(data, 'a');
  EXPECT_TRUE(line);
  const int before = edges;
  out(data, 'b');
  EXPECT_EQ(edges, before + 1);
  out(ier, 0x00);
  EXPECT_FALSE(line);
}

TEST_F(SerialTest, Out2GatesTheInterrupt) {
  out(ier, 0x02);
  EXPECT_FALSE(line);
  out(mcr, rts_dtr_out2);
  EXPECT_TRUE(line);
}

TEST_F(SerialTest, InputWaitsForRts) {
  out(fcr, 0x01);
  EXPECT_EQ(input("xy"), 2u);
  EXPECT_EQ(in(lsr)&1, 0);
  out(ier, 0x01);
  out(mcr, rts_dtr_out2);
  EXPECT_TRUE(line);
  EXPECT_EQ(rooms, 1);
  EXPECT_EQ(in(iir), 0xc4);
  EXPECT_EQ(in(data), 'x');
  EXPECT_EQ(in(data), 'y');
  EXPECT_EQ(in(lsr)&1, 0);
  EXPECT_FALSE(line);
}

TEST_F(SerialTest, TimeoutInterruptBelowTheTriggerLevel) {
  out(fcr, 0xc1); // 14 bytes
  out(ier, 0x01);
  out(mcr, rts_dtr_out2);
  input("a");
  EXPECT_EQ(in(iir), 0xcc);
  input("bcdefghijklmn");
  EXPECT_EQ(in(iir), 0xc4);
}

TEST_F(SerialTest, InputIsBounded) {
  const std::string much(Serial::input_capacity + 100, 'z');
  EXPECT_EQ(input(much), Serial::input_capacity);
  EXPECT_EQ(serial.input_room(), 0u);
  out(fcr, 0x01);
  out(mcr, rts_dtr_out2);
  std::size_t got = 0;
  while (in(lsr)&1) {
    EXPECT_EQ(in(data), 'z');
    ++got;
  }
  EXPECT_EQ(got, Serial::input_capacity);
}

TEST_F(SerialTest, LoopbackReflectsModemLinesAndData) {
  out(mcr, 0x1a); // loop, OUT2, RTS
  EXPECT_EQ(in(msr)&0xf0, 0x90);
  out(data, 'q');
  EXPECT_TRUE(sent.empty());
  EXPECT_EQ(in(lsr)&1, 1);
  EXPECT_EQ(in(data), 'q');
}

TEST_F(SerialTest, OverrunIsReportedOnce) {
  out(mcr, 0x10);
  out(data, '1');
  out(data, '2');
  EXPECT_EQ(in(lsr)&0x02, 0x02);
  EXPECT_EQ(in(lsr)&0x02, 0);
  EXPECT_EQ(in(data), '2');
}

TEST_F(SerialTest, AnyRegisterSequenceIsSurvived) {
  u32 seed = 1;
  for (int i = 0; i < 200000; ++i) {
    seed = seed * 1664525 + 1013904223;
    const u64 port = seed >> 29;
    if (seed & 0x1000)
      out(port, static_cast<u8>(seed >> 16));
    else
      in(port);
    if ((seed & 0xff00) == 0) input("some input");
  }
}

} // namespace
} // namespace ring3::device
