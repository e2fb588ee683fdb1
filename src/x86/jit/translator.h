// SPDX-License-Identifier: Apache-2.0
// From decoded instructions to a TranslatedBlock. 64-bit code.
//
// Most instructions are copied, with their registers and memory operands replaced. A memory operand is looked
// up in the software TLB in front of its instruction; where that fails, and for whatever is not copied, the
// instruction is left to its interpreter handler, so every instruction has one definition. Everything an
// instruction may fail of comes before anything it changes.
#pragma once

#include "x86/decode/decoded.h"
#include "x86/jit/code_cache.h"
#include "x86/jit/jump_forms.h"
#include "x86/jit/layout.h"
#include "x86/jit/thunks.h"
#include "x86/jit/translated_block.h"

#include <memory_resource>
#include <span>

namespace ring3::x86::jit {

// An instruction of a block that is to be translated.
struct Source {
  Decoded decoded;
  Insn insn; // bound to its handler
  u64 ip = 0;
  bool copied = false; // may run on the host, as far as CPUID is concerned
  bool ends = false;   // its handler ends a block
  bool split = false;  // it lies in two pages
  bool alone = false;  // its operand is to be looked up alone
  // A jump that the block goes on behind, at the next instruction's `ip`. Not the last one.
  JumpForm followed = JumpForm::none;
  // The arithmetic flags that somebody may want at a direct jump's target, and behind it; and behind an
  // instruction that a trace ends with.
  u16 flags_at_target = rflags::arithmetic;
  u16 flags_behind = rflags::arithmetic;
};

struct BlockPlace {
  u64 linear = 0;
  const std::byte* host = nullptr;
  TranslatedPage* page = nullptr;
  Tier tier = Tier::first;
  SplitTail* tail = nullptr; // of the last instruction, if that is split
};

class Translator {
 public:
  // `memory`: where Translations and what they point to are made. Everything outlives this object.
  Translator(CodeCache& cache, std::pmr::memory_resource& memory, const Thunks& thunks, const Layout& layout)
      : cache_(cache), memory_(memory), thunks_(thunks), layout_(layout) {}

  // Translates as many of the instructions as fit one block, at least one. Null: the cache is full.
  TranslatedBlock* translate(const BlockPlace& place, std::span<const Source> source);

 private:
  CodeCache& cache_;
  std::pmr::memory_resource& memory_;
  const Thunks& thunks_;
  const Layout& layout_;
};

} // namespace ring3::x86::jit
