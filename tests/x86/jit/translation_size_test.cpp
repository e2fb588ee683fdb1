// SPDX-License-Identifier: Apache-2.0
// Golden sizes: the host's instructions and bytes for each guest instruction on its straight way, without the
// block's head and without what is out of the way. Where a translation has become longer, or shorter, this
// list has to say so.
#include "x86/cpu/cpuid_model.h"
#include "x86/interp/bind.h"
#include "x86/jit/block_emitter.h"

#include <fmt/format.h>
#include <gtest/gtest.h>
#include <span>
#include <string>
#include <vector>

namespace ring3::x86::jit {
namespace {

constexpr u64 linear = 0xffffffff81000100;

// Offsets as they are in a Cpu, roughly: all of 32 bits.
Layout layout() {
  Layout l;
  l.regs = 0x200;
  l.flags = 0x300;
  l.exit_word = -0x400;
  l.tlb = 0x2000;
  for (unsigned i = 0; i < seg_count; ++i) l.segment_base[i] = 0x2100 + static_cast<s32>(i) * 8;
  l.budget = 0x2200;
  l.jumps = 0x2210;
  l.cpl = 0x310;
  l.system_flags = 0x308;
  l.gs_base = 0x318;
  l.kernel_gs_base = 0x320;
  l.vectors_usable = 0x2220;
  l.vectors_live = 0x2221;
  l.host_mxcsr = 0x2224;
  l.x87 = 0x1000;
  l.x87_image = 0x2240;
  l.x87_control = 0x222a;
  l.x87_used = 0x222c;
  l.host_fcw = 0x2228;
  return l;
}

class Translated {
 public:
  explicit Translated(std::vector<u8> bytes) {
    CpuidTable cpuid;
    if (const auto model = select_cpu_model("max")) cpuid.set(cpuid_entries(*model, 0, 1));
    bytes.resize(bytes.size() + 16, 0xf4);
    bool ends = false;
    for (u64 at = 0; at + 16 < bytes.size() + 1 && !ends;) {
      Source s;
      if (decode(bytes.data() + at, bytes.size() - at, 64, s.decoded) != DecodeStatus::ok) break;
      bind(s.decoded, cpuid, s.insn, ends);
      s.ip = linear + at;
      s.ends = ends;
      s.copied = s.insn.handler != handle_ud;
      at += s.insn.len;
      source_.push_back(s);
    }
    cache_ = CodeCache::make(1 << 20);
    page_.linear = linear & ~page_offset_mask;
    Translator translator(*cache_, memory_, thunks_, layout_);
    block_ = translator.translate({linear, nullptr, &page_}, source_);
  }

  unsigned count() const { return block_->count; }
  bool native(unsigned i) const { return block_->steps[i].native; }
  // Of the straight way, from the beginning of an instruction to that of the next one.
  unsigned size(unsigned i) const { return block_->steps[i + 1].host_offset - block_->steps[i].host_offset; }
  unsigned instructions(unsigned i) const {
    const std::span code(block_->code + block_->steps[i].host_offset, size(i));
    unsigned n = 0;
    for (std::size_t at = 0; at < code.size(); ++n) {
      Decoded d;
      EXPECT_EQ(decode(&code[at], code.size() - at, 64, d), DecodeStatus::ok);
      if (d.length == 0) break;
      at += d.length;
    }
    return n;
  }
  unsigned head() const { return block_->steps[0].host_offset; }

 private:
  std::vector<Source> source_;
  std::unique_ptr<CodeCache> cache_;
  std::pmr::monotonic_buffer_resource memory_;
  Thunks thunks_;
  Layout layout_ = layout();
  TranslatedPage page_;
  TranslatedBlock* block_ = nullptr;
};

struct Golden {
  const char* text;
  std::vector<u8> bytes;
  unsigned host_instructions, host_bytes;
};

// One instruction, then XOR of all flags, so that nobody wants the ones there were.
const Golden goldens[] = {
    {"mov rax, rbx", {0x48, 0x89, 0xd8}, 1, 3},
    {"mov eax, 1", {0xb8, 1, 0, 0, 0}, 1, 5},
    {"add rax, r12", {0x4c, 0x01, 0xe0}, 1, 3},
    {"lea rax, [rbx+rcx*4+8]", {0x48, 0x8d, 0x44, 0x8b, 0x08}, 1, 5},
    {"lea rax, [rip+8]", {0x48, 0x8d, 0x05, 8, 0, 0, 0}, 1, 7},
    {"nop", {0x90}, 0, 0},
    {"endbr64", {0xf3, 0x0f, 0x1e, 0xfa}, 0, 0},
    {"mov rax, [rbx+8]", {0x48, 0x8b, 0x43, 0x08}, 10, 49},
    {"mov rax, [rbx+rcx*8]", {0x48, 0x8b, 0x04, 0xcb}, 11, 52},
    {"mov al, [rbx]", {0x8a, 0x03}, 10, 46},
    {"mov [rbx+rcx], dh", {0x88, 0x34, 0x0b}, 14, 62},
    {"mov [rbx+8], rax", {0x48, 0x89, 0x43, 0x08}, 10, 50},
    {"mov rax, [rip+8]", {0x48, 0x8b, 0x05, 8, 0, 0, 0}, 5, 29},
    {"mov rax, gs:[0x10]", {0x65, 0x48, 0x8b, 0x04, 0x25, 0x10, 0, 0, 0}, 12, 67},
    {"lock inc qword [rdi]", {0xf0, 0x48, 0xff, 0x07}, 10, 49},
    {"div rbx", {0x48, 0xf7, 0xf3}, 3, 12},
    {"mov rax, gs:[rip+8]", {0x65, 0x48, 0x8b, 0x05, 8, 0, 0, 0}, 12, 73},
    {"push [rdi+8]", {0xff, 0x77, 0x08}, 23, 113},
    {"pop rsp", {0x5c}, 10, 47},
    {"cli", {0xfa}, 3, 28},
    {"swapgs", {0x0f, 0x01, 0xf8}, 7, 60},
    {"push rbx", {0x53}, 11, 54},
    {"pop rbx", {0x5b}, 11, 51},
    {"addsd xmm0, xmm1", {0xf2, 0x0f, 0x58, 0xc1}, 3, 19},
    {"movups xmm0, [rsi]", {0x0f, 0x10, 0x06}, 12, 63},
    {"fmulp", {0xde, 0xc9}, 5, 41},
    {"fcomi st, st(1)", {0xdb, 0xf1}, 5, 41},
    {"fcmovb st, st(1)", {0xda, 0xc1}, 10, 59},
    {"fld qword [rsi+8]", {0xdd, 0x46, 0x08}, 16, 101},
    {"fstp tbyte [rsi]", {0xdb, 0x3e}, 16, 99},
    {"fnstsw ax", {0xdf, 0xe0}, 3, 17},
    {"fldcw [rsi]", {0xd9, 0x2e}, 17, 95},
    {"fwait", {0x9b}, 2, 15},
    {"paddb mm0, mm1", {0x0f, 0xfc, 0xc1}, 3, 18},
    {"movq mm0, [rsi]", {0x0f, 0x6f, 0x06}, 12, 63},
    {"emms", {0x0f, 0x77}, 3, 17},
    {"andn eax, ebx, ecx", {0xc4, 0xe2, 0x60, 0xf2, 0xc1}, 1, 5},
    {"blsr r9, [rdi]", {0xc4, 0xe2, 0xb0, 0xf3, 0x0f}, 10, 49},
    {"bzhi rax, rsp, r10", {0xc4, 0xe2, 0xa8, 0xf5, 0xc4}, 1, 5},
    {"pext rax, rbx, [rsi]", {0xc4, 0xe2, 0xe2, 0xf5, 0x06}, 10, 49},
    {"mulx rax, rbx, rcx", {0xc4, 0xe2, 0xe3, 0xf6, 0xc1}, 1, 5},
    {"rorx rax, rbx, 5", {0xc4, 0xe3, 0xfb, 0xf0, 0xc3, 0x05}, 1, 6},
    {"shlx eax, [rsi], ecx", {0xc4, 0xe2, 0x71, 0xf7, 0x06}, 10, 49},
    {"adcx rax, rbx", {0x66, 0x48, 0x0f, 0x38, 0xf6, 0xc3}, 6, 24},
    {"crc32 eax, sil", {0xf2, 0x40, 0x0f, 0x38, 0xf0, 0xc6}, 1, 6},
    {"movbe rax, [rsi]", {0x48, 0x0f, 0x38, 0xf0, 0x06}, 10, 49},
    {"cmpxchg8b [rdi]", {0x0f, 0xc7, 0x0f}, 10, 49},
    {"lock cmpxchg16b [rdi]", {0xf0, 0x48, 0x0f, 0xc7, 0x0f}, 12, 60},
    {"bt [rdi], rax", {0x48, 0x0f, 0xa3, 0x07}, 17, 75},
    {"lock bts [rdi+8], eax", {0xf0, 0x0f, 0xab, 0x47, 0x08}, 17, 78},
    {"xlat", {0xd7}, 13, 60},
    {"movsq", {0x48, 0xa5}, 26, 128},
    {"stosb", {0xaa}, 13, 66},
    {"lodsd", {0xad}, 13, 66},
    {"cmpsb", {0xa6}, 26, 125},
    {"scasw", {0x66, 0xaf}, 13, 67},
    {"rep movsb", {0xf3, 0xa4}, 4, 26},
    {"rep stosq", {0xf3, 0x48, 0xab}, 4, 26},
    {"cld", {0xfc}, 1, 13},
    {"pushfq", {0x9c}, 20, 91},
    {"stac", {0x0f, 0x01, 0xcb}, 7, 60},
    {"clac", {0x0f, 0x01, 0xca}, 7, 60},
    {"pause", {0xf3, 0x90}, 4, 26},
    {"lea rax, [rbx-0x80000000]", {0x48, 0x8d, 0x83, 0, 0, 0, 0x80}, 1, 7},
    {"lea eax, [ebx+ecx*2+1]", {0x67, 0x8d, 0x44, 0x4b, 0x01}, 1, 4},
    {"lea rax, [r9d-1]", {0x67, 0x49, 0x8d, 0x41, 0xff}, 1, 4},
    {"rdtsc", {0x0f, 0x31}, 11, 57},
    {"rdtscp", {0x0f, 0x01, 0xf9}, 13, 68},
    {"rdpid rax", {0xf3, 0x0f, 0xc7, 0xf8}, 1, 9},
    {"xgetbv", {0x0f, 0x01, 0xd0}, 6, 39},
    {"rdfsbase rax", {0xf3, 0x48, 0x0f, 0xae, 0xc0}, 3, 24},
    {"wrgsbase rax", {0xf3, 0x48, 0x0f, 0xae, 0xd8}, 10, 56},
    {"clflushopt [rdi]", {0x66, 0x0f, 0xae, 0x3f}, 9, 42},
    {"mov eax, ds", {0x8c, 0xd8}, 1, 9},
    {"mov rax, cr3", {0x0f, 0x20, 0xd8}, 3, 24},
};

TEST(TranslationSize, IsWhatItWas) {
  std::string now;
  bool same = true;
  for (const Golden& g : goldens) {
    std::vector<u8> bytes = g.bytes;
    bytes.insert(bytes.end(), {0x31, 0xd2}); // xor edx, edx
    const Translated t(bytes);
    EXPECT_TRUE(t.native(0)) << g.text;
    const bool is = t.size(0) == g.host_bytes && t.instructions(0) == g.host_instructions;
    same &= is;
    now += fmt::format("{}: {} instructions, {} bytes", g.text, t.instructions(0), t.size(0));
    now += is ? "\n" : fmt::format("  <- was {}, {}\n", g.host_instructions, g.host_bytes);
  }
  EXPECT_TRUE(same) << now;
}

TEST(TranslationSize, HeadOfABlock) {
  EXPECT_EQ(Translated({0x31, 0xd2}).head(), 25u) << "nobody wants the flags";
  EXPECT_EQ(Translated({0x73, 0x02}).head(), 44u) << "JNC wants them";
}

TEST(TranslationSize, EndsOfBlocks) { EXPECT_TRUE(Translated({0x9d}).native(0)) << "popfq"; }

TEST(TranslationSize, WhatIsNotCopied) {
  // Divisions of bytes are rare, far returns change segments.
  EXPECT_FALSE(Translated({0xf6, 0xf3}).native(0)) << "div bl";
  EXPECT_FALSE(Translated({0x48, 0xcb}).native(0)) << "retf";
  EXPECT_FALSE(Translated({0x8a, 0x23}).native(0)) << "mov ah, [rbx]";
  EXPECT_FALSE(Translated({0xf3, 0xa6}).native(0)) << "repe cmpsb";
  EXPECT_FALSE(Translated({0x64, 0xa4}).native(0)) << "movsb from fs:[rsi]";
  EXPECT_FALSE(Translated({0x0f, 0x22, 0xd8}).native(0)) << "mov cr3, rax";
  EXPECT_FALSE(Translated({0x44, 0x0f, 0x20, 0xc0}).native(0)) << "mov rax, cr8";
  EXPECT_FALSE(Translated({0x66, 0x9d}).native(0)) << "popf";
  EXPECT_TRUE(Translated({0x88, 0xe3}).native(0)) << "mov bl, ah";
  // These write or read FOP, FIP and FDP, which are in CpuState.
  EXPECT_FALSE(Translated({0xd9, 0x36}).native(0)) << "fnstenv [rsi]";
  EXPECT_FALSE(Translated({0xdd, 0x26}).native(0)) << "frstor [rsi]";
  EXPECT_FALSE(Translated({0xdb, 0xe3}).native(0)) << "fninit";
}

// What a lookup has found is kept for the third instruction, which the second one's would take away.
TEST(TranslationSize, SharedLookups) {
  // mov rax, [rdi]; mov rcx, [rsi]; mov rbx, [rdi+8]; xor edx, edx
  const Translated t({0x48, 0x8b, 0x07, 0x48, 0x8b, 0x0e, 0x48, 0x8b, 0x5f, 0x08, 0x31, 0xd2});
  EXPECT_EQ(t.instructions(0), 11u);
  EXPECT_EQ(t.instructions(1), 10u);
  EXPECT_EQ(t.instructions(2), 4u);
  EXPECT_EQ(t.size(2), 19u);
}

// The level is asked for once a block, and so are the last instruction's address and opcode written.
TEST(TranslationSize, X87InARow) {
  const Translated t({0xd9, 0xe8, 0xd9, 0xeb, 0xde, 0xc1, 0x31, 0xd2}); // fld1; fldpi; faddp; xor edx, edx
  EXPECT_EQ(t.size(0), 17u);
  EXPECT_EQ(t.size(1), 2u);
  EXPECT_EQ(t.size(2), 26u);
}

// Guest R9 to R11 borrow the places of registers that the block does not use; a block of all sixteen ends
// before there are none left.
TEST(TranslationSize, BorrowedRegisters) {
  EXPECT_TRUE(Translated({0x4d, 0x01, 0xd1, 0x31, 0xd2}).native(0)) << "add r9, r10";
  const Translated all({0x48, 0x01, 0xc8, 0x48, 0x01, 0xd3, 0x48, 0x01, 0xee, 0x4c, 0x01, 0xc7, 0x4d,
                        0x01, 0xe5, 0x4d, 0x01, 0xfe, 0x4d, 0x01, 0xd1, 0x4d, 0x01, 0xdb, 0x31, 0xd2});
  EXPECT_EQ(all.count(), 6u) << "up to ADD R9, R10";
}

} // namespace
} // namespace ring3::x86::jit
