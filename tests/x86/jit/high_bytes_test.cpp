// SPDX-License-Identifier: Apache-2.0
// Stores of AH, CH, DH and BH, which the translator takes apart.
#include "jit_guest.h"

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

constexpr u64 data = JitGuest::data;

TEST(HighBytes, AreStoredWhateverTheAddress) {
  for (const bool checked : {false, true}) {
    SCOPED_TRACE(checked ? "Lockstep" : "alone");
    JitGuest guest(checked);
    guest.load({
        0xf9,                         // stc
        0x88, 0x67, 0x06,             // mov [rdi+6], ah
        0x88, 0x6c, 0x0f, 0x01,       // mov [rdi+rcx+1], ch
        0x42, 0x88, 0x44, 0x27, 0x04, // mov [rdi+r12+4], al, with REX
        0x88, 0x77, 0x02,             // mov [rdi+2], dh
        0x88, 0x3f,                   // mov [rdi], bh
        0x0f, 0x92, 0x47, 0x03,       // setc [rdi+3]
    });
    for (const u64 at : {data + 0x10, data + page_size - 2}) { // the second across two pages
      EXPECT_TRUE(guest.often([&] {
        std::memset(guest.ram() + at, 0xee, 8);
        guest.reg(rdi) = at;
        guest.reg(rax) = 0x1111'1111'1111'a1a0;
        guest.reg(rcx) = 0;
        guest.reg(rdx) = 0x2222'2222'2222'd1d0;
        guest.reg(rbx) = 0x3333'3333'3333'b1b0;
        guest.reg(r12) = 1;
      }));
      const u8 wanted[] = {0xb1, 0x00, 0xd1, 0x01, 0xee, 0xa0, 0xa1, 0xee};
      EXPECT_EQ(std::memcmp(guest.ram() + at, wanted, sizeof wanted), 0) << std::hex << at;
      EXPECT_EQ(guest.left_to_handlers(), 0u);
    }
  }
}

TEST(HighBytes, FaultWithoutAStore) {
  JitGuest guest(false);
  guest.load({0x88, 0x27});          // mov [rdi], ah
  guest.map(data + page_size, 0x62); // not present
  EXPECT_FALSE(guest.often([&] {
    guest.ram()[data + page_size] = 0xee;
    guest.reg(rdi) = data + page_size;
    guest.reg(rax) = 0xa1a0;
  }));
  EXPECT_EQ(guest.ram()[data + page_size], 0xee);
  EXPECT_EQ(guest.state().cr2, data + page_size);
  EXPECT_EQ(guest.reg(rax), 0xa1a0u);
}

} // namespace
} // namespace ring3::x86::jit
