// SPDX-License-Identifier: Apache-2.0
// Which memory operands of a block share one TLB lookup: those off the same base register, near one another,
// with nothing between them that needs the translator's registers. Stack frames and structures are like that.
#pragma once

#include "x86/jit/register_plan.h"

#include <optional>
#include <span>
#include <vector>

namespace ring3::x86::jit {

// An access to [base + disp, base + disp + size), with the base register's value before the instruction.
struct SimpleAccess {
  HostReg base = no_reg;
  s32 disp = 0;
  u8 size = 0;
  bool write = false;
};

// What the block emitter knows of an instruction.
struct GroupCandidate {
  std::optional<SimpleAccess> access; // it makes one, and no other
  bool neutral = false;               // it makes none, and leaves the scratch registers alone
};

// For each instruction, how it takes part.
struct LookupGroup {
  bool member = false; // the operand was looked up by an earlier instruction
  // The first one of a group looks up [lo, lo + span) for all up to `last`; 0: it is not that.
  u16 last = 0;
  s32 lo = 0;
  u16 span = 0;
  bool write = false; // any of them writes
};

// `out` has an element for each instruction.
void plan_lookups(std::span<const Source> source, std::span<const GroupCandidate> candidates,
                  const RegisterPlan& plan, std::span<LookupGroup> out);

} // namespace ring3::x86::jit
