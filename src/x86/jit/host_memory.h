// SPDX-License-Identifier: Apache-2.0
// Registers and memory operands of host instructions.
#pragma once

#include "base/types.h"

namespace ring3::x86::jit {

// Host registers have the numbers of their encoding, as in Gpr.
using HostReg = u8;
constexpr HostReg no_reg = 0xff;

// [base + index << scale + disp], or GS:[disp].
struct HostMem {
  HostReg base = no_reg;
  HostReg index = no_reg; // never RSP, which cannot be one
  u8 scale = 0;           // shift count
  s32 disp = 0;
  bool gs = false;

  static constexpr HostMem in_cpu(s32 displacement) { return {.disp = displacement, .gs = true}; }
  static constexpr HostMem at(HostReg base, s32 displacement = 0) {
    return {.base = base, .disp = displacement};
  }
};

} // namespace ring3::x86::jit
