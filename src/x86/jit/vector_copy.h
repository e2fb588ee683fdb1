// SPDX-License-Identifier: Apache-2.0
// Copies MMX, SSE, AVX and AVX-512 instructions. Their registers are the host's own of the same number;
// general registers and the memory operand are replaced.
#pragma once

#include "x86/decode/insn.h"
#include "x86/jit/recode.h"

namespace ring3::x86::jit {

// What the vector state has to be for an instruction to run: bits of Context::vectors_usable.
namespace vector_level {
constexpr u8 sse = 1, avx = 2, avx512 = 4;
constexpr u8 vectors = sse | avx | avx512; // XMM, YMM, ZMM, opmasks and MXCSR, which are loaded together
constexpr u8 x87 = 8;                      // and MMX
} // namespace vector_level

// The levels of an instruction that can be copied; nothing: it is left to its handler.
std::optional<u8> vector_level_of(const Decoded& d, const Insn& in);

bool can_copy_vector(const Decoded& d, const RegisterMap& map);
void copy_vector(Emitter& e, const Decoded& d, const RegisterMap& map, const HostMem* memory);

} // namespace ring3::x86::jit
