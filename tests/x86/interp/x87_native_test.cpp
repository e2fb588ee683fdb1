// SPDX-License-Identifier: Apache-2.0
// Every x87 encoding with random stacks, against the processor between its own FXRSTOR and FXSAVE.
#include "guest_cpu.h"
#include "native_run.h"
#include "x86/interp/x87_environment.h"

#include <iomanip>
#include <random>
#include <sstream>

namespace ring3::x86::test {

namespace {

struct alignas(16) FxImage {
  X87State x87;
  u8 rest[512 - sizeof(X87State)];
};

class X87Native : public testing::Test {
 protected:
  static constexpr u64 memory = GuestCpu::data + 0x1000;

  X87Native() {
    code_ = static_cast<u8*>(
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  ~X87Native() override { munmap(code_, 4096); }

  // fxrstor64 [rdi]; EFLAGS from [rdx]; the instruction with rsi as its base; back again.
  void native(std::span<const u8> instruction, FxImage& image, u64& flags) {
    unsigned at = 0;
    const auto put = [&](std::initializer_list<unsigned> list) {
      for (const unsigned b : list) code_[at++] = static_cast<u8>(b);
    };
    put({0x48, 0x0f, 0xae, 0x0f, 0xff, 0x32, 0x9d});
    for (const u8 b : instruction) put({b});
    put({0x9c, 0x8f, 0x02, 0x48, 0x0f, 0xae, 0x07, 0xdb, 0xe3, 0xc3});
    reinterpret_cast<void (*)(void*, u64, u64*)>(code_)(&image, memory, &flags);
    const u32 mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0" : : "m"(mxcsr));
  }

  void random_register(u8* st) {
    std::memset(st, 0, 16);
    const u64 significand = random_() | bit(63);
    const u64 sign = random_() << 15 & 0x8000;
    switch (random_() % 6) {
    case 0: break;
    case 1: store_raw(st, random_()), store_raw<u16>(st + 8, static_cast<u16>(random_())); break;
    case 2: store_raw(st, bit(63)), store_raw<u16>(st + 8, static_cast<u16>(0x7fff | sign)); break;
    default:
      store_raw(st, significand), store_raw<u16>(st + 8, static_cast<u16>((0x3ff0 + random_() % 90) | sign));
    }
  }

  void check(std::span<const u8> code, bool masked) {
    Decoded d;
    if (decode(code.data(), code.size(), 64, d) != DecodeStatus::ok || d.op != Op::x87) return;
    FxImage image{};
    X87State& x = image.x87;
    x.fcw = static_cast<u16>(0x340 | (random_() & 0xc00) | (masked ? 0x3f : random_() & 0x3f));
    x.fsw = static_cast<u16>(random_() & 0x7f7f & ~(~x.fcw & 0x3f));
    x.ftw = static_cast<u8>(random_() % 3 == 0 ? random_() : 0xff);
    for (auto& st : x.st) random_register(st);
    u64 flags = 0x202 | (random_() & 0x8d5);
    u8 before[160];
    for (u8& b : before) b = static_cast<u8>(random_());
    if (random_() % 2 == 0) random_register(before);
    std::memcpy(&GuestCpu::at<u8>(memory), before, sizeof before);
    CpuState& s = guest_.state();
    s.x87 = x;
    s.regs[rsi] = memory;
    s.regs[rax] = 0x1111;
    s.set_rflags(flags);

    native(code.first(d.length), image, flags);
    u8 after[160];
    std::memcpy(after, &GuestCpu::at<u8>(memory), sizeof after);
    std::memcpy(&GuestCpu::at<u8>(memory), before, sizeof before);
    const Step step = guest_.execute(d);
    ++checked_;
    std::ostringstream what;
    if (step != Step::next) what << " not executed, vector " << static_cast<int>(guest_.cpu->fault.vector);
    if (s.x87.fcw != x.fcw) what << std::hex << " fcw " << s.x87.fcw << " not " << x.fcw;
    if (s.x87.fsw != x.fsw) what << std::hex << " fsw " << s.x87.fsw << " not " << x.fsw;
    if (s.x87.ftw != x.ftw) what << " ftw";
    for (unsigned i = 0; i < 8; ++i) {
      if (std::memcmp(s.x87.st[i], x.st[i], 10) != 0) what << " st" << i;
    }
    if ((s.rflags() & rflags::arithmetic) != (flags & rflags::arithmetic)) what << " flags";
    const auto* now = &GuestCpu::at<u8>(memory);
    const bool environment = d.memory_written && d.memory_bits > 80;
    for (unsigned i = 0; i < sizeof after; ++i) {
      // Instruction and data pointers are other addresses.
      if (environment && i >= 12 && i < 28) continue;
      if (now[i] != after[i]) what << " memory+" << std::dec << i;
    }
    if (!what.str().empty() && ++reported_ < 20) {
      std::ostringstream hex;
      for (unsigned i = 0; i < d.length; ++i)
        hex << std::hex << std::setw(2) << std::setfill('0') << unsigned{code[i]};
      ADD_FAILURE() << hex.str() << ":" << what.str();
    }
  }

  GuestCpu guest_;
  u8* code_;
  std::mt19937_64 random_{99};
  unsigned checked_ = 0, reported_ = 0;
};

TEST_F(X87Native, AllEncodings) {
  for (unsigned op = 0xd8; op <= 0xdf; ++op) {
    for (unsigned modrm = 0; modrm < 256; ++modrm) {
      if (modrm < 0xc0 && (modrm & 0xc7) != 6) continue;
      if (modrm < 0xc0 && ((op == 0xd9 && modrm >> 3 == 4) || (op == 0xdd && modrm >> 3 == 4))) continue;
      if (op == 0xdf && modrm == 0xe0) continue; // FNSTSW AX
      const u8 code[4] = {static_cast<u8>(op), static_cast<u8>(modrm), 0, 0};
      for (int i = 0; i < 12; ++i) check(code, i < 6);
    }
  }
  EXPECT_GT(checked_, 4000U);
}

TEST_F(X87Native, EnvironmentRoundTrip) {
  CpuState& s = guest_.state();
  for (const bool wide : {true, false}) {
    s.x87 = X87State{};
    s.x87.fsw = 5 << 11;
    s.x87.ftw = 0x65;
    s.x87.fip = 0x1234;
    s.x87.fdp = 0x4321;
    for (auto& st : s.x87.st) random_register(st);
    const X87State old = s.x87;
    s.regs[rsi] = memory;
    const auto run = [&](u8 op, u8 modrm) {
      std::vector<u8> code{op, modrm};
      if (!wide) code.insert(code.begin(), 0x66);
      return guest_.execute(code);
    };
    EXPECT_EQ(run(0xdd, 0x36), Step::next); // fnsave
    EXPECT_EQ(s.x87.fcw, 0x37f);
    EXPECT_EQ(s.x87.ftw, 0);
    EXPECT_EQ(run(0xdd, 0x26), Step::next); // frstor
    EXPECT_EQ(std::memcmp(&s.x87, &old, sizeof old), 0);
    EXPECT_EQ(run(0xd9, 0x36), Step::next); // fnstenv
    EXPECT_EQ(run(0xd9, 0xf7), Step::next); // fincstp
    EXPECT_EQ(run(0xd9, 0x26), Step::next); // fldenv
    EXPECT_EQ(s.x87.ftw, old.ftw);
    EXPECT_EQ(s.x87.fsw, old.fsw);
    EXPECT_EQ(std::memcmp(s.x87.st, old.st, sizeof old.st), 0);
  }
}

TEST_F(X87Native, PendingExceptionsAndPointers) {
  CpuState& s = guest_.state();
  s.x87 = X87State{};
  s.x87.fcw = 0x37b; // division by zero is reported
  s.regs[rsi] = memory;
  GuestCpu::at<u32>(memory) = 0;
  EXPECT_EQ(guest_.execute({0xd9, 0xe8}), Step::next); // fld1
  EXPECT_EQ(guest_.execute({0xd8, 0x36}), Step::next); // fdiv [rsi]
  EXPECT_EQ(s.x87.fsw & 0x8084, 0x8084);
  EXPECT_EQ(s.x87.fdp, memory);
  EXPECT_EQ(s.x87.fip, 0x1000U - 2);
  EXPECT_EQ(s.x87.fop, 0x036);
  EXPECT_TRUE((guest_.execute({0xd9, 0xe8}), guest_.faulted(Vector::mf)));
  EXPECT_TRUE((guest_.execute({0x9b}), guest_.faulted(Vector::mf)));
  EXPECT_EQ(guest_.execute({0xdf, 0xe0}), Step::next); // fnstsw ax
  EXPECT_EQ(s.regs[rax] & 0xffff, s.x87.fsw);
  EXPECT_EQ(guest_.execute({0xdb, 0xe2}), Step::next); // fnclex
  EXPECT_EQ(guest_.execute({0x9b}), Step::next);
  s.cr0 |= cr0::ts;
  EXPECT_TRUE((guest_.execute({0x9b}), guest_.faulted(Vector::nm)));
  EXPECT_TRUE((guest_.execute({0xdb, 0xe3}), guest_.faulted(Vector::nm)));
}

} // namespace

} // namespace ring3::x86::test
