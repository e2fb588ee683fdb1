// SPDX-License-Identifier: Apache-2.0
// Copies x87 instructions. The guest's x87 registers are the host's own; FOP, FIP and FDP are not: what a
// processor keeps of them differs from one to the next, so translated code writes them to CpuState.
#pragma once

#include "x86/decode/decoded.h"
#include "x86/decode/insn.h"
#include "x86/jit/emitter.h"
#include "x86/jit/flag_use.h"

#include <optional>

namespace ring3::x86::jit {

// How an instruction runs while x87 state is in the host's registers (vector_level::x87), where no exception
// is pending or can come.
struct X87Form {
  enum class Kind : u8 {
    copied,
    load_control, // FLDCW: a word that unmasks exceptions is the handler's
    wait,         // FWAIT: nothing is pending
    nothing,      // FNOP
  };
  Kind kind = Kind::copied;
  u8 memory_bytes = 0;
};

// Null: it is left to its handler.
std::optional<X87Form> x87_form(const Decoded& d, const Insn& in);

// Does it become the last instruction, of which FOP and FIP are?
bool sets_x87_pointers(const Insn& in);

FlagUse x87_flag_use(const Decoded& d);

// `memory` is null if the instruction has no memory operand.
void copy_x87(Emitter& e, const Decoded& d, const HostMem* memory);

} // namespace ring3::x86::jit
