// SPDX-License-Identifier: Apache-2.0
// Vector instructions that fault, or that a mask keeps from faulting.
#include "guest_cpu.h"
#include "x86/interp/host_code.h"

namespace ring3::x86::test {

namespace {

class VectorFault : public testing::Test {
 protected:
  CpuState& s() { return guest_.state(); }
  float& lane(unsigned reg, unsigned i) { return reinterpret_cast<float*>(s().vector.zmm[reg])[i]; }
  u32& word(unsigned reg, unsigned i) { return reinterpret_cast<u32*>(s().vector.zmm[reg])[i]; }
  static bool avx512() { return host::has_avx512bw() && host::has_feature(feature::avx512vl); }

  GuestCpu guest_;
};

#define NEEDS_AVX512()                                                                                       \
  if (!avx512()) GTEST_SKIP() << "no AVX-512 here"

TEST_F(VectorFault, UnmaskedSimdException) {
  lane(1, 0) = 1.0F;
  s().x87.mxcsr = 0x1f80 & ~0x200U;                           // division by zero
  EXPECT_EQ(guest_.execute({0x0f, 0x5e, 0xca}), Step::abort); // divps xmm1, xmm2
  EXPECT_TRUE(guest_.faulted(Vector::xm));
  EXPECT_EQ(lane(1, 0), 1.0F);
  EXPECT_EQ(s().x87.mxcsr & 0x3f, 5U); // 1/0 and 0/0
  s().cr4 &= ~cr4::osxmmexcpt;
  s().x87.mxcsr = 0x1f80 & ~0x200U;
  EXPECT_EQ(guest_.execute({0x0f, 0x5e, 0xca}), Step::abort);
  EXPECT_TRUE(guest_.faulted(Vector::ud));
  s().x87.mxcsr = 0x1f80;
  EXPECT_EQ(guest_.execute({0x0f, 0x5e, 0xca}), Step::next);
  EXPECT_EQ(word(1, 0), 0x7f800000U);
  // The host's own settings are as they were.
  u32 host;
  asm("stmxcsr %0" : "=m"(host));
  EXPECT_EQ(host & ~0x3fU, 0x1f80U);
}

TEST_F(VectorFault, Alignment) {
  s().regs[rsi] = GuestCpu::data + 8;
  EXPECT_EQ(guest_.execute({0x0f, 0x28, 0x0e}), Step::abort); // movaps xmm1, [rsi]
  EXPECT_TRUE(guest_.faulted(Vector::gp));
  EXPECT_EQ(guest_.execute({0x0f, 0x58, 0x0e}), Step::abort); // addps
  EXPECT_TRUE(guest_.faulted(Vector::gp));
  EXPECT_EQ(guest_.execute({0x0f, 0x29, 0x0e}), Step::abort); // movaps [rsi], xmm1
  EXPECT_TRUE(guest_.faulted(Vector::gp));
  EXPECT_EQ(guest_.execute({0x0f, 0x10, 0x0e}), Step::next);                // movups
  EXPECT_EQ(guest_.execute({0xf3, 0x0f, 0x6f, 0x0e}), Step::next);          // movdqu
  EXPECT_EQ(guest_.execute({0x66, 0x0f, 0x3a, 0x63, 0x0e, 0}), Step::next); // pcmpistri
  EXPECT_EQ(guest_.execute({0xc5, 0xf0, 0x58, 0x0e}), Step::next);          // vaddps
  EXPECT_EQ(guest_.execute({0xc5, 0xf8, 0x28, 0x0e}), Step::abort);         // vmovaps
  EXPECT_TRUE(guest_.faulted(Vector::gp));
}

TEST_F(VectorFault, StateNotEnabled) {
  const std::vector<u8> addps{0x0f, 0x58, 0xca}, vaddps{0xc5, 0xf0, 0x58, 0xca}, paddb{0x0f, 0xfc, 0xca},
      evex{0x62, 0xf1, 0x74, 0x48, 0x58, 0xca};
  const u64 cr0 = s().cr0;
  s().cr0 = cr0 | cr0::em;
  EXPECT_TRUE((guest_.execute(addps), guest_.faulted(Vector::ud)));
  EXPECT_TRUE((guest_.execute(paddb), guest_.faulted(Vector::ud)));
  EXPECT_EQ(guest_.execute(vaddps), Step::next);
  s().cr0 = cr0 | cr0::ts;
  for (const auto& code : {addps, vaddps, paddb, evex}) {
    if (code.size() == 6 && !avx512()) continue;
    EXPECT_TRUE((guest_.execute(code), guest_.faulted(Vector::nm)));
  }
  s().cr0 = cr0;
  s().xcr0 = 3;
  EXPECT_TRUE((guest_.execute(vaddps), guest_.faulted(Vector::ud)));
  s().xcr0 = 7;
  EXPECT_EQ(guest_.execute(vaddps), Step::next);
  EXPECT_TRUE((guest_.execute(evex), guest_.faulted(Vector::ud)));
  s().cr4 &= ~(cr4::osfxsr | cr4::osxsave);
  EXPECT_TRUE((guest_.execute(addps), guest_.faulted(Vector::ud)));
  EXPECT_TRUE((guest_.execute(vaddps), guest_.faulted(Vector::ud)));
  EXPECT_EQ(guest_.execute(paddb), Step::next);
  s().x87.fcw = 0x37e;
  s().x87.fsw = 0x8081;
  EXPECT_TRUE((guest_.execute(paddb), guest_.faulted(Vector::mf)));
}

TEST_F(VectorFault, MmxTurnsTheStack) {
  s().x87.fsw = 3 << 11;
  for (u8 i = 0; i < 8; ++i) s().x87.st[i][0] = i;           // ST(i) is register i + 3
  EXPECT_EQ(guest_.execute({0x0f, 0x6f, 0xcb}), Step::next); // movq mm1, mm3
  EXPECT_EQ(s().x87.fsw, 0);
  EXPECT_EQ(s().x87.ftw, 0xff);
  EXPECT_EQ(s().x87.st[1][0], 0);
  EXPECT_EQ(s().x87.st[1][9], 0xff);
  EXPECT_EQ(s().x87.st[0][0], 5);
  EXPECT_EQ(guest_.execute({0x0f, 0x77}), Step::next); // emms
  EXPECT_EQ(s().x87.ftw, 0);
}

TEST_F(VectorFault, MaskedElementsDoNotFault) {
  NEEDS_AVX512();
  // The upper eight elements lie in the hole.
  const u64 at = GuestCpu::hole - 32;
  s().regs[rsi] = at;
  for (unsigned i = 0; i < 8; ++i) GuestCpu::at<u32>(at + 4 * i) = 100 + i;
  const std::vector<u8> load{0x62, 0xf1, 0x7e, 0xc9, 0x6f, 0x0e};  // vmovdqu32 zmm1{k1}{z}, [rsi]
  const std::vector<u8> store{0x62, 0xf1, 0x7e, 0x49, 0x7f, 0x0e}; // vmovdqu32 [rsi]{k1}, zmm1
  s().vector.k[1] = 0xa5;
  EXPECT_EQ(guest_.execute(load), Step::next);
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(word(1, i), (0xa5 >> i & 1) != 0 ? 100 + i : 0);
  for (unsigned i = 0; i < 16; ++i) word(1, i) = 200 + i;
  EXPECT_EQ(guest_.execute(store), Step::next);
  for (unsigned i = 0; i < 8; ++i) {
    EXPECT_EQ(GuestCpu::at<u32>(at + 4 * i), ((0xa5 >> i & 1) != 0 ? 200 : 100) + i);
  }
  s().vector.k[1] = 0x100;
  EXPECT_TRUE((guest_.execute(load), guest_.faulted(Vector::pf)));
  EXPECT_EQ(guest_.cpu->fault.cr2, GuestCpu::hole);
  s().vector.k[1] = 0x101;
  GuestCpu::at<u32>(at) = 1;
  EXPECT_TRUE((guest_.execute(store), guest_.faulted(Vector::pf)));
  EXPECT_EQ(GuestCpu::at<u32>(at), 1U);
  // Permutations read everything.
  s().vector.k[1] = 1;
  EXPECT_TRUE((guest_.execute({0x62, 0xf2, 0x75, 0x49, 0x36, 0x16}), guest_.faulted(Vector::pf))); // vpermd
  s().vector.k[1] = 0;
  s().regs[rsi] = GuestCpu::hole;
  EXPECT_EQ(guest_.execute(load), Step::next);
  EXPECT_EQ(guest_.execute(store), Step::next);
  EXPECT_EQ(guest_.execute({0x62, 0xf1, 0x74, 0x59, 0x58, 0x16}),
            Step::next); // vaddps zmm2{k1}, zmm1, [rsi]{1to16}
  s().vector.k[1] = 0x8000;
  EXPECT_TRUE((guest_.execute({0x62, 0xf1, 0x74, 0x59, 0x58, 0x16}), guest_.faulted(Vector::pf)));
}

TEST_F(VectorFault, ConditionalMoves) {
  const u64 at = GuestCpu::hole - 8;
  s().regs[rsi] = s().regs[rdi] = at;
  GuestCpu::at<u64>(at) = 0x1111111122222222;
  word(2, 0) = word(2, 1) = 0x80000000;
  EXPECT_EQ(guest_.execute({0xc4, 0xe2, 0x69, 0x2c, 0x0e}), Step::next); // vmaskmovps xmm1, xmm2, [rsi]
  EXPECT_EQ(word(1, 0), 0x22222222U);
  EXPECT_EQ(word(1, 1), 0x11111111U);
  EXPECT_EQ(word(1, 2), 0U);
  word(1, 1) = 7;
  EXPECT_EQ(guest_.execute({0xc4, 0xe2, 0x69, 0x2e, 0x0e}), Step::next); // vmaskmovps [rsi], xmm2, xmm1
  EXPECT_EQ(GuestCpu::at<u64>(at), 0x0000000722222222U);
  word(2, 3) = 0x80000000;
  EXPECT_TRUE((guest_.execute({0xc4, 0xe2, 0x69, 0x2c, 0x0e}), guest_.faulted(Vector::pf)));
  word(2, 0) = 0x80008000;
  word(2, 1) = word(2, 3) = 0;
  word(1, 0) = 0xaabbccdd;
  EXPECT_EQ(guest_.execute({0x66, 0x0f, 0xf7, 0xca}), Step::next); // maskmovdqu xmm1, xmm2
  EXPECT_EQ(GuestCpu::at<u32>(at), 0xaa22cc22U);
}

TEST_F(VectorFault, CompressAndExpand) {
  NEEDS_AVX512();
  const u64 at = GuestCpu::hole - 12;
  s().regs[rsi] = at;
  for (unsigned i = 0; i < 16; ++i) word(1, i) = i;
  s().vector.k[1] = 0x8021;
  EXPECT_EQ(guest_.execute({0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x0e}), Step::next); // vpcompressd [rsi]{k1}, zmm1
  EXPECT_EQ(GuestCpu::at<u32>(at), 0U);
  EXPECT_EQ(GuestCpu::at<u32>(at + 4), 5U);
  EXPECT_EQ(GuestCpu::at<u32>(at + 8), 15U);
  EXPECT_EQ(guest_.execute({0x62, 0xf2, 0x7d, 0xc9, 0x89, 0x16}), Step::next); // vpexpandd zmm2{k1}{z}, [rsi]
  EXPECT_EQ(word(2, 5), 5U);
  EXPECT_EQ(word(2, 15), 15U);
  EXPECT_EQ(word(2, 4), 0U);
  s().vector.k[1] = 0x8421;
  EXPECT_TRUE((guest_.execute({0x62, 0xf2, 0x7d, 0x49, 0x8b, 0x0e}), guest_.faulted(Vector::pf)));
}

TEST_F(VectorFault, GatherStopsAndResumes) {
  const u64 base = GuestCpu::hole - 16;
  s().regs[rax] = base;
  for (unsigned i = 0; i < 4; ++i) GuestCpu::at<u32>(base + 4 * i) = 100 + i;
  const u32 index[4] = {3, 1, 4, 0}; // 4 is in the hole
  for (unsigned i = 0; i < 4; ++i) {
    word(3, i) = index[i];
    word(2, i) = i == 1 ? 0 : ~0U;
    word(1, i) = 7;
  }
  word(1, 4) = 9;
  const std::vector<u8> gather{0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x98}; // vpgatherdd xmm1, [rax + xmm3*4], xmm2
  EXPECT_TRUE((guest_.execute(gather), guest_.faulted(Vector::pf)));
  EXPECT_EQ(guest_.cpu->fault.cr2, GuestCpu::hole);
  EXPECT_EQ(word(1, 0), 103U);
  EXPECT_EQ(word(1, 1), 7U);
  EXPECT_EQ(word(1, 2), 7U);
  EXPECT_EQ(word(2, 0), 0U);
  EXPECT_EQ(word(2, 2), ~0U);
  word(3, 2) = 2;
  EXPECT_EQ(guest_.execute(gather), Step::next);
  EXPECT_EQ(word(1, 2), 102U);
  EXPECT_EQ(word(1, 3), 100U);
  EXPECT_EQ(word(1, 4), 0U);
  for (unsigned i = 0; i < 4; ++i) EXPECT_EQ(word(2, i), 0U);
}

TEST_F(VectorFault, ScatterStopsAndResumes) {
  NEEDS_AVX512();
  const u64 base = GuestCpu::hole - 16;
  s().regs[rax] = base - 4;
  for (unsigned i = 0; i < 16; ++i) {
    word(3, i) = i;
    word(1, i) = 500 + i;
  }
  s().vector.k[1] = 0x1b;
  const std::vector<u8> scatter{0x62, 0xf2, 0x7d, 0x49,
                                0xa0, 0x4c, 0x98, 0x01}; // vpscatterdd [rax+zmm3*4+4]{k1}, zmm1
  EXPECT_TRUE((guest_.execute(scatter), guest_.faulted(Vector::pf)));
  EXPECT_EQ(s().vector.k[1], 0x10U);
  EXPECT_EQ(GuestCpu::at<u32>(base), 500U);
  EXPECT_EQ(GuestCpu::at<u32>(base + 4), 501U);
  EXPECT_EQ(GuestCpu::at<u32>(base + 12), 503U);
  word(3, 4) = 2;
  EXPECT_EQ(guest_.execute(scatter), Step::next);
  EXPECT_EQ(s().vector.k[1], 0U);
  EXPECT_EQ(GuestCpu::at<u32>(base + 8), 504U);
  const std::vector<u8> gather{0x62, 0xf2, 0x7d, 0x4a,
                               0x91, 0x74, 0x98, 0x01}; // vpgatherqd ymm6{k2}, [rax+zmm3*4+4]
  for (unsigned i = 0; i < 8; ++i) reinterpret_cast<u64*>(s().vector.zmm[3])[i] = 3 - i % 4;
  s().vector.k[2] = 0xff;
  EXPECT_EQ(guest_.execute(gather), Step::next);
  EXPECT_EQ(word(6, 0), 503U);
  EXPECT_EQ(word(6, 7), 500U);
  EXPECT_EQ(word(6, 8), 0U);
}

// Addressing is all that differs: the same code serves, whatever form the guest used.
TEST_F(VectorFault, AddressingForms) {
  GuestCpu::at<u64>(GuestCpu::data + 0x120) = 0x123456789abcdef0;
  s().regs[r12] = GuestCpu::data;
  s().regs[r13] = 0x80;
  const std::vector<u8> sib{0xf3, 0x43, 0x0f, 0x7e, 0x4c, 0x6c, 0x20};  // movq xmm1, [r12 + r13*2 + 32]
  const std::vector<u8> vsib{0xc4, 0x01, 0x7a, 0x7e, 0x4c, 0x6c, 0x20}; // vmovq xmm9, ...
  EXPECT_EQ(guest_.execute(sib), Step::next);
  EXPECT_EQ(word(1, 1), 0x12345678U);
  EXPECT_EQ(guest_.execute(vsib), Step::next);
  EXPECT_EQ(word(9, 0), 0x9abcdef0U);
  s().regs[r12] = 0x55;
  EXPECT_EQ(guest_.execute({0x66, 0x41, 0x0f, 0x6e, 0xd4}), Step::next); // movd xmm2, r12d
  EXPECT_EQ(word(2, 0), 0x55U);
  s().regs[r13] = ~u64{0};
  EXPECT_EQ(guest_.execute({0x66, 0x44, 0x0f, 0xd7, 0xea}), Step::next); // pmovmskb r13d, xmm2
  EXPECT_EQ(s().regs[r13], 0U);
  guest_.flat32();
  s().regs[rcx] = GuestCpu::data;
  EXPECT_EQ(guest_.execute({0x0f, 0x10, 0x99, 0x20, 1, 0, 0}), Step::next); // movups xmm3, [ecx + 0x120]
  EXPECT_EQ(word(3, 0), 0x9abcdef0U);
  EXPECT_EQ(guest_.execute({0xc4, 0xe1, 0xf9, 0x6e, 0xe1}), Step::next); // vmovd xmm4, ecx with W set
  EXPECT_EQ(word(4, 0), static_cast<u32>(GuestCpu::data));
  EXPECT_EQ(word(4, 1), 0U);
}

} // namespace

} // namespace ring3::x86::test
