// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/signal_frame.h"

#include <cpuid.h>
#include <cstring>

namespace ring3::x86::jit {

namespace {

enum Component : unsigned { sse = 1, avx = 2, opmask = 5, zmm_high = 6, zmm_16_up = 7 };
constexpr u64 mxcsr_at = 24, xmm_at = 160, header_at = 512;
// struct _fpx_sw_bytes, at the end of the FXSAVE area, with which the kernel says that there is more.
constexpr u64 software_at = 464;
constexpr u32 magic = 0x46505853; // FP_XSTATE_MAGIC1

} // namespace

SignalFrame::SignalFrame() {
  for (unsigned i = avx; i < components; ++i) {
    u32 size = 0;
    u32 offset = 0;
    u32 c = 0;
    u32 d = 0;
    if (__get_cpuid_count(0xd, i, &size, &offset, &c, &d) != 0 && size != 0) offset_[i] = offset;
  }
}

void SignalFrame::read(const void* frame, VectorState& out, u32& mxcsr) const {
  const auto* const at = static_cast<const u8*>(frame);
  out = VectorState{};
  std::memcpy(&mxcsr, at + mxcsr_at, sizeof mxcsr);
  for (unsigned r = 0; r < 16; ++r) std::memcpy(out.zmm[r], at + xmm_at + r * 16, 16);
  u32 found = 0;
  std::memcpy(&found, at + software_at, sizeof found);
  if (found != magic) return;
  u64 present = 0;
  std::memcpy(&present, at + header_at, sizeof present);
  const auto has = [&](Component c) { return (present >> c & 1) != 0 && offset_[c] != 0; };
  for (unsigned r = 0; r < 16; ++r) {
    if (has(avx)) std::memcpy(out.zmm[r] + 16, at + offset_[avx] + r * 16, 16);
    if (has(zmm_high)) std::memcpy(out.zmm[r] + 32, at + offset_[zmm_high] + r * 32, 32);
    if (has(zmm_16_up)) std::memcpy(out.zmm[r + 16], at + offset_[zmm_16_up] + r * 64, 64);
  }
  if (has(opmask)) std::memcpy(out.k, at + offset_[opmask], sizeof out.k);
}

void SignalFrame::read_x87(const void* frame, X87State& out) {
  X87State image;
  std::memcpy(&image, frame, sizeof image);
  out.fcw = image.fcw;
  out.fsw = image.fsw;
  out.ftw = image.ftw;
  std::memcpy(out.st, image.st, sizeof out.st);
}

} // namespace ring3::x86::jit
