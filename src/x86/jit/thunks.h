// SPDX-License-Identifier: Apache-2.0
// The code that all translations share: into the cache, out of it, and out for one instruction.
#pragma once

#include "x86/jit/emitter.h"
#include "x86/jit/layout.h"
#include "x86/jit/string_thunks.h"

namespace ring3::x86 {
class Cpu;
}

namespace ring3::x86::jit {

struct Exit;
struct StepSite;

// Executable addresses.
struct Thunks {
  // From C++: loads the guest's registers and goes to `code`. The exit that was taken; null: an instruction
  // was stepped and the block is not to go on.
  using Enter = Exit* (*)(Cpu*, const u8* code);
  Enter enter = nullptr;
  // Jumped to with the Exit in scratch_a, and called with the StepSite in it. Registers are where they are
  // between blocks.
  const u8* leave = nullptr;
  const u8* step = nullptr;
  // Where a StepFunction sends what is to be left.
  const u8* stop = nullptr;
  // Called where vectors are not live, and usable: loads them. Changes the scratch registers and the flags.
  const u8* load_vectors = nullptr;
  const u8* load_x87 = nullptr; // likewise
  StringThunks strings;
};

// Executes one instruction by its handler. Null: the block goes on; or the code to go on with instead.
using StepFunction = const u8* (*)(Cpu*, const StepSite*);

// Writes them. `executable`: where the emitter's first byte will run.
Thunks emit_thunks(Emitter& e, const u8* executable, const Layout& layout, const Cpu* cpu, StepFunction step);

} // namespace ring3::x86::jit
