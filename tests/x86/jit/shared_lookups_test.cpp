// SPDX-License-Identifier: Apache-2.0
// Instructions that share a TLB lookup, where it does not hold for all of them.
#include "jit_guest.h"

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

constexpr u64 data = JitGuest::data, other = data + 0x10000;

// Without Lockstep, and with it.
class SharedLookups : public ::testing::TestWithParam<bool> {
 protected:
  // Two groups in turn: [rdi] and [rdi+60h], which is written; [rsi] and [rsi+8].
  const std::vector<u8> program{
      0x48, 0x8b, 0x07,       // mov rax, [rdi]
      0x48, 0x8b, 0x0e,       // mov rcx, [rsi]
      0x48, 0x01, 0x47, 0x60, // add [rdi+60h], rax
      0x48, 0x8b, 0x56, 0x08, // mov rdx, [rsi+8]
      0x48, 0x8b, 0x5f, 0x68, // mov rbx, [rdi+68h]
  };
  u64 word(u64 at) {
    u64 v;
    std::memcpy(&v, guest.ram() + at, sizeof v);
    return v;
  }
  void fill(u64 first, u64 second) {
    for (u64 i = 0; i < 0x20000; ++i) guest.ram()[data + i] = static_cast<u8>(i * 7 + (i >> 8));
    guest.reg(rdi) = first;
    guest.reg(rsi) = second;
  }
  void expect_right(u64 first, u64 second) {
    SCOPED_TRACE(::testing::Message() << std::hex << first << ' ' << second);
    fill(first, second);
    const u64 sum = word(first) + word(first + 0x60);
    const u64 values[] = {word(first), word(second), word(second + 8), word(first + 0x68)};
    EXPECT_TRUE(guest.often([&] { fill(first, second); }));
    EXPECT_EQ(guest.reg(rax), values[0]);
    EXPECT_EQ(guest.reg(rcx), values[1]);
    EXPECT_EQ(guest.reg(rdx), values[2]);
    EXPECT_EQ(guest.reg(rbx), values[3]);
    EXPECT_EQ(word(first + 0x60), sum);
  }
  JitGuest guest{GetParam()};
};

TEST_P(SharedLookups, InOnePageOrTwo) {
  guest.load(program);
  const u64 end = data + page_size;
  for (const u64 at : {data, end - 0x70, end - 0x60, end - 0x30, end - 8}) {
    expect_right(at, other);
    EXPECT_EQ(guest.missed(), 0u) << "each run is looked up alone, where the group lies in two pages";
  }
  expect_right(data, other + page_size - 8);
  EXPECT_EQ(guest.missed(), 0u);
  expect_right(end - 0x64, other); // the operand itself lies in two
  expect_right(end - 4, other + page_size - 4);
}

// Neighbours share a lookup, until they have turned out to be in two pages all the time.
TEST_P(SharedLookups, ARunInTwoPages) {
  guest.load({
      0x48, 0x8b, 0x07,       // mov rax, [rdi]
      0x48, 0x8b, 0x4f, 0x08, // mov rcx, [rdi+8]
      0x48, 0x01, 0x4f, 0x10, // add [rdi+10h], rcx
      0x48, 0x8b, 0x57, 0x18, // mov rdx, [rdi+18h]
  });
  for (const u64 at : {data, data + page_size - 8, data + page_size - 16, data}) {
    fill(at, other);
    const u64 values[] = {word(at), word(at + 8), word(at + 8) + word(at + 16), word(at + 24)};
    constexpr unsigned times = 100; // of which each leaves four to handlers
    EXPECT_TRUE(guest.often([&] { fill(at, other); }, times));
    EXPECT_EQ(guest.reg(rax), values[0]);
    EXPECT_EQ(guest.reg(rcx), values[1]);
    EXPECT_EQ(word(at + 16), values[2]);
    EXPECT_EQ(guest.reg(rdx), values[3]);
    EXPECT_EQ(guest.missed(), 0u);
  }
}

TEST_P(SharedLookups, AFaultInTheSecondRun) {
  guest.load(program);
  const u64 end = data + page_size;
  expect_right(end - 0x30, other);
  guest.map(end, 0x61); // not writable, as CR0.WP says
  guest.cpu().mmu.flush_all();
  for (unsigned i = 0; i < 40; ++i) {
    fill(end - 0x30, other);
    const u64 first = word(end - 0x30), second = word(other), last = word(end + 0x30);
    EXPECT_EQ(guest.once(), CpuExit::halt);
    EXPECT_EQ(guest.state().rip(), JitGuest::fault_handler + 1);
    EXPECT_EQ(guest.state().cr2, end + 0x30);
    EXPECT_EQ(guest.reg(rax), first);
    EXPECT_EQ(guest.reg(rcx), second);
    EXPECT_EQ(word(end + 0x30), last);
  }
}

// Who may write somewhere is known by the TLB's entries, to which those are shown that turn out to be code: a
// block does not go on with a right that is none of them any more.
class LostRights : public SharedLookups {
 protected:
  // The same memory at other addresses, which have the same places in the TLB.
  static constexpr u64 alias = u64{TlbTable::entries} * page_size;

  LostRights() {
    for (const u64 n : {1, 2}) store_raw<u64>(guest.ram() + 0x3000 + (n * alias >> 21) * 8, table);
    guest.load({
        0x48, 0x8b, 0x07,       // mov rax, [rdi]
        0x48, 0x8b, 0x0e,       // mov rcx, [rsi]
        0x48, 0x8b, 0x55, 0x00, // mov rdx, [rbp]
        0x48, 0x01, 0x47, 0x60, // add [rdi+60h], rax
    });
  }
  // The instructions that are interpreted in one round: those behind where the block was left. Lockstep
  // interprets HLT alone.
  u64 interpreted(u64 second, u64 third) {
    fill(data, second);
    guest.reg(rbp) = third;
    const u64 sum = word(data) + word(data + 0x60);
    const u64 before = guest.jit().statistics().interpreted.value();
    EXPECT_EQ(guest.once(), CpuExit::halt);
    EXPECT_EQ(word(data + 0x60), sum);
    return guest.jit().statistics().interpreted.value() - before - (GetParam() ? 1 : 0);
  }
  void warm_up() {
    for (unsigned i = 0; i < 40; ++i) static_cast<void>(interpreted(other, other));
    EXPECT_EQ(interpreted(other, other), 0u);
  }

 private:
  static constexpr u64 table = JitGuest::page_table | 7;
};

TEST_P(LostRights, AnEntryIsReplaced) {
  warm_up();
  EXPECT_EQ(interpreted(alias + data, other), 0u) << "there is room for two";
  warm_up();
  // Lockstep lets no other vCPU run within a block.
  EXPECT_EQ(interpreted(alias + data, 2 * alias + data), GetParam() ? 0u : 2u);
}

TEST_P(LostRights, AnotherVcpuHasFoundCodeThere) {
  warm_up();
  kvm::CodePage& page = *guest.watch().page(GuestPhys{data});
  page.lines = 1;
  guest.watch().note_new(GuestPhys{data}, reinterpret_cast<const std::byte*>(guest.ram() + data));
  const u32 version = page.version;
  EXPECT_EQ(interpreted(alias + data, other), GetParam() ? 0u : 3u);
  EXPECT_NE(page.version, version);
}

INSTANTIATE_TEST_SUITE_P(Both, LostRights, ::testing::Bool());
INSTANTIATE_TEST_SUITE_P(Both, SharedLookups, ::testing::Bool());

} // namespace
} // namespace ring3::x86::jit
