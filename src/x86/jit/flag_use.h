// SPDX-License-Identifier: Apache-2.0
// Which arithmetic flags instructions read and write (SDM vol. 1, appendix A), for those that the translator
// copies.
#pragma once

#include "x86/decode/decoded.h"

namespace ring3::x86::jit {

struct FlagUse {
  u64 reads = 0;          // RFLAGS bits whose value makes a difference, a kept one included
  u64 writes = 0;         // bits that are new whatever happens
  bool may_write = false; // depending on its operands, others too
};

// For everything it does not know: all are read, since an interpreted instruction finds them in the CPU's
// state and may fault there.
FlagUse flag_use(const Decoded& d);

// The flags that condition `cc` (the low four opcode bits) depends on.
u64 flags_of_condition(u8 cc);

} // namespace ring3::x86::jit
