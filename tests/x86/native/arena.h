// SPDX-License-Identifier: Apache-2.0
// The addresses that both processors use, and the state that both start from and end in.
#pragma once

#include "base/types.h"
#include "x86/cpu/exceptions.h"
#include "x86/cpu/state.h"

#include <cstring>

namespace ring3::x86::native {

// Below 2 GiB, so that absolute and RIP-relative operands, 32-bit addresses and 32-bit code all reach them.
namespace arena {
constexpr u64 page = 4096;
constexpr u64 control = 0x0f000000; // native side only: what the trampoline loads and saves
constexpr u64 stubs = 0x0f100000;   // native side only: the trampoline
constexpr u64 code = 0x10000000;    // one page; the instruction lies in its middle
constexpr u64 instruction = code + 0x800;
constexpr u64 forward_target = instruction + 0x50;
constexpr u64 backward_target = instruction - 0x50;
constexpr u64 data = 0x10101000; // two pages; nothing is mapped on either side
constexpr u64 stack = 0x10201000;
constexpr u64 region_size = 2 * page;
constexpr u64 data_end = data + region_size;
constexpr u64 stack_end = stack + region_size;
} // namespace arena

// The selectors of 64-bit Linux, which both sides have.
namespace selector {
constexpr u16 code64 = 0x33, code32 = 0x23, data = 0x2b;
} // namespace selector

struct MachineState {
  u64 gpr[16] = {};
  u64 rip = 0;
  u64 flags = 0;
  X87State x87;
  VectorState vector;
};

struct MemoryImage {
  alignas(64) u8 data[arena::region_size];
  alignas(64) u8 stack[arena::region_size];
};

struct Outcome {
  MachineState state;
  bool faulted = false;
  Fault fault;
  bool stopped = false; // not by a fault: the reason is in `note`
  const char* note = nullptr;
};

// A small generator whose whole state is one word, so that every case can be seeded by itself.
class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 next() {
    u64 z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  u64 below(u64 n) { return next() % n; }
  bool one_in(u64 n) { return below(n) == 0; }

 private:
  u64 state_;
};

} // namespace ring3::x86::native
