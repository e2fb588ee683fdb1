// SPDX-License-Identifier: Apache-2.0
// CPUID feature bits by name: what instructions ask the guest's CPUID for (SDM vol. 2, CPUID; APM vol. 3,
// appendix E).
#pragma once

#include "base/types.h"

namespace ring3::x86 {

enum class CpuidReg : u8 { eax, ebx, ecx, edx };

// leaf, subleaf, register and bit packed so that a Feature is a value that tables can hold.
struct Feature {
  u32 leaf = 0;
  u8 subleaf = 0;
  CpuidReg reg = CpuidReg::eax;
  u8 bit = 0xff; // 0xff: always present

  constexpr bool operator==(const Feature&) const = default;
};

namespace feature {
constexpr Feature always{};
// clang-format off
constexpr Feature fpu{1,0,CpuidReg::edx,0}, vme{1,0,CpuidReg::edx,1}, de{1,0,CpuidReg::edx,2}, pse{1,0,CpuidReg::edx,3},
  tsc{1,0,CpuidReg::edx,4}, msr{1,0,CpuidReg::edx,5}, pae{1,0,CpuidReg::edx,6}, mce{1,0,CpuidReg::edx,7},
  cx8{1,0,CpuidReg::edx,8}, apic{1,0,CpuidReg::edx,9}, sep{1,0,CpuidReg::edx,11}, mtrr{1,0,CpuidReg::edx,12},
  pge{1,0,CpuidReg::edx,13}, mca{1,0,CpuidReg::edx,14}, cmov{1,0,CpuidReg::edx,15}, pat{1,0,CpuidReg::edx,16},
  pse36{1,0,CpuidReg::edx,17}, clfsh{1,0,CpuidReg::edx,19}, mmx{1,0,CpuidReg::edx,23}, fxsr{1,0,CpuidReg::edx,24},
  sse{1,0,CpuidReg::edx,25}, sse2{1,0,CpuidReg::edx,26}, htt{1,0,CpuidReg::edx,28};
constexpr Feature sse3{1,0,CpuidReg::ecx,0}, pclmulqdq{1,0,CpuidReg::ecx,1}, monitor{1,0,CpuidReg::ecx,3},
  ssse3{1,0,CpuidReg::ecx,9}, fma{1,0,CpuidReg::ecx,12}, cx16{1,0,CpuidReg::ecx,13}, pcid{1,0,CpuidReg::ecx,17},
  sse41{1,0,CpuidReg::ecx,19}, sse42{1,0,CpuidReg::ecx,20}, x2apic{1,0,CpuidReg::ecx,21}, movbe{1,0,CpuidReg::ecx,22},
  popcnt{1,0,CpuidReg::ecx,23}, tsc_deadline{1,0,CpuidReg::ecx,24}, aes{1,0,CpuidReg::ecx,25}, xsave{1,0,CpuidReg::ecx,26},
  osxsave{1,0,CpuidReg::ecx,27}, avx{1,0,CpuidReg::ecx,28}, f16c{1,0,CpuidReg::ecx,29}, rdrand{1,0,CpuidReg::ecx,30},
  hypervisor{1,0,CpuidReg::ecx,31};
constexpr Feature arat{6,0,CpuidReg::eax,2};
constexpr Feature fsgsbase{7,0,CpuidReg::ebx,0}, tsc_adjust{7,0,CpuidReg::ebx,1}, bmi1{7,0,CpuidReg::ebx,3},
  avx2{7,0,CpuidReg::ebx,5}, smep{7,0,CpuidReg::ebx,7}, bmi2{7,0,CpuidReg::ebx,8}, erms{7,0,CpuidReg::ebx,9},
  invpcid{7,0,CpuidReg::ebx,10}, avx512f{7,0,CpuidReg::ebx,16}, avx512dq{7,0,CpuidReg::ebx,17},
  rdseed{7,0,CpuidReg::ebx,18}, adx{7,0,CpuidReg::ebx,19}, smap{7,0,CpuidReg::ebx,20},
  avx512ifma{7,0,CpuidReg::ebx,21}, clflushopt{7,0,CpuidReg::ebx,23}, clwb{7,0,CpuidReg::ebx,24},
  avx512cd{7,0,CpuidReg::ebx,28}, sha{7,0,CpuidReg::ebx,29}, avx512bw{7,0,CpuidReg::ebx,30},
  avx512vl{7,0,CpuidReg::ebx,31};
constexpr Feature avx512vbmi{7,0,CpuidReg::ecx,1}, umip{7,0,CpuidReg::ecx,2}, pku{7,0,CpuidReg::ecx,3},
  ospke{7,0,CpuidReg::ecx,4}, avx512vbmi2{7,0,CpuidReg::ecx,6}, gfni{7,0,CpuidReg::ecx,8}, vaes{7,0,CpuidReg::ecx,9},
  vpclmulqdq{7,0,CpuidReg::ecx,10}, avx512vnni{7,0,CpuidReg::ecx,11}, avx512bitalg{7,0,CpuidReg::ecx,12},
  avx512vpopcntdq{7,0,CpuidReg::ecx,14}, la57{7,0,CpuidReg::ecx,16}, rdpid{7,0,CpuidReg::ecx,22},
  cldemote{7,0,CpuidReg::ecx,25}, pks{7,0,CpuidReg::ecx,31};
constexpr Feature fsrm{7,0,CpuidReg::edx,4}, avx512vp2intersect{7,0,CpuidReg::edx,8}, spec_ctrl{7,0,CpuidReg::edx,26},
  arch_capabilities{7,0,CpuidReg::edx,29}, serialize{7,0,CpuidReg::edx,14};
constexpr Feature avx_vnni{7,1,CpuidReg::eax,4}, avx512bf16{7,1,CpuidReg::eax,5};
constexpr Feature xsaveopt{0xd,1,CpuidReg::eax,0}, xsavec{0xd,1,CpuidReg::eax,1}, xgetbv1{0xd,1,CpuidReg::eax,2},
  xsaves{0xd,1,CpuidReg::eax,3};
constexpr Feature lahf_lm{0x80000001,0,CpuidReg::ecx,0}, abm{0x80000001,0,CpuidReg::ecx,5},
  sse4a{0x80000001,0,CpuidReg::ecx,6}, misalignsse{0x80000001,0,CpuidReg::ecx,7},
  prefetchw{0x80000001,0,CpuidReg::ecx,8};
constexpr Feature syscall{0x80000001,0,CpuidReg::edx,11}, nx{0x80000001,0,CpuidReg::edx,20},
  mmxext{0x80000001,0,CpuidReg::edx,22}, ffxsr{0x80000001,0,CpuidReg::edx,25}, pdpe1gb{0x80000001,0,CpuidReg::edx,26},
  rdtscp{0x80000001,0,CpuidReg::edx,27}, lm{0x80000001,0,CpuidReg::edx,29};
constexpr Feature clzero{0x80000008,0,CpuidReg::ebx,0}, rdpru{0x80000008,0,CpuidReg::ebx,4},
  wbnoinvd{0x80000008,0,CpuidReg::ebx,9};
// clang-format on
} // namespace feature

} // namespace ring3::x86
