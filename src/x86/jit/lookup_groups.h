// SPDX-License-Identifier: Apache-2.0
// Which memory operands of a block share one TLB lookup: those off the same registers, near one another.
// Stack frames and structures are like that.
//
// What a lookup has found (TlbEntry::addend) stays in scratch_b for as long as nothing else needs that: a
// *run* of instructions. Where more runs follow, it is kept in the frame for them. An instruction that is to
// be looked up alone (Source::alone) is a run of its own.
#pragma once

#include "x86/jit/register_plan.h"

#include <optional>
#include <span>

namespace ring3::x86::jit {

// An access to `size` bytes at an address, with the registers' values before the instruction.
struct SimpleAccess {
  HostMem address;
  u8 size = 0;
  bool write = false;
};

// What the block emitter knows of an instruction.
struct GroupCandidate {
  std::optional<SimpleAccess> access; // it makes one, and no other
  bool neutral = false;               // it makes none, and leaves the scratch registers alone
  bool harmless = false;              // it changes nobody's right to access anything
};

struct LookupRange {
  s32 lo = 0;
  u16 span = 0; // bytes from there; 0: nothing
  bool write = false;
};

// For each instruction, how it takes part.
struct LookupGroup {
  static constexpr s8 none = -1;

  bool member = false; // its operand was looked up by an earlier instruction of the run
  // The first of a run, which goes on to `last`: what that accesses. Otherwise nothing.
  LookupRange run;
  u16 last = 0;
  // The first of a run: where in the frame the addend is, if that covers other runs, too.
  s8 slot = none;
  LookupRange all; // of the first run: what all of them access
};

// `out` has an element for each instruction.
void plan_lookups(std::span<const Source> source, std::span<const GroupCandidate> candidates,
                  const RegisterPlan& plan, std::span<LookupGroup> out);

} // namespace ring3::x86::jit
