// SPDX-License-Identifier: Apache-2.0
// A debugger outside the guest: what it watches, and where it has stopped a CPU (KVM_SET_GUEST_DEBUG, api.rst
// 4.87). The guest's own debug registers and TF are not touched by it, and the guest sees nothing of it.
#pragma once

#include "base/types.h"
#include "x86/cpu/exceptions.h"

#include <array>

namespace ring3::x86 {

struct GuestDebug {
  bool single_step = false;
  bool software_breakpoints = false; // INT3 is the debugger's
  bool hardware_breakpoints = false; // db and dr7 below count instead of the guest's
  bool block_interrupts = false;     // NMIs too
  std::array<u64, 4> db{};
  u64 dr7 = 0;

  // Does a #DB for these reasons, as DR6 has them, go to the debugger? An access that DR7.GD guards only if
  // the bit is the debugger's own.
  bool takes(u64 dr6_bits) const {
    return hardware_breakpoints || (single_step && (dr6_bits & dr6::bd) == 0);
  }
};

struct DebugStop {
  Vector vector = Vector::db; // or bp
  u64 dr6 = 0;
};

} // namespace ring3::x86
