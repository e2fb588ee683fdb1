// SPDX-License-Identifier: Apache-2.0
// String instructions of translated code: across pages, overlapping, downward, onto code, into faults.
#include "jit_guest.h"

#include <csetjmp>
#include <csignal>
#include <ucontext.h>

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

constexpr u64 data = JitGuest::data;

// Without Lockstep, and with it.
class Strings : public ::testing::TestWithParam<bool> {
 protected:
  void fill() {
    for (u64 i = 0; i < 0x40000; ++i) guest.ram()[data + i] = static_cast<u8>(i * 7 + (i >> 8));
  }
  // What a processor does, byte by byte.
  void move(u64 to, u64 from, u64 count) {
    for (u64 i = 0; i < count; ++i) guest.ram()[to + i] = guest.ram()[from + i];
  }
  std::vector<u8> memory() { return {guest.ram() + data, guest.ram() + data + 0x40000}; }
  void expect_moved(const std::vector<u8>& program, unsigned size, u64 to, u64 from, u64 count) {
    SCOPED_TRACE(::testing::Message() << size << " bytes, " << count << " times");
    fill();
    move(to, from, count * size);
    const std::vector<u8> wanted = memory();
    guest.load(program);
    EXPECT_TRUE(guest.often([&] {
      fill();
      guest.reg(rdi) = to;
      guest.reg(rsi) = from;
      guest.reg(rcx) = count;
    }));
    EXPECT_EQ(memory(), wanted);
    EXPECT_EQ(guest.reg(rcx), 0u);
    EXPECT_EQ(guest.reg(rdi), to + count * size);
    EXPECT_EQ(guest.reg(rsi), from + count * size);
    EXPECT_EQ(guest.compared(), GetParam());
  }
  JitGuest guest{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Engines, Strings, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

const std::vector<u8> rep_movsb{0xf3, 0xa4}, rep_movsw{0x66, 0xf3, 0xa5}, rep_movsd{0xf3, 0xa5},
    rep_movsq{0xf3, 0x48, 0xa5}, rep_stosq{0xf3, 0x48, 0xab};

TEST_P(Strings, MovesAcrossPages) {
  expect_moved(rep_movsb, 1, data + 0x10123, data + 0x20, 9000);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
  expect_moved(rep_movsw, 2, data + 0x10120, data + 0x20, 4100);
  expect_moved(rep_movsd, 4, data + 0x10ffc, data, 2000);
  expect_moved(rep_movsq, 8, data + 0x10000, data + 0x8, 512);
  EXPECT_EQ(guest.missed(), 0u);
  expect_moved(rep_movsb, 1, data + 0x10123, data + 0x20, 0);
  expect_moved(rep_movsb, 1, data + 0x10fff, data + 0x20, 1);
}

TEST_P(Strings, ElementsThatLieInTwoPages) {
  expect_moved(rep_movsq, 8, data + 0x10003, data + 0x20, 1500);
  expect_moved(rep_movsd, 4, data + 0x10fff, data + 0xffe, 3);
}

TEST_P(Strings, Overlapping) {
  expect_moved(rep_movsb, 1, data + 0x1003, data + 0x1000, 5000);
  expect_moved(rep_movsb, 1, data + 0x1000, data + 0x1003, 5000);
  expect_moved(rep_movsb, 1, data + 0x2001, data + 0x1fff, 6000);
}

TEST_P(Strings, MoreThanABatch) {
  expect_moved(rep_movsb, 1, data + 0x10123, data + 0x20, Cpu::string_batch + 700);
}

TEST_P(Strings, NothingAtAll) {
  guest.load(rep_stosq);
  EXPECT_TRUE(guest.often([&] {
    guest.reg(rdi) = 0xdead0000000000;
    guest.reg(rcx) = 0;
  }));
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.reg(rdi), 0xdead0000000000u);
}

TEST_P(Strings, Stores) {
  guest.load(rep_stosq);
  EXPECT_TRUE(guest.often([&] {
    fill();
    guest.reg(rax) = 0x1122334455667788;
    guest.reg(rdi) = data + 0x1ff8;
    guest.reg(rcx) = 1025;
  }));
  EXPECT_EQ(guest.missed(), 0u);
  std::vector<u8> wanted = memory();
  fill();
  const u8 before = guest.ram()[data + 0x1ff7], behind = guest.ram()[data + 0x4000];
  for (u64 at = 0x1ff8; at < 0x4000; at += 8)
    EXPECT_EQ(load_raw<u64>(wanted.data() + at), 0x1122334455667788u);
  EXPECT_EQ(wanted[0x1ff7], before);
  EXPECT_EQ(wanted[0x4000], behind);
}

TEST_P(Strings, Downward) {
  guest.load({0xfd, 0xf3, 0xa4, 0xfc}); // std; rep movsb; cld
  EXPECT_TRUE(guest.often([&] {
    fill();
    guest.reg(rdi) = data + 0x1010;
    guest.reg(rsi) = data + 0x100c;
    guest.reg(rcx) = 3000;
  }));
  const std::vector<u8> got = memory();
  fill();
  for (u64 i = 0; i < 3000; ++i) guest.ram()[data + 0x1010 - i] = guest.ram()[data + 0x100c - i];
  EXPECT_EQ(got, memory());
  EXPECT_EQ(guest.reg(rdi), data + 0x1010 - 3000);
  EXPECT_EQ(guest.left_to_handlers(), 0u) << "STD and CLD";
}

// One element each, and flags that go with them.
TEST_P(Strings, SingleOnes) {
  guest.load({0xa4, 0x48, 0xa5, 0xaa, 0x66, 0xab, 0xac, // movsb; movsq; stosb; stosw; lodsb
              0xa6, 0x0f, 0x94, 0xc3,                   // cmpsb; sete bl
              0x48, 0xaf, 0x0f, 0x92, 0xc7});           // scasq; setc bh
  EXPECT_TRUE(guest.often([&] {
    fill();
    guest.reg(rax) = 0x55;
    guest.reg(rbx) = 0;
    guest.reg(rdi) = data + 0x2000;
    guest.reg(rsi) = data;
    guest.ram()[data + 10] = guest.ram()[data + 0x200c] = 77;
  }));
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
  EXPECT_EQ(guest.reg(rsi), data + 11);
  EXPECT_EQ(guest.reg(rdi), data + 0x2015);
  const u8* const m = guest.ram() + data;
  EXPECT_EQ(std::memcmp(m, m + 0x2000, 9), 0);
  EXPECT_EQ(load_raw<u32>(m + 0x2009) & 0xffffff, 0x005555u);
  EXPECT_EQ(guest.reg(rax), m[9]) << "the rest of RAX stays";
  EXPECT_EQ(guest.reg(rbx) & 0xff, 1u);
  EXPECT_EQ(guest.reg(rbx) >> 8 & 0xff, m[9] < load_raw<u64>(m + 0x200d) ? 1u : 0u);
}

// The fault is that of the first element that it is for, and all before it is done.
TEST_P(Strings, IntoAPageThatIsReadOnly) {
  guest.map(data + 0x3000, 0x61);
  guest.cpu().mmu.flush_all();
  guest.load(rep_movsb);
  EXPECT_FALSE(guest.often([&] {
    fill();
    guest.reg(rsi) = data + 0x10;
    guest.reg(rdi) = data + 0x2f00;
    guest.reg(rcx) = 0x300;
  }));
  EXPECT_EQ(guest.state().cr2, data + 0x3000);
  EXPECT_EQ(guest.reg(rdi), data + 0x3000);
  EXPECT_EQ(guest.reg(rsi), data + 0x110);
  EXPECT_EQ(guest.reg(rcx), 0x200u);
  EXPECT_EQ(load_raw<u64>(guest.ram() + guest.reg(rsp) + 8), JitGuest::code) << "the instruction itself";
}

// Stores to code are seen, whoever makes them.
TEST_P(Strings, OntoCode) {
  constexpr u64 target = 0x9000;
  guest.load({0xf3, 0xa4,                                                         // rep movsb
              0xe8, 0xf9, 0x0f, 0x00, 0x00});                                     // call target
  const u8 versions[2][6] = {{0xb8, 1, 0, 0, 0, 0xc3}, {0xb8, 2, 0, 0, 0, 0xc3}}; // mov eax, n; ret
  std::memcpy(guest.ram() + data, versions, sizeof versions);
  unsigned round = 0;
  for (unsigned i = 0; i < 60; ++i) {
    round ^= 1;
    guest.reg(rsi) = data + 6 * round;
    guest.reg(rdi) = target;
    guest.reg(rcx) = 6;
    ASSERT_EQ(guest.once(), CpuExit::halt);
    ASSERT_EQ(guest.reg(rax), round + 1) << i;
  }
}

// --- memory that is gone while the host's instruction uses it ---

Executor* interrupted = nullptr;
bool recovered = false;
sigjmp_buf way_out;

void on_lost_memory(int, siginfo_t*, void* context) {
  const auto& m = static_cast<const ucontext_t*>(context)->uc_mcontext;
  constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  HostRegisters host{};
  for (unsigned r = 0; r < 16; ++r) host.gpr[r] = static_cast<u64>(m.gregs[order[r]]);
  host.rip = static_cast<u64>(m.gregs[REG_RIP]);
  host.vectors = m.fpregs;
  recovered = interrupted->recover(host);
  siglongjmp(way_out, 1);
}

void expect_recovery(bool moves) {
  SCOPED_TRACE(moves ? "movs" : "stos");
  JitGuest guest(false);
  guest.load(moves ? rep_movsq : rep_stosq);
  constexpr u64 to = data + 0x2f00, from = data + 0x10;
  const auto before = [&] {
    guest.reg(rsi) = from;
    guest.reg(rdi) = to;
    guest.reg(rcx) = 100;
  };
  ASSERT_TRUE(guest.often(before));
  ASSERT_EQ(guest.missed(), 0u);
  std::memset(guest.ram() + to, 0, 800);
  before();
  ::mprotect(guest.ram() + data + 0x3000, page_size, PROT_NONE);
  interrupted = &guest.jit();
  recovered = false;
  struct sigaction action {};
  struct sigaction old {};
  action.sa_sigaction = on_lost_memory;
  action.sa_flags = SA_SIGINFO;
  ASSERT_EQ(::sigaction(SIGSEGV, &action, &old), 0);
  if (sigsetjmp(way_out, 1) == 0) {
    guest.once();
    ADD_FAILURE() << "it was to be taken out";
  }
  ::sigaction(SIGSEGV, &old, nullptr);
  ::mprotect(guest.ram() + data + 0x3000, page_size, PROT_READ | PROT_WRITE);
  EXPECT_TRUE(recovered);
  EXPECT_EQ(guest.reg(rdi), data + 0x3000);
  EXPECT_EQ(guest.reg(rsi), moves ? from + 0x100 : from);
  EXPECT_EQ(guest.reg(rcx), 100u - 32);
}

TEST(RepeatedStrings, StateOutOfASignal) {
  expect_recovery(true);
  expect_recovery(false);
}

} // namespace
} // namespace ring3::x86::jit
