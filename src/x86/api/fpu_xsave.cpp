// SPDX-License-Identifier: Apache-2.0
// KVM_GET/SET_FPU, XSAVE and XCRS (api.rst 4.22, 4.23, 4.42 to 4.45).
#include "x86/api/vcpu.h"
#include "x86/cpu/xsave_layout.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ring3::x86 {

int Vcpu::get_fpu(kvm_fpu& out) {
  const CpuState& s = cpu_.state;
  out = {};
  for (unsigned i = 0; i < 8; ++i) std::memcpy(out.fpr[i], s.x87.st[i], 16);
  out.fcw = s.x87.fcw;
  out.fsw = s.x87.fsw;
  out.ftwx = s.x87.ftw;
  out.last_opcode = s.x87.fop;
  out.last_ip = s.x87.fip;
  out.last_dp = s.x87.fdp;
  for (unsigned i = 0; i < 16; ++i) std::memcpy(out.xmm[i], s.vector.zmm[i], 16);
  out.mxcsr = s.x87.mxcsr;
  return 0;
}

int Vcpu::set_fpu(const kvm_fpu& in) {
  if ((in.mxcsr & ~xsave::mxcsr_mask) != 0) return -EINVAL;
  CpuState& s = cpu_.state;
  for (unsigned i = 0; i < 8; ++i) std::memcpy(s.x87.st[i], in.fpr[i], 16);
  s.x87.fcw = in.fcw;
  s.x87.fsw = in.fsw;
  s.x87.ftw = in.ftwx;
  s.x87.fop = in.last_opcode;
  s.x87.fip = in.last_ip;
  s.x87.fdp = in.last_dp;
  for (unsigned i = 0; i < 16; ++i) std::memcpy(s.vector.zmm[i], in.xmm[i], 16);
  s.x87.mxcsr = in.mxcsr;
  return 0;
}

// struct kvm_xsave without the flexible array that C++ gives four bytes of its own.
constexpr u32 legacy_xsave_size = 4096;

u32 Vcpu::xsave_size() const {
  return std::max<u32>(legacy_xsave_size, xsave::standard_size(cpu_.cpuid.xcr0_allowed()));
}

int Vcpu::get_xsave(std::span<std::byte> area) {
  if (area.size() < legacy_xsave_size) return -EINVAL;
  std::ranges::fill(area, std::byte{0});
  alignas(64) std::array<std::byte, xsave::max_size> image{};
  xsave::store_standard(cpu_.state, cpu_.cpuid.xcr0_allowed(), image);
  std::copy_n(image.begin(), std::min(area.size(), image.size()), area.begin());
  return 0;
}

int Vcpu::set_xsave(std::span<const std::byte> area) {
  if (area.size() < legacy_xsave_size) return -EINVAL;
  alignas(64) std::array<std::byte, xsave::max_size> image{};
  std::copy_n(area.begin(), std::min(area.size(), image.size()), image.begin());
  // All that the hypervisor can hold, whatever the guest's CPUID says: VMMs may restore state before they set
  // it.
  if (!xsave::load_standard(cpu_.state, xsave::supported_xcr0, image)) return -EINVAL;
  cpu_.mmu.flush_all(); // PKRU is in it
  return 0;
}

// XCR0 is there for the VMM whatever the guest's CPUID says: the host has it.
int Vcpu::get_xcrs(kvm_xcrs& out) {
  out = {};
  out.nr_xcrs = 1;
  out.xcrs[0].xcr = 0;
  out.xcrs[0].value = cpu_.state.xcr0;
  return 0;
}

int Vcpu::set_xcrs(const kvm_xcrs& in) {
  if (in.nr_xcrs > KVM_MAX_XCRS || in.flags != 0) return -EINVAL;
  for (u32 i = 0; i < in.nr_xcrs; ++i) {
    if (in.xcrs[i].xcr != 0) continue; // only XCR0 is known; others are skipped as KVM does
    const u64 v = in.xcrs[i].value;
    if (!xsave::valid_xcr0(v) || (v & ~cpu_.cpuid.xcr0_allowed()) != 0) return -EINVAL;
    cpu_.state.xcr0 = v;
    break;
  }
  return 0;
}

} // namespace ring3::x86
