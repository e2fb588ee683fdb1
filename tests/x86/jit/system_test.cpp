// SPDX-License-Identifier: Apache-2.0
// System instructions of translated code, and where they are the handlers' after all.
#include "jit_guest.h"

#include <x86intrin.h>

namespace ring3::x86::jit {
namespace {

using test::JitGuest;

class System : public ::testing::TestWithParam<bool> {
 protected:
  JitGuest guest{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Engines, System, ::testing::Bool(),
                         [](const auto& param) { return param.param ? "Lockstep" : "Alone"; });

void put32(std::vector<u8>& out, u64 v) {
  for (unsigned i = 0; i < 4; ++i) out.push_back(static_cast<u8>(v >> 8 * i));
}

// mov rax, [user]
std::vector<u8> user_access(std::vector<u8> before, const std::vector<u8>& behind) {
  before.insert(before.end(), {0x48, 0x8b, 0x04, 0x25});
  put32(before, JitGuest::user);
  before.insert(before.end(), behind.begin(), behind.end());
  return before;
}

const std::vector<u8> stac{0x0f, 0x01, 0xcb}, clac{0x0f, 0x01, 0xca};

TEST_P(System, UserMemoryBetweenStacAndClac) {
  store_raw<u64>(guest.ram() + JitGuest::user, 0x1234);
  guest.load(user_access(stac, clac));
  EXPECT_TRUE(guest.often([&] { guest.reg(rax) = 0; }));
  EXPECT_EQ(guest.reg(rax), 0x1234u);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
  EXPECT_EQ(guest.state().system_flags & rflags::ac, 0u);
}

TEST_P(System, UserMemoryBehindClac) {
  guest.load(user_access({0x0f, 0x01, 0xcb, 0x48, 0x8b, 0x1c, 0x25, 0, 0, 8, 0, 0x0f, 0x01, 0xca}, {}));
  EXPECT_FALSE(guest.often([] {}));
  EXPECT_EQ(guest.state().cr2, JitGuest::user);
  EXPECT_EQ(load_raw<u64>(guest.ram() + guest.reg(rsp) + 8), JitGuest::code + 14) << "the second access";
}

TEST_P(System, StacWithoutSmap) {
  guest.state().cr4 &= ~cr4::smap;
  guest.cpu().mode_changed();
  guest.load(user_access(stac, user_access(clac, {})));
  EXPECT_TRUE(guest.often([] {}));
  EXPECT_EQ(guest.missed(), 0u);
}

TEST_P(System, PushfAndPopf) {
  // pushfq; pop rax; xor rax, 0x8d5; push rax; popfq; pushfq; pop rbx
  guest.load({0x9c, 0x58, 0x48, 0x35, 0xd5, 0x08, 0, 0, 0x50, 0x9d, 0x9c, 0x5b});
  EXPECT_TRUE(guest.often([&] {
    guest.state().set_rflags(rflags::fixed1 | rflags::id | rflags::if_ | rflags::cf | rflags::of |
                             rflags::pf);
  }));
  constexpr u64 others = rflags::fixed1 | rflags::id | rflags::if_;
  EXPECT_EQ(guest.reg(rbx), others | rflags::af | rflags::zf | rflags::sf);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
}

TEST_P(System, PopfOfIf) {
  guest.load({0x50, 0x9d}); // push rax; popfq
  for (const bool wanted : {false, true}) {
    guest.cpu().window_wanted = wanted;
    EXPECT_TRUE(guest.often(
                    [&] {
                      guest.state().set_rflags(rflags::fixed1);
                      guest.reg(rax) = rflags::fixed1 | rflags::zf | rflags::if_;
                      guest.exit_word().store(0);
                    },
                    wanted ? 1 : 40) ||
                wanted);
    EXPECT_EQ(guest.state().rflags(), rflags::fixed1 | rflags::zf | rflags::if_);
    EXPECT_EQ(guest.exit_word().load(), wanted ? Cpu::exit_window : 0u);
    if (!wanted) {
      EXPECT_EQ(guest.missed(), 0u);
    }
  }
}

TEST_P(System, PopfOfWhatHasConsequences) {
  guest.load(user_access({0x50, 0x9d}, {})); // push rax; popfq: with AC, user memory may be read
  EXPECT_TRUE(guest.often([&] {
    guest.state().set_rflags(rflags::fixed1);
    guest.cpu().flags_changed();
    guest.reg(rax) = rflags::fixed1 | rflags::ac | rflags::df;
  }));
  EXPECT_EQ(guest.state().rflags(), rflags::fixed1 | rflags::ac | rflags::df);
}

TEST_P(System, SegmentBases) {
  // wrfsbase rax; mov rbx, fs:[8]; rdfsbase rcx; wrgsbase edx; mov rsi, gs:[0]; rdgsbase edi
  guest.load({0xf3, 0x48, 0x0f, 0xae, 0xd0, 0x64, 0x48, 0x8b, 0x1c, 0x25, 8,    0,
              0,    0,    0xf3, 0x48, 0x0f, 0xae, 0xc1, 0xf3, 0x0f, 0xae, 0xda, 0x65,
              0x48, 0x8b, 0x34, 0x25, 0,    0,    0,    0,    0xf3, 0x0f, 0xae, 0xcf});
  store_raw<u64>(guest.ram() + JitGuest::data + 8, 0x5678);
  EXPECT_TRUE(guest.often([&] {
    guest.reg(rax) = JitGuest::data;
    guest.reg(rdx) = ~u64{0xffffffff} | (JitGuest::data + 8);
  }));
  EXPECT_EQ(guest.reg(rbx), 0x5678u);
  EXPECT_EQ(guest.reg(rsi), 0x5678u);
  EXPECT_EQ(guest.reg(rcx), JitGuest::data);
  EXPECT_EQ(guest.reg(rdi), JitGuest::data + 8);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);

  EXPECT_FALSE(guest.often([&] { guest.reg(rax) = u64{1} << 60; })) << "#GP";
  EXPECT_EQ(guest.state().segment(Seg::fs).base, JitGuest::data);
  guest.state().cr4 &= ~cr4::fsgsbase;
  guest.cpu().mode_changed();
  EXPECT_FALSE(guest.often([&] { guest.reg(rax) = JitGuest::data; })) << "#UD";
}

TEST_P(System, ControlRegisters) {
  // mov rax, cr0; mov rbx, cr2; mov rsi, cr3; mov r9, cr4; mov edi, ss; mov dx, cs
  guest.load({0x0f, 0x20, 0xc0, 0x0f, 0x20, 0xd3, 0x0f, 0x20, 0xde, 0x41, 0x0f, 0x20, 0xe1, 0x8c, 0xd7, 0x66,
              0x8c, 0xca});
  guest.state().cr2 = 0x123456789;
  EXPECT_TRUE(guest.often([&] { guest.reg(rdx) = guest.reg(rdi) = ~u64{0}; }));
  EXPECT_EQ(guest.reg(rax), guest.state().cr0);
  EXPECT_EQ(guest.reg(rbx), 0x123456789u);
  EXPECT_EQ(guest.reg(rsi), 0x1000u);
  EXPECT_EQ(guest.reg(r9), guest.state().cr4);
  EXPECT_EQ(guest.reg(rdi), 0x10u);
  EXPECT_EQ(guest.reg(rdx), 0xffffffffffff0018u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
}

TEST_P(System, Xgetbv) {
  guest.load({0x0f, 0x01, 0xd0});
  guest.state().xcr0 = 7;
  EXPECT_TRUE(guest.often([&] { guest.reg(rax) = guest.reg(rdx) = guest.reg(rcx) = u64{1} << 40; }));
  EXPECT_EQ(guest.reg(rax), 7u);
  EXPECT_EQ(guest.reg(rdx), 0u);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_FALSE(guest.often([&] { guest.reg(rcx) = 5; })) << "#GP";
}

class HostTsc : public test::NoPlatform {
 public:
  u64 tsc() const override { return __rdtsc(); }
  bool tsc_is_host() const override { return is_host; }
  bool is_host = true;
};

TEST(SystemTsc, IsTheHostsWithAnOffset) {
  HostTsc platform;
  JitGuest guest(false, &platform);
  guest.state().tsc_offset = u64{1} << 50;
  guest.state().tsc_aux = 5;
  guest.load({0x0f, 0x31, 0x48, 0x89, 0xc6, 0x48, 0x89, 0xd7, 0x0f, 0x01, 0xf9}); // rdtsc; ...; rdtscp
  u64 earliest = 0;
  EXPECT_TRUE(guest.often([&] { earliest = __rdtsc(); }));
  const u64 first = guest.reg(rdi) << 32 | guest.reg(rsi), second = guest.reg(rdx) << 32 | guest.reg(rax);
  EXPECT_GE(first - guest.state().tsc_offset, earliest);
  EXPECT_GE(second, first);
  EXPECT_LE(second - guest.state().tsc_offset, __rdtsc());
  EXPECT_EQ(guest.reg(rcx), 5u);
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
  platform.is_host = false;
  EXPECT_TRUE(guest.often([] {}));
  EXPECT_EQ(guest.missed(), 4u) << "another clock's counter is asked";
}

TEST(SystemTsc, LockstepLeavesItToTheHandler) {
  HostTsc platform;
  JitGuest guest(true, &platform);
  guest.load({0x0f, 0x31});
  EXPECT_TRUE(guest.often([] {}));
}

class CountsPauses : public test::NoPlatform {
 public:
  void pause() override { ++pauses; }
  unsigned pauses = 0;
};

TEST(SystemPause, ThePlatformHearsOfIt) {
  CountsPauses platform;
  JitGuest guest(false, &platform);
  guest.load({0xf3, 0x90, 0xff, 0xc9, 0x75, 0xfa}); // pause; dec ecx; jnz
  EXPECT_TRUE(guest.often([&] { guest.reg(rcx) = 64; }));
  EXPECT_EQ(platform.pauses, 40u);
  EXPECT_EQ(guest.missed(), 2u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
}

// The bit may be far away, in both directions.
TEST_P(System, BitStrings) {
  // bts [rbx], rax; setc cl; btr [rbx+8], edx; setc ch; bt word [rbx], si
  guest.load({0x48, 0x0f, 0xab, 0x03, 0x0f, 0x92, 0xc1, 0x0f, 0xb3, 0x53, 0x08,
              0x0f, 0x92, 0xc5, 0x66, 0x0f, 0xa3, 0x33, 0x0f, 0x92, 0xc0});
  u8* const m = guest.ram() + JitGuest::data;
  EXPECT_TRUE(guest.often([&] {
    std::memset(m, 0, 0x3000);
    m[0x1008 - 1] = 0x80;
    m[0x1000 - 0x1000] = 0x04;
    guest.reg(rbx) = JitGuest::data + 0x1000;
    guest.reg(rax) = 8 * 0x1234 + 5;
    guest.reg(rdx) = static_cast<u32>(-1);
    guest.reg(rsi) = static_cast<u16>(-0x8000 + 2);
    guest.reg(rcx) = 0;
  }));
  EXPECT_EQ(m[0x2234], 1u << 5);
  EXPECT_EQ(m[0x1007], 0u);
  EXPECT_EQ(guest.reg(rcx), 0x100u);
  EXPECT_EQ(guest.reg(rax) & 0xff, 1u) << "0x1000 bytes before";
  EXPECT_EQ(guest.missed(), 0u);
  EXPECT_EQ(guest.left_to_handlers(), 0u);
}

} // namespace
} // namespace ring3::x86::jit
