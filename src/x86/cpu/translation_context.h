// SPDX-License-Identifier: Apache-2.0
// What translated code keeps in the vCPU, beside CpuState.
#pragma once

#include "base/types.h"
#include "base/zeroed_array.h"

#include <array>

namespace ring3::x86 {
struct TlbTable;
}

namespace ring3::x86::jit {

// Where jumps go that may not be linked: found by the target's linear address, and valid for the address
// space and ring that the table is for.
struct JumpEntry {
  u64 target;     // JumpTable::nothing(): empty
  const u8* code; // TranslatedBlock::entry_memory
};

struct JumpTable {
  static constexpr unsigned bits = 16;
  static constexpr unsigned entries = 1u << bits;
  static constexpr unsigned index(u64 target) {
    const auto low = static_cast<u32>(target);
    return (low ^ low >> 7) & (entries - 1);
  }
  // No target of this place: index() of it is another one. Guests jump anywhere, to addresses that are none,
  // too.
  static constexpr u64 nothing(unsigned place) { return place == 0 ? 1 : 0; }

  // Two for each place: what is put comes into the first half, and what was there into the second.
  ZeroedArray<JumpEntry> entry{2 * std::size_t{entries}};
  // Which places are in use, as long as they are few: address spaces often change before they are many.
  std::array<u16, 8192> filled;
  unsigned fills = 0;

  JumpTable() { empty(0); }
  const u8* find(u64 target) const {
    const unsigned i = index(target);
    if (entry[i].target == target) return entry[i].code;
    return entry[entries + i].target == target ? entry[entries + i].code : nullptr;
  }
  void put(u64 target, const u8* code) {
    const unsigned i = index(target);
    if (fills < filled.size()) filled[fills] = static_cast<u16>(i);
    if (fills < entries) ++fills;
    if (entry[i].target != target) entry[entries + i] = entry[i];
    entry[i] = {target, code};
  }
  void forget(u64 target) {
    const unsigned i = index(target);
    if (entry[i].target == target) entry[i] = {nothing(i), nullptr};
    if (entry[entries + i].target == target) entry[entries + i] = {nothing(i), nullptr};
  }
  void clear() {
    if (fills <= filled.size()) {
      for (unsigned i = 0; i < fills; ++i) empty(filled[i]);
    } else {
      for (unsigned i = 0; i < entries; ++i) empty(i);
    }
    fills = 0;
  }

 private:
  void empty(unsigned i) { entry[i] = entry[entries + i] = {nothing(i), nullptr}; }
};

// A repeated string instruction while the host executes a part of it.
struct StringRun {
  u64 rsi = 0, rdi = 0, rcx = 0;    // the guest's, before
  u64 host_source = 0, host_to = 0; // where those are
  u64 chunk = 0;                    // elements
  bool moves = false;               // MOVS, not STOS
};

struct Context {
  s32 budget = 0; // instructions until the vCPU has to look at its timers
  StringRun string;
  // What Cpu::tlb_ is in CPL 0 with EFLAGS.AC clear, and set.
  std::array<TlbTable*, 2> supervisor_tlb{};
  bool tsc_is_host = false; // RDTSC gives what Platform::tsc() does
  JumpEntry* jumps = nullptr;
  // Levels (jit/vector_copy.h) of vector instructions that may run on the host's registers, and those that
  // do: not 0 while the registers hold the guest's.
  u8 vectors_usable = 0;
  u8 vectors_live = 0;
  u32 host_mxcsr = 0x1f80;                     // what C++ runs with
  u16 host_fcw = 0x37f;                        // likewise
  u16 x87_control = 0;                         // a word on its way into FCW
  bool x87_used = false;                       // flags of exceptions may be left in the host's status word
  alignas(64) std::array<u8, 512> x87_image{}; // for FXSAVE and FXRSTOR
};

} // namespace ring3::x86::jit
