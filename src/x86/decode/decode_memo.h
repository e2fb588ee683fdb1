// SPDX-License-Identifier: Apache-2.0
// Instructions that were decoded lately, by their bytes: the interpreter sees them first and the translator
// after it, programs use few different ones, and each process has the libraries at other addresses. One a
// vCPU; its thread only.
#pragma once

#include "base/zeroed_array.h"
#include "x86/cpu/cpuid.h"
#include "x86/decode/decoded.h"
#include "x86/decode/insn.h"

#include <span>

namespace ring3::x86 {

struct BoundInsn {
  Decoded decoded;
  Insn insn;         // bound to its handler
  bool ends = false; // its handler ends a block
};

class DecodeMemo {
 public:
  // The instruction that `bytes` begin with, in code of 16, 32 or 64 bits, bound as `cpuid` has it. Null:
  // there is none, for the reason in `status`. Valid until the next call.
  const BoundInsn* look(std::span<const u8> bytes, unsigned code_bits, const CpuidTable& cpuid,
                        DecodeStatus& status);
  // To be called when CPUID has changed, which decides what some instructions mean.
  void clear() { slots_.clear(); }

 private:
  static constexpr unsigned slot_bits = 13;
  // Which length instructions have that begin with these four bytes, as far as was seen: it says what to
  // look for.
  static constexpr unsigned length_bits = 14;

  // The bytes, zeros behind them, and in the last byte their number and the code's size.
  struct Key {
    u64 low = 0, high = 0;
    bool operator==(const Key&) const = default;
  };
  struct Slot {
    Key key; // 0: empty
    BoundInsn insn;
  };
  static Key key_of(const std::array<u8, 16>& start, unsigned length, unsigned code_bits);
  static std::size_t place(const Key& key);

  ZeroedArray<Slot> slots_{std::size_t{1} << slot_bits};
  std::array<u8, 1 << length_bits> lengths_{};
};

} // namespace ring3::x86
