// SPDX-License-Identifier: Apache-2.0
// A translated block and what hangs on it. All of it lives until the code cache is emptied.
#pragma once

#include "base/types.h"
#include "kvm/code_watch.h"
#include "x86/decode/insn.h"
#include "x86/jit/recode.h"

#include <array>
#include <bitset>
#include <cstddef>

namespace ring3::x86::jit {

// How much is done for code.
enum class Tier : u8 {
  first,  // it was executed some times: a little of it at a time, and nothing twice
  second, // time goes there: long traces, which take what they go through along, loops several times
  third,  // much goes there: the same, and how often they are left which way is counted
};

// Which way the conditional jumps of a page are expected to go, by their offset.
struct JumpForecast {
  std::bitset<page_size> known, taken;
};

struct TranslatedBlock;

// A guest page that has translations, at one linear address. Its bytes are kept as they were, for comparing
// with memory where a VMM may have written there (Cpu::synchronize_code()).
struct TranslatedPage {
  u64 linear = 0; // of its first byte
  const std::byte* host = nullptr;
  kvm::CodePage* watch = nullptr;
  u32 version = 0;                // of `watch`; a store by a vCPU has made a newer one
  u32 incarnation = 0;            // translations of older ones are stale
  u64 epoch = 0;                  // Cpu::code_epoch when the bytes were compared last
  u32 lines = 0;                  // 128 bytes each, of which some byte was translated
  u32 ways = 0;                   // the maps that may lead into it (CodeMaps), a bit each
  TranslatedPage* next = nullptr; // in the table
  // Its translations that are not stale, by where they begin, and all those places.
  std::array<TranslatedBlock*, 64> blocks;
  std::bitset<page_size> heads;
  JumpForecast forecast;
  std::bitset<page_size> strays; // instructions that are better looked up alone (Jit::note_run())
  std::array<u8, page_size> copy;

  TranslatedBlock*& blocks_at(u64 offset) { return blocks[offset / (page_size / 64)]; }
  // All translations are stale.
  void renew() {
    ++incarnation;
    lines = 0;
    blocks.fill(nullptr);
    heads.reset();
  }
};

// The other page of an instruction that lies in two.
struct SplitTail {
  u64 linear = 0;
  const std::byte* host = nullptr;
  TranslatedPage* page = nullptr;
  u32 incarnation = 0; // of the page
  // For the ring of this number it is known to be that page with those bytes, until anything has changed that
  // may matter (Jit::refresh_jumps()).
  static constexpr u64 none = 4;
  u64 certain_for = none;
};

// An instruction that is left to its interpreter handler, always or when the fast way fails.
struct StepSite {
  Insn insn;
  u64 ip = 0;
  TranslatedBlock* of = nullptr;
  u16 index = 0;             // in the block
  u16 mnemonic = 0;          // Decoded::mnemonic
  bool native = true;        // it is host code, unless that fails
  u16 live_flags = 0;        // that somebody may still want, when it begins: the others may be wrong then
  bool ends = false;         // its handler ends the block, whatever it says
  bool followed = false;     // a jump that the block goes on behind if it goes to the next site
  bool unmasks = false;      // its handler may change what Context::vectors_usable says, though it is native
  bool in_run = false;       // it shares a lookup with those next to it (lookup_groups)
  bool begins_run = false;   // as the first of them
  u16 host_offset = 0;       // where the host's code for it begins, from TranslatedBlock::code
  SplitTail* tail = nullptr; // null: it lies in one page
};

// How translated code is left.
struct Exit {
  enum class Kind : u8 {
    head,      // the exit word is set, or enough instructions were executed: nothing of the block was
    link,      // to `target`, in the same page; `field` may be aimed at its translation
    jump,      // to `target`, in another page
    indirect,  // to where RIP says
    interpret, // at `target`: the vector state is such that instructions may fault
  };
  Kind kind = Kind::head;
  bool flags_in_memory = false; // link: which entry to aim at
  u64 target = 0;
  u8* field = nullptr; // link: the rel32, in the writable mapping
  const u8* executable_field = nullptr;
  Exit* next_into = nullptr; // link: of TranslatedBlock::links
  u8 taken = 0;              // link of the third tier: times that it was left unaimed (Jit::find())
  TranslatedBlock* of = nullptr;
  const StepSite* step = nullptr;  // indirect: the instruction, should the target be none
  s8 pushed = 0;                   // indirect: what it has added to RSP
  u16 wanted = rflags::arithmetic; // the flags that may be needed where it leads
};

// Instructions that are executed one after another, of which jumps may leave (Source::followed).
struct TranslatedBlock {
  u64 linear = 0;                  // of the first byte
  const std::byte* host = nullptr; // likewise
  TranslatedPage* page = nullptr;
  u32 incarnation = 0; // of the page
  u16 count = 0;       // instructions
  Tier tier = Tier::first;
  u8 samples = 0; // times that it was found to be what is executed
  u8 strays = 0; // times that handlers executed an instruction of a run, though the TLB has all that it needs
  bool all_native = true;
  // Executable addresses. The guest's arithmetic flags come in the host's, or in CpuState::flags.
  const u8* code = nullptr; // == entry_host
  const u8* entry_memory = nullptr;
  const u8* end = nullptr;
  u32 cold_bytes = 0;              // elsewhere in the cache
  const StepSite* steps = nullptr; // one an instruction
  RegisterMap map;                 // within the block
  Exit* links = nullptr;           // that are aimed at it
  TranslatedBlock* next = nullptr; // of TranslatedPage::blocks
};

} // namespace ring3::x86::jit
