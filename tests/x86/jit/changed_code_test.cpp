// SPDX-License-Identifier: Apache-2.0
// Translations of code that another vCPU is changing. Threads that really do it:
// tests/guest/changing_code.sh.
#include "jit_guest.h"

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

class OwnCodeTest : public ::testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Engines, OwnCodeTest, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

TEST_P(OwnCodeTest, AStoreIntoTheNextInstruction) {
  JitGuest guest{GetParam()};
  // mov [rip + 1], eax; mov ebx, 0, which becomes mov ebx, EAX's value
  guest.load({0x89, 0x05, 1, 0, 0, 0, 0xbb, 0, 0, 0, 0});
  for (u64 i = 1; i < 60; ++i) {
    guest.reg(rax) = i / 20 * 1000 + i % 3;
    ASSERT_EQ(guest.once(), CpuExit::halt);
    ASSERT_EQ(guest.reg(rbx), guest.reg(rax)) << "time " << i;
  }
}

// kvm::CodeWatch::written() moves the version of a page first and the number of changes after that. Who looks
// between the two finds the page changed, although nothing seems to have happened; what leads to it must not
// survive that.
TEST(ChangedCodeTest, SeenBeforeTheChangeIsCounted) {
  constexpr u64 function = JitGuest::data, other_page = JitGuest::data + page_size;
  JitGuest guest{false};
  kvm::CodeWatch& watch = guest.cpu().mmu.code_watch();
  u8* const constant = guest.ram() + function + 1;
  constexpr u8 body[] = {0xbb, 1, 0, 0, 0, 0xf4}; // mov ebx, 1; hlt
  std::memcpy(guest.ram() + function, body, sizeof body);
  guest.load({0xb8, 0, 0, function >> 16, 0, 0xff, 0xe0}); // mov eax, function; jmp rax
  ASSERT_TRUE(guest.often([&] { guest.reg(rbx) = 0; }));
  ASSERT_EQ(guest.reg(rbx), 1u);

  *constant = 2;
  kvm::CodePage* const page = watch.find(GuestPhys{function});
  ASSERT_NE(page, nullptr);
  ASSERT_NE(page->lines.exchange(0), 0u);
  ++page->version;
  guest.state().regs[reg_rip] = function;
  guest.state().activity = Activity::running;
  ASSERT_EQ(guest.cpu().run(), CpuExit::halt);
  EXPECT_EQ(guest.reg(rbx), 2u);

  // The number of changes moves, by that of a page where nothing has been translated.
  watch.page(GuestPhys{other_page})->lines = 1;
  watch.written(GuestPhys{other_page}, 1);
  for (unsigned i = 0; i < 40; ++i) {
    guest.reg(rbx) = 0;
    ASSERT_EQ(guest.once(), CpuExit::halt);
    ASSERT_EQ(guest.reg(rbx), 2u) << "time " << i;
  }
}

// Another vCPU has translated code on a page that this one can still write, until it hears of that. What it
// may have written meanwhile counts as written, however it loses the permission.
class NewCodeTest : public ::testing::Test {
 protected:
  static constexpr u64 page = JitGuest::data, store_only = JitGuest::data + page_size;
  NewCodeTest() {
    guest.load({0x48, 0x89, 0x04, 0x25, 0, 0, page >> 16, 0}); // mov [page], rax
    EXPECT_EQ(guest.once(), CpuExit::halt);
  }
  // As Cpu::watch_code() does there.
  void becomes_code(u64 at) {
    watch.page(GuestPhys{at})->lines.fetch_or(1);
    watch.note_new(GuestPhys{at}, reinterpret_cast<const std::byte*>(guest.ram() + at));
  }
  u32 version(u64 at) { return watch.page(GuestPhys{at})->version; }

  JitGuest guest{false};
  kvm::CodeWatch& watch = guest.cpu().mmu.code_watch();
  Mmu& mmu = guest.cpu().mmu;
};

TEST_F(NewCodeTest, WhatCouldBeWrittenCountsAsWritten) {
  const u32 before = version(page);
  becomes_code(page);
  EXPECT_TRUE(mmu.protect_new_code());
  EXPECT_NE(version(page), before);
  // Once: the permission is gone.
  const u32 after = version(page);
  becomes_code(page);
  EXPECT_TRUE(mmu.protect_new_code());
  EXPECT_EQ(version(page), after);
}

TEST_F(NewCodeTest, AlsoIfTheTlbWasFlushedFirst) {
  const u32 before = version(page);
  becomes_code(page);
  mmu.flush_page(GuestVirt{page});
  EXPECT_NE(version(page), before);
}

TEST_F(NewCodeTest, OtherPagesDoNot) {
  const u32 before = version(store_only);
  becomes_code(store_only);
  EXPECT_TRUE(mmu.protect_new_code());
  EXPECT_EQ(version(store_only), before);
}

TEST_F(NewCodeTest, TooManyToRemember) {
  for (unsigned i = 0; i < 5000; ++i) becomes_code(store_only);
  EXPECT_FALSE(mmu.protect_new_code());
  EXPECT_TRUE(mmu.protect_new_code());
}

} // namespace
} // namespace ring3::x86::jit
