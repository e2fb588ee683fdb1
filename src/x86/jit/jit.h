// SPDX-License-Identifier: Apache-2.0
// The executor that runs guest code as host code. One a vCPU; its thread only.
//
// Code is interpreted until it has run a few times, then translated block by block. What the translator has
// no form for (16- and 32-bit code, single-stepping, instructions across two pages) stays with the
// interpreter.
#pragma once

#include "x86/cpu/cpu.h"
#include "x86/cpu/executor.h"
#include "x86/cpu/translation_context.h"
#include "x86/jit/block_emitter.h"
#include "x86/jit/counted_memory.h"
#include "x86/jit/guest_turn.h"
#include "x86/jit/signal_frame.h"
#include "x86/jit/translator.h"

#include <memory>
#include <memory_resource>
#include <vector>

namespace ring3::x86::jit {

struct Statistics {
  u64 translations = 0; // blocks
  u64 flushes = 0;      // of everything that was translated; the first when there was nothing yet
  u64 compared = 0;     // blocks, with Lockstep
};

class Lockstep;

class Jit final : public Executor {
 public:
  // Takes memory when there is something to translate: a VMM may make a thousand vCPUs of which most run
  // little. `checked`: see lockstep.h.
  explicit Jit(Cpu& cpu, bool checked = false);
  ~Jit() override;

  CpuExit run() override;
  void forget_code() override;
  bool recover(const HostRegisters& host) override;

  const Statistics& statistics() const { return statistics_; }

 private:
  friend class Lockstep;
  // What is made once, and emptied when it is full.
  struct Store {
    Store(Cpu& cpu, std::unique_ptr<CodeCache> cache);

    std::unique_ptr<CodeCache> cache;
    CountedMemory heap;
    std::pmr::monotonic_buffer_resource memory{&heap};
    Layout layout;
    Thunks thunks;
    std::size_t thunk_bytes = 0;
    // Of what describes translations. A guest that executes little on each of very many pages, or nothing but
    // NOPs, needs much of it for little code.
    static constexpr std::size_t most_memory = std::size_t{128} << 20;

    static constexpr unsigned table_bits = 14;
    static constexpr unsigned page_bits = 10;
    std::vector<TranslatedBlock*> table = std::vector<TranslatedBlock*>(std::size_t{1} << table_bits);
    std::vector<TranslatedPage*> pages = std::vector<TranslatedPage*>(std::size_t{1} << page_bits);
    std::vector<u8> heat = std::vector<u8>(std::size_t{1} << table_bits); // how often code was interpreted
    std::vector<const TranslatedBlock*> in_order;                         // as they lie in the cache

    // Where code is that was about to run. Apart from the Cpu's TLB, in which code and data would drive out
    // each other.
    struct CodeEntry {
      u64 linear = no_page; // of the page
      const std::byte* host = nullptr;
      GuestPhys physical;
    };
    static constexpr u64 no_page = 1; // no page begins there
    static constexpr unsigned code_entries = 512;
    std::array<std::array<CodeEntry, code_entries>, 2> code; // as `jumps`

    SignalFrame signal_frame;
    std::array<JumpTable, 2> jumps; // of CPL 0 to 2, and of CPL 3
    std::array<Source, BlockEmitter::max_insns> sources;
  };

  CpuExit loop();
  // The translation at RIP, or null: it is to be interpreted, this time at least.
  TranslatedBlock* find();
  // The page that RIP is in; null: the interpreter shall see.
  const Store::CodeEntry* code_page(u64 rip);
  TranslatedBlock* known(u64 linear, const std::byte* host);
  TranslatedBlock* translate(u64 linear, const Store::CodeEntry& code);
  TranslatedPage* page_of(u64 linear, const std::byte* host, kvm::CodePage* watch);
  // Compares what was translated with memory where that may have changed.
  bool valid(TranslatedPage& page);
  void flush();
  // Brings the jump tables in line with the address space and the ring.
  void refresh_jumps();
  void follow(const Exit& x, TranslatedBlock& to);
  // Runs `t` and what follows from it. False: run() must return cpu_.exit.
  bool execute(TranslatedBlock& t);
  bool settle(const StepSite& s);
  u8 usable_vectors() const;
  unsigned ring() const { return cpu_.state.cpl == 3 ? 1 : 0; } // which of the tables
  static u64 step(Cpu* cpu, const StepSite* s);

  Cpu& cpu_;
  std::unique_ptr<Lockstep> lockstep_; // null: nothing is checked
  std::unique_ptr<Store> store_;       // null: nothing was executed yet

  // What the tables are for.
  const void* mmu_context_ = nullptr;
  u64 mmu_generation_ = 0;
  u64 code_changes_ = 0;
  u64 epoch_ = 0;

  const Exit* pending_ = nullptr;     // waits for the translation of where it leads
  const StepSite* stepped_ = nullptr; // the last one, when it ended the stay
  Step step_result_{};
  s32 entry_budget_ = 0;
  bool flush_wanted_ = false;
  u64 program_gs_ = 0; // the GS base of whoever called run()
  bool running_ = false;
  GuestTurn turn_;
  Statistics statistics_;
};

} // namespace ring3::x86::jit
