// SPDX-License-Identifier: Apache-2.0
// The XSAVE family: images that this processor accepts and makes, round trips, and refusals.
#include "guest_cpu.h"
#include "x86/cpu/xsave_layout.h"
#include "x86/interp/host_code.h"

#include <cpuid.h>
#include <random>

namespace ring3::x86::test {

namespace {

using namespace xsave;

class StateSave : public testing::Test {
 protected:
  static constexpr u64 area = GuestCpu::data + 0x4000;

  StateSave() {
    s().regs[rsi] = area;
    s().regs[rax] = s().regs[rdx] = 0xffffffff;
    randomise();
  }
  CpuState& s() { return guest_.state(); }
  void randomise() {
    for (auto& z : s().vector.zmm) {
      for (u8& b : z) b = static_cast<u8>(random_());
    }
    for (u64& k : s().vector.k) k = random_();
    for (auto& st : s().x87.st) {
      std::memset(st, 0, 16);
      for (unsigned i = 0; i < 10; ++i) st[i] = static_cast<u8>(random_());
    }
    s().x87.fsw = 0x1800;
    s().x87.ftw = 0x5a;
    s().x87.mxcsr = 0x1fa0;
    s().pkru = 0x55555554;
  }
  void clear() {
    for (unsigned i = 0; i < 10; ++i) {
      if ((supported_xcr0 >> i & 1) != 0) initialise(s(), i);
    }
    s().x87.mxcsr = 0x1f80;
  }
  bool same(const VectorState& v, const X87State& x) {
    return std::memcmp(&v, &s().vector, sizeof v) == 0 && std::memcmp(&x, &s().x87, sizeof x) == 0;
  }

  GuestCpu guest_;
  std::mt19937_64 random_{7};
};

const std::vector<u8> save64{0x48, 0x0f, 0xae, 0x26}, restore64{0x48, 0x0f, 0xae, 0x2e},
    saveopt64{0x48, 0x0f, 0xae, 0x36}, savec64{0x48, 0x0f, 0xc7, 0x26}, saves64{0x48, 0x0f, 0xc7, 0x2e},
    restores64{0x48, 0x0f, 0xc7, 0x1e};

TEST_F(StateSave, RoundTrips) {
  kvm_cpuid_entry2 xsavec{};
  xsavec.function = 0xd;
  xsavec.index = 1;
  xsavec.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
  xsavec.eax = 0xf;
  guest_.cpu->cpuid.set({&xsavec, 1});
  for (const auto& [save, restore] :
       {std::pair(save64, restore64), {saveopt64, restore64}, {savec64, restore64}, {saves64, restores64}}) {
    randomise();
    std::memset(&GuestCpu::at<u8>(area), 0, max_size);
    const VectorState v = s().vector;
    const X87State x = s().x87;
    EXPECT_EQ(guest_.execute(save), Step::next);
    EXPECT_EQ(GuestCpu::at<u64>(area + 512), supported_xcr0);
    clear();
    EXPECT_EQ(in_use(s()), 0U);
    EXPECT_NE(guest_.execute(restore), Step::abort);
    EXPECT_TRUE(same(v, x));
    EXPECT_EQ(s().pkru, 0x55555554U);
  }
}

TEST_F(StateSave, InitialComponents) {
  clear();
  std::memset(&GuestCpu::at<u8>(area), 0, max_size);
  s().vector.zmm[3][17] = 1;
  EXPECT_EQ(guest_.execute(save64), Step::next);
  EXPECT_EQ(GuestCpu::at<u64>(area + 512), bit(component::avx));
  EXPECT_EQ(GuestCpu::at<u8>(area + 576 + 3 * 16 + 1), 1);
  randomise();
  EXPECT_NE(guest_.execute(restore64), Step::abort);
  EXPECT_EQ(in_use(s()), bit(component::avx));
  // MXCSR is loaded with SSE or AVX whatever XSTATE_BV says.
  EXPECT_EQ(s().x87.mxcsr, 0x1f80U);
}

TEST_F(StateSave, Refusals) {
  std::memset(&GuestCpu::at<u8>(area), 0, max_size);
  s().regs[rsi] = area + 32;
  EXPECT_TRUE((guest_.execute(save64), guest_.faulted(Vector::gp)));
  s().regs[rsi] = area;
  GuestCpu::at<u64>(area + 512) = bit(10);
  EXPECT_TRUE((guest_.execute(restore64), guest_.faulted(Vector::gp)));
  GuestCpu::at<u64>(area + 512) = 0;
  GuestCpu::at<u64>(area + 528) = 1;
  EXPECT_TRUE((guest_.execute(restore64), guest_.faulted(Vector::gp)));
  GuestCpu::at<u64>(area + 528) = 0;
  GuestCpu::at<u32>(area + 24) = 0x10000;
  EXPECT_TRUE((guest_.execute(restore64), guest_.faulted(Vector::gp)));
  EXPECT_TRUE((guest_.execute({0x0f, 0xae, 0x56, 0x18}), guest_.faulted(Vector::gp))); // ldmxcsr [rsi + 24]
  EXPECT_TRUE((guest_.execute({0x0f, 0xae, 0x0e}), guest_.faulted(Vector::gp)));       // fxrstor
  EXPECT_TRUE((guest_.execute(restores64), guest_.faulted(Vector::gp)));               // not compacted
  GuestCpu::at<u32>(area + 24) = 0x1f80;
  EXPECT_NE(guest_.execute(restore64), Step::abort);
  s().cpl = 3;
  EXPECT_TRUE((guest_.execute(saves64), guest_.faulted(Vector::gp)));
  s().cpl = 0;
  s().cr0 |= cr0::ts;
  EXPECT_TRUE((guest_.execute(save64), guest_.faulted(Vector::nm)));
  s().cr4 &= ~cr4::osxsave;
  EXPECT_TRUE((guest_.execute(save64), guest_.faulted(Vector::ud)));
  s().cr0 &= ~cr0::ts;
  // All or nothing: the second page is missing.
  s().cr4 |= cr4::osxsave;
  s().regs[rsi] = GuestCpu::hole - 1024;
  GuestCpu::at<u64>(GuestCpu::hole - 1024) = 0x1234;
  EXPECT_TRUE((guest_.execute(save64), guest_.faulted(Vector::pf)));
  EXPECT_EQ(GuestCpu::at<u64>(GuestCpu::hole - 1024), 0x1234U);
}

TEST_F(StateSave, FxsaveAndMxcsr) {
  const VectorState v = s().vector;
  const X87State x = s().x87;
  EXPECT_EQ(guest_.execute({0x48, 0x0f, 0xae, 0x06}), Step::next); // fxsave64
  // The processor reads it as we do.
  alignas(16) u8 image[512];
  std::memcpy(image, &GuestCpu::at<u8>(area), 512);
  std::memset(image + 8, 0, 16);
  alignas(16) u8 own[512], back[512] = {};
  asm volatile("fxsave64 %0\n\tfxrstor64 %2\n\tfxsave64 %1\n\tfxrstor64 %0"
               : "=m"(own), "=m"(back)
               : "m"(image)
               : "memory");
  EXPECT_EQ(std::memcmp(back, image, 8), 0);
  EXPECT_EQ(std::memcmp(back + 24, image + 24, 4), 0);
  EXPECT_EQ(std::memcmp(back + 32, image + 32, 384), 0);
  clear();
  EXPECT_EQ(guest_.execute({0x48, 0x0f, 0xae, 0x0e}), Step::next); // fxrstor64
  EXPECT_EQ(std::memcmp(&s().x87, &x, sizeof x), 0);
  for (unsigned i = 0; i < 16; ++i) EXPECT_EQ(std::memcmp(s().vector.zmm[i], v.zmm[i], 16), 0);
  s().x87.mxcsr = 0x9fc0;
  EXPECT_EQ(guest_.execute({0x0f, 0xae, 0x1e}), Step::next); // stmxcsr [rsi]
  s().x87.mxcsr = 0x1f80;
  EXPECT_EQ(guest_.execute({0xc5, 0xf8, 0xae, 0x16}), Step::next); // vldmxcsr [rsi]
  EXPECT_EQ(s().x87.mxcsr, 0x9fc0U);
}

// The processor's own XSAVE image of registers that we describe, component by component.
TEST_F(StateSave, HostImage) {
  if (!host::has_avx()) GTEST_SKIP() << "no AVX here";
  alignas(64) u8 own[4096] = {}, image[4096] = {};
  store(s(), component::x87, reinterpret_cast<std::byte*>(image));
  store(s(), component::sse, reinterpret_cast<std::byte*>(image));
  store_raw<u32>(image + 24, 0x1f80);
  std::memset(image + 8, 0, 16);
  u64 mask = 3;
  for (const Component& c : components) {
    if (c.index == component::pkru || (c.index != component::avx && !host::has_avx512())) continue;
    u32 size, offset, flags, d;
    __cpuid_count(0xd, c.index, size, offset, flags, d);
    EXPECT_EQ(size, c.size);
    EXPECT_EQ((flags & 2) != 0, c.align64);
    store(s(), c.index, reinterpret_cast<std::byte*>(image + offset));
    mask |= bit(c.index);
  }
  store_raw<u64>(image + 512, mask);
  u32 low = static_cast<u32>(mask);
  alignas(64) u8 saved[4096] = {};
  asm volatile("xsave64 (%[saved])\n\txrstor64 (%[image])\n\txsave64 (%[own])\n\txrstor64 (%[saved])"
               :
               : [saved] "r"(saved), [image] "r"(image), [own] "r"(own), "a"(low), "d"(0)
               : "memory");
  std::memset(own + 8, 0, 16);
  std::memset(own + 28, 0, 4);
  EXPECT_EQ(std::memcmp(own, image, 464), 0);
  EXPECT_EQ(std::memcmp(own + 512, image + 512, 4096 - 512), 0);
}

TEST_F(StateSave, CompactedLayout) {
  EXPECT_EQ(compacted_offset(supported_xcr0, component::avx), 576U);
  EXPECT_EQ(compacted_offset(supported_xcr0, component::opmask), 832U);
  EXPECT_EQ(compacted_offset(supported_xcr0, component::zmm_hi256), 896U);
  EXPECT_EQ(compacted_offset(supported_xcr0, component::pkru), 2432U);
  EXPECT_EQ(compacted_size(supported_xcr0), 2440U);
  EXPECT_EQ(standard_size(7), 832U);
  EXPECT_TRUE(valid_xcr0(7));
  EXPECT_FALSE(valid_xcr0(5));
  EXPECT_FALSE(valid_xcr0(0x27));
  EXPECT_TRUE(valid_xcr0(0xe7));
}

} // namespace

} // namespace ring3::x86::test
