// SPDX-License-Identifier: Apache-2.0
// Traces: jumps that are followed and left, instructions that lie in two pages, and ways between translations
// when pages are mapped elsewhere.
#include "jit_guest.h"

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

class TraceTest : public ::testing::TestWithParam<bool> {
 protected:
  JitGuest guest{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Engines, TraceTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

TEST_P(TraceTest, ALoopEndsAfterAnyNumberOfRounds) {
  // 1: add rax, rcx; dec rcx; jnz 1b
  guest.load({0x48, 0x01, 0xc8, 0x48, 0xff, 0xc9, 0x75, 0xf8});
  for (u64 rounds = 1; rounds < 12; ++rounds) {
    EXPECT_TRUE(guest.often(
        [&] {
          guest.reg(rax) = 0;
          guest.reg(rcx) = rounds;
        },
        20));
    EXPECT_EQ(guest.reg(rax), rounds * (rounds + 1) / 2);
  }
}

TEST_P(TraceTest, HotCodeIsTranslatedAgainAndAllWaysLeadThere) {
  // 1: call 2f; add rax, rbx; dec rcx; jnz 1b; hlt; 2: mov rbx, rcx; and ebx, 1; jz 3f; add rax, 4; 3: ret
  guest.load({0xe8, 0x09, 0,    0,    0,    0x48, 0x01, 0xd8, 0x48, 0xff, 0xc9, 0x75, 0xf3, 0xf4,
              0x48, 0x89, 0xcb, 0x83, 0xe3, 0x01, 0x74, 0x04, 0x48, 0x83, 0xc0, 0x04, 0xc3});
  const auto run = [&](u64 rounds, unsigned times) {
    EXPECT_TRUE(guest.often(
        [&] {
          guest.reg(rax) = 0;
          guest.reg(rcx) = rounds;
        },
        times));
    EXPECT_EQ(guest.reg(rax), 5 * ((rounds + 1) / 2));
    EXPECT_EQ(guest.reg(rsp), JitGuest::stack);
  };
  run(3, 40);
  EXPECT_EQ(guest.jit().statistics().improved.value() != 0, guest.compared()); // Lockstep counts all
  const u64 before = guest.jit().statistics().translations.value();
  run(guest.compared() ? 1000 : 100'000, 4);
  EXPECT_GT(guest.jit().statistics().improved.value(), 0u);
  EXPECT_TRUE(guest.compared() || guest.jit().statistics().translations.value() > before);
  run(7, 40);
}

TEST_P(TraceTest, FlagsAreThereWhereTheUnexpectedWayWantsThem) {
  // cmp rax, rbx; jb 1f; mov rdx, [data]; hlt; 1: setb cl; seto ch
  guest.load({0x48, 0x39, 0xd8, 0x72, 0x09, 0x48, 0x8b, 0x14, 0x25, 0,
              0,    2,    0,    0xf4, 0x0f, 0x92, 0xc1, 0x0f, 0x90, 0xc5});
  EXPECT_TRUE(guest.often([&] {
    guest.reg(rax) = 2;
    guest.reg(rbx) = 1;
  }));
  EXPECT_TRUE(guest.often(
      [&] {
        guest.reg(rax) = 1;
        guest.reg(rbx) = 2;
        guest.reg(rcx) = 0xffff;
      },
      4));
  EXPECT_EQ(guest.reg(rcx), 0x0001u);
}

TEST_P(TraceTest, ACallReturnsElsewhere) {
  // call 1f; mov al, 1; hlt; nop...; 1: add [rsp], rbx; ret
  guest.load({0xe8, 0x04, 0, 0, 0, 0xb0, 0x01, 0xf4, 0x90, 0x48, 0x01, 0x1c, 0x24, 0xc3, 0xb0, 0x02});
  EXPECT_TRUE(guest.often([&] { guest.reg(rbx) = guest.reg(rax) = 0; }));
  EXPECT_EQ(guest.reg(rax), 1u);
  EXPECT_EQ(guest.reg(rsp), JitGuest::stack);
  EXPECT_TRUE(guest.often(
      [&] {
        guest.reg(rbx) = 9;
        guest.reg(rax) = 0;
      },
      4));
  EXPECT_EQ(guest.reg(rax), 2u);
  EXPECT_EQ(guest.reg(rsp), JitGuest::stack);
}

// Jumps to code that begins three bytes in front of a page: MOV EAX with a number of four bytes, of which two
// are in the page behind; then HLT.
class SplitTest : public TraceTest {
 protected:
  static constexpr u64 front = JitGuest::data, behind = JitGuest::data + page_size;
  static constexpr u64 other = behind + 2 * page_size; // physical memory for `behind`

  SplitTest() {
    constexpr u64 at = behind - 3;
    std::vector<u8> jump{0xb8}; // mov eax, at; jmp rax
    for (unsigned i = 0; i < 4; ++i) jump.push_back(static_cast<u8>(at >> 8 * i));
    jump.insert(jump.end(), {0xff, 0xe0});
    guest.load(jump);
    constexpr u8 split[] = {0xb8, 0x11, 0x22, 0x33, 0x44, 0xf4};
    std::memcpy(guest.ram() + at, split, sizeof split);
    constexpr u8 rest[] = {0x55, 0x66, 0xf4};
    std::memcpy(guest.ram() + other, rest, sizeof rest);
    guest.cpu().synchronize_code();
  }
  u64 result() {
    EXPECT_TRUE(guest.often([] {}, 30));
    return guest.reg(rax);
  }
};

INSTANTIATE_TEST_SUITE_P(Engines, SplitTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

TEST_P(SplitTest, IsExecuted) { EXPECT_EQ(result(), 0x44332211u); }

TEST_P(SplitTest, ThePageBehindIsMappedElsewhere) {
  EXPECT_EQ(result(), 0x44332211u);
  store_raw<u64>(guest.ram() + JitGuest::page_table + 8 * (behind >> 12), other | 0x63);
  guest.cpu().mmu.flush_page(GuestVirt{behind});
  EXPECT_EQ(result(), 0x66552211u);
  guest.map(behind, 0x63);
  guest.cpu().mmu.flush_page(GuestVirt{behind});
  EXPECT_EQ(result(), 0x44332211u);
}

TEST_P(SplitTest, ThePageBehindIsNotThere) {
  EXPECT_EQ(result(), 0x44332211u);
  guest.map(behind, 0);
  guest.cpu().mmu.flush_page(GuestVirt{behind});
  EXPECT_FALSE(guest.often([] {}, 4));
  EXPECT_EQ(guest.state().cr2, behind);
}

TEST_P(SplitTest, ThePageBehindIsWritten) {
  EXPECT_EQ(result(), 0x44332211u);
  guest.ram()[behind] = 0x77; // as a VMM would
  guest.cpu().synchronize_code();
  EXPECT_EQ(result(), 0x44772211u);
}

// The tables of ways between translations are kept over flushes of the TLB, as long as they still lead there.
class MappedCodeTest : public TraceTest {
 protected:
  static constexpr u64 page = JitGuest::data, other = page + page_size;

  MappedCodeTest() {
    guest.load({0xb8, 0, 0, 2, 0, 0xff, 0xe0}); // mov eax, page; jmp rax
    constexpr u8 one[] = {0xb8, 1, 0, 0, 0, 0xf4}, two[] = {0xb8, 2, 0, 0, 0, 0xf4};
    std::memcpy(guest.ram() + page, one, sizeof one);
    std::memcpy(guest.ram() + other, two, sizeof two);
    guest.cpu().synchronize_code();
  }
  u64 result() {
    EXPECT_TRUE(guest.often([] {}, 30));
    return guest.reg(rax);
  }
  void move(u64 to, u64 rights = 0x63) {
    store_raw<u64>(guest.ram() + JitGuest::page_table + 8 * (page >> 12), to | rights);
  }
};

INSTANTIATE_TEST_SUITE_P(Engines, MappedCodeTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

TEST_P(MappedCodeTest, OnePageIsFlushed) {
  EXPECT_EQ(result(), 1u);
  move(other);
  guest.cpu().mmu.flush_page(GuestVirt{page});
  EXPECT_EQ(result(), 2u);
  move(page);
  guest.cpu().mmu.flush_page(GuestVirt{JitGuest::user}); // not that one: either is right
  guest.cpu().mmu.flush_page(GuestVirt{page});
  EXPECT_EQ(result(), 1u);
}

TEST_P(MappedCodeTest, ManyPagesAreFlushed) {
  EXPECT_EQ(result(), 1u);
  move(other);
  for (u64 i = 0; i < 100; ++i) guest.cpu().mmu.flush_page(GuestVirt{page + i * page_size});
  EXPECT_EQ(result(), 2u);
}

TEST_P(MappedCodeTest, EverythingIsFlushed) {
  EXPECT_EQ(result(), 1u);
  move(other);
  guest.cpu().mmu.flush_all();
  EXPECT_EQ(result(), 2u);
}

TEST_P(MappedCodeTest, AnAddressSpaceIsLoaded) {
  EXPECT_EQ(result(), 1u);
  move(other);
  guest.cpu().mmu.flush_non_global();
  EXPECT_EQ(result(), 2u);
}

TEST_P(MappedCodeTest, AnotherAddressSpaceHasOtherCode) {
  EXPECT_EQ(result(), 1u);
  move(other);
  guest.cpu().mmu.select_context(5);
  EXPECT_EQ(result(), 2u);
  move(page);
  guest.cpu().mmu.select_context(0);
  EXPECT_EQ(result(), 1u);
}

TEST_P(MappedCodeTest, NothingMayBeExecutedThere) {
  guest.state().efer |= efer::nxe;
  guest.cpu().mmu.flush_all();
  EXPECT_EQ(result(), 1u);
  move(page, 0x63 | u64{1} << 63);
  guest.cpu().mmu.flush_page(GuestVirt{page});
  EXPECT_FALSE(guest.often([] {}, 4));
  EXPECT_EQ(guest.state().cr2, page);
}

TEST_P(MappedCodeTest, WhatWasFlushedAndIsTheSameIsNotTranslatedAgain) {
  EXPECT_EQ(result(), 1u);
  const u64 before = guest.jit().statistics().refreshes.value();
  for (unsigned i = 0; i < 10; ++i) {
    guest.cpu().mmu.flush_all();
    EXPECT_EQ(result(), 1u);
  }
  EXPECT_EQ(guest.jit().statistics().refreshes.value(), before);
}

// Pages that share a place in the TLB.
TEST_P(TraceTest, TwoPagesOfTheSamePlace) {
  constexpr u64 far = u64{TlbTable::entries} * page_size; // the second of them is there again
  store_raw<u64>(guest.ram() + 0x3000 + 8 * (far >> 21), JitGuest::page_table | 7);
  // mov eax, [rsi]; mov ebx, [rsi+rdi]; mov [rsi], ebx; mov [rsi+rdi+4], eax
  guest.load({0x8b, 0x06, 0x8b, 0x1c, 0x3e, 0x89, 0x1e, 0x89, 0x44, 0x3e, 0x04});
  u8* const page = guest.ram() + JitGuest::data;
  EXPECT_TRUE(guest.often([&] {
    store_raw<u32>(page, 7);
    store_raw<u32>(page + 4, 0);
    guest.reg(rsi) = JitGuest::data;
    guest.reg(rdi) = far;
  }));
  EXPECT_EQ(load_raw<u32>(page + 4), 7u);
  EXPECT_EQ(guest.missed(), 0u) << "both are found";
  store_raw<u64>(guest.ram() + 0x3000 + 8 * (far >> 21), 0);
  guest.cpu().mmu.flush_page(GuestVirt{JitGuest::data + far});
  EXPECT_FALSE(guest.often([&] { guest.reg(rsi) = JitGuest::data; }, 4));
  EXPECT_EQ(guest.state().cr2, JitGuest::data + far);
}

// The shadow of STI is the next instruction of the trace; and one that waits comes behind that.
TEST_P(TraceTest, StiAndWhatIsBehind) {
  guest.load({0xfb, 0x48, 0xff, 0xc0, 0xfa}); // sti; inc rax; cli
  EXPECT_TRUE(guest.often([&] { guest.reg(rax) = 0; }));
  EXPECT_EQ(guest.reg(rax), 1u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
  EXPECT_FALSE(guest.state().sti_shadow);

  guest.cpu().window_wanted = true;
  guest.state().regs[rax] = 0;
  EXPECT_EQ(guest.once(), CpuExit::request);
  EXPECT_EQ(guest.reg(rax), 1u) << "the instruction behind STI comes first";
  EXPECT_NE(guest.state().system_flags & rflags::if_, 0u);
}

} // namespace
} // namespace ring3::x86::jit
