// SPDX-License-Identifier: Apache-2.0
#include "x86/interp/x87_environment.h"

#include "x86/interp/vector_run.h"

namespace ring3::x86 {

namespace {

unsigned top_of(const X87State& x) { return x.fsw >> 11 & 7U; }

void update_summary(X87State& x) {
  x.fsw &= 0x7f7f;
  if (x87_exception_pending(x)) x.fsw |= 0x8080;
}

// The two-bit tag of a register that is not empty: valid, zero or special.
unsigned tag_of(const u8* st) {
  const u64 significand = load_raw<u64>(st);
  const unsigned exponent = load_raw<u16>(st + 8) & 0x7fffU;
  if (exponent == 0 && significand == 0) return 1;
  return exponent == 0 || exponent == 0x7fff || significand >> 63 == 0 ? 2 : 0;
}

u16 full_tags(const X87State& x) {
  unsigned tags = 0;
  for (unsigned physical = 0; physical < 8; ++physical) {
    const bool full = (x.ftw >> physical & 1) != 0;
    tags |= (full ? tag_of(x.st[(physical - top_of(x)) & 7]) : 3U) << (2 * physical);
  }
  return static_cast<u16>(tags);
}

} // namespace

void x87_set_control(X87State& x, unsigned fcw) {
  x.fcw = static_cast<u16>((fcw & 0x1f7f) | 0x40);
  update_summary(x);
}

void x87_initialise(X87State& x) {
  set_x87_top(x, 0);
  x.fcw = 0x37f;
  x.fsw = 0;
  x.ftw = 0;
  x.fop = 0;
  x.fip = x.fdp = 0;
}

unsigned x87_store_environment(const X87State& x, unsigned size, bool real, u8* out) {
  const u32 ip = static_cast<u32>(x.fip);
  const u32 dp = static_cast<u32>(x.fdp);
  const u16 words[3] = {x.fcw, x.fsw, full_tags(x)};
  if (size == 28) {
    for (unsigned i = 0; i < 3; ++i) store_raw<u32>(out + 4 * i, 0xffff0000U | words[i]);
    if (real) {
      store_raw<u32>(out + 12, 0xffff0000U | (ip & 0xffff));
      store_raw<u32>(out + 16, (ip >> 16) << 12 | x.fop);
      store_raw<u32>(out + 20, 0xffff0000U | (dp & 0xffff));
      store_raw<u32>(out + 24, (dp >> 16) << 12);
    } else {
      store_raw<u32>(out + 12, ip);
      store_raw<u32>(out + 16, u32{x.fop} << 16);
      store_raw<u32>(out + 20, dp);
      store_raw<u32>(out + 24, 0xffff0000U);
    }
    return size;
  }
  for (unsigned i = 0; i < 3; ++i) store_raw<u16>(out + 2 * i, words[i]);
  store_raw<u16>(out + 6, static_cast<u16>(ip));
  store_raw<u16>(out + 8, real ? static_cast<u16>((ip >> 16 & 15) << 12 | x.fop) : u16{0});
  store_raw<u16>(out + 10, static_cast<u16>(dp));
  store_raw<u16>(out + 12, real ? static_cast<u16>((dp >> 16 & 15) << 12) : u16{0});
  return size;
}

void x87_load_environment(X87State& x, unsigned size, bool real, const u8* in) {
  const unsigned step = size == 28 ? 4 : 2;
  const u16 fsw = load_raw<u16>(in + step);
  const unsigned tags = load_raw<u16>(in + 2 * step);
  set_x87_top(x, fsw >> 11 & 7U);
  x.fsw = fsw;
  x.ftw = 0;
  for (unsigned i = 0; i < 8; ++i) {
    if ((tags >> (2 * i) & 3) != 3) x.ftw |= static_cast<u8>(1U << i);
  }
  x.fop = 0;
  if (size == 28 && !real) {
    x.fip = load_raw<u32>(in + 12);
    x.fop = load_raw<u16>(in + 18) & 0x7ff;
    x.fdp = load_raw<u32>(in + 20);
  } else if (size == 28) {
    const u32 high = load_raw<u32>(in + 16);
    x.fip = load_raw<u16>(in + 12) | (high >> 12 & 0xffff) << 16;
    x.fop = high & 0x7ff;
    x.fdp = load_raw<u16>(in + 20) | (load_raw<u32>(in + 24) >> 12 & 0xffff) << 16;
  } else {
    x.fip = load_raw<u16>(in + 6);
    x.fdp = load_raw<u16>(in + 10);
    if (real) {
      x.fop = load_raw<u16>(in + 8) & 0x7ff;
      x.fip |= u64{load_raw<u16>(in + 8)} >> 12 << 16;
      x.fdp |= u64{load_raw<u16>(in + 12)} >> 12 << 16;
    }
  }
  x87_set_control(x, load_raw<u16>(in));
}

} // namespace ring3::x86
