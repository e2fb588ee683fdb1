// SPDX-License-Identifier: Apache-2.0
// Exception vectors and the guest-visible fault as a value (SDM vol. 3, 6.3 and 6.15).
#pragma once

#include "base/types.h"

namespace ring3::x86 {

enum class Vector : u8 {
  de = 0,
  db = 1,
  nmi = 2,
  bp = 3,
  of = 4,
  br = 5,
  ud = 6,
  nm = 7,
  df = 8,
  ts = 10,
  np = 11,
  ss = 12,
  gp = 13,
  pf = 14,
  mf = 16,
  ac = 17,
  mc = 18,
  xm = 19,
  ve = 20,
  cp = 21,
};

constexpr bool has_error_code(Vector v) {
  switch (v) {
  case Vector::df:
  case Vector::ts:
  case Vector::np:
  case Vector::ss:
  case Vector::gp:
  case Vector::pf:
  case Vector::ac:
  case Vector::cp: return true;
  default: return false;
  }
}

struct Fault {
  Vector vector = Vector::ud;
  u32 error_code = 0;
  u64 cr2 = 0;             // #PF only
  u64 dr6_bits = 0;        // #DB only: the bits this one sets
  bool trap = false;       // reported after the instruction: the saved RF is not set
  bool reinjected = false; // CR2, DR6, DR7 and RF already are as the handler shall see them
};

// Page-fault error code bits (SDM vol. 3, 4.7).
namespace pf {
constexpr u32 present = 1, write = 2, user = 4, reserved = 8, fetch = 16, protection_key = 32,
              shadow_stack = 64;
} // namespace pf

// DR6 bits (SDM vol. 3, 17.2.3).
namespace dr6 {
constexpr u64 b0 = 1, bd = u64{1} << 13, bs = u64{1} << 14, bt = u64{1} << 15;
constexpr u64 fixed1 = 0xffff0ff0;
} // namespace dr6

} // namespace ring3::x86
