// SPDX-License-Identifier: Apache-2.0
// Vector and x87 registers where a signal has interrupted this thread: the kernel keeps them in the signal's
// frame as XSAVE writes them (SDM vol. 1, 13.4; in the standard form).
#pragma once

#include "x86/cpu/state.h"

namespace ring3::x86::jit {

// Where XSAVE puts its components on this processor.
class SignalFrame {
 public:
  SignalFrame();

  // `frame`: mcontext_t::fpregs. Registers that the frame does not have are zero. Async-signal-safe.
  void read(const void* frame, VectorState& out, u32& mxcsr) const;
  // But for MXCSR, and FOP, FIP and FDP, which are not the guest's.
  static void read_x87(const void* frame, X87State& out);

 private:
  static constexpr unsigned components = 8;
  u32 offset_[components] = {};
};

} // namespace ring3::x86::jit
