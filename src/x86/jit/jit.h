// SPDX-License-Identifier: Apache-2.0
// The executor that runs guest code as host code. One a vCPU; its thread only.
//
// Code is interpreted until it has run a few times, then translated block by block. What the translator has
// no form for (16- and 32-bit code, single-stepping) stays with the interpreter.
#pragma once

#include "x86/cpu/cpu.h"
#include "x86/cpu/executor.h"
#include "x86/cpu/translation_context.h"
#include "x86/jit/block_emitter.h"
#include "x86/jit/block_memory.h"
#include "x86/jit/code_map.h"
#include "x86/jit/guest_turn.h"
#include "x86/jit/signal_frame.h"
#include "x86/jit/statistics.h"
#include "x86/jit/translator.h"

#include <memory>
#include <memory_resource>
#include <vector>

namespace ring3::x86::jit {

class Lockstep;

class Jit final : public Executor {
 public:
  // Takes memory when there is something to translate: a VMM may make a thousand vCPUs of which most run
  // little. `checked`: see lockstep.h.
  // `statistics`: where to count, which is all zero; null: in memory of its own.
  explicit Jit(Cpu& cpu, bool checked = false, Statistics* statistics = nullptr);
  ~Jit() override;

  CpuExit run() override;
  void forget_code() override;
  bool recover(const HostRegisters& host) override;
  std::string stats_json() const override { return statistics_.json(); }
  std::vector<std::string> stats_lines() const override { return statistics_.lines(); }

  const Statistics& statistics() const { return statistics_; }

 private:
  friend class Lockstep;
  // What is made once, and emptied when it is full.
  struct Store {
    Store(Cpu& cpu, std::unique_ptr<CodeCache> cache, bool checked);

    std::unique_ptr<CodeCache> cache;
    BlockMemory memory;
    Layout layout;
    Thunks thunks;
    std::size_t thunk_bytes = 0;

    static constexpr unsigned heat_bits = 16;
    static constexpr unsigned page_bits = 14;
    std::vector<TranslatedPage*> pages =
        std::vector<TranslatedPage*>(std::size_t{1} << page_bits); // by place
    TranslatedPage*& pages_at(u64 linear, const std::byte* host);
    std::vector<u8> heat = std::vector<u8>(std::size_t{1} << heat_bits); // how often code was interpreted
    std::vector<TranslatedBlock*> blocks;                                // all of them

    SignalFrame signal_frame;
    CodeMaps maps;
    std::vector<TranslatedPage*> entered; // the pages that these may lead to
    std::vector<SplitTail*> certain;      // that are, for some ring
    std::array<Source, BlockEmitter::max_insns> sources;
  };

  CpuExit loop();
  // The translation at RIP, or null: it is to be interpreted, this time at least.
  TranslatedBlock* find();
  // The page that RIP is in; null: the interpreter shall see.
  const CodeMap::Page* code_page(u64 rip);
  // What is fetched at this page now. Without host memory: nothing can be, or the interpreter shall see.
  CodeMap::Page page_at(u64 linear, CodeMap::Rights& rights);
  TranslatedBlock* known(u64 linear, const std::byte* host);
  TranslatedBlock* translate(u64 linear, const CodeMap::Page& code, Tier tier);
  // The same, with the time it takes added up.
  TranslatedBlock* translate_timed(u64 linear, const CodeMap::Page& code, Tier tier);
  // A better translation of the same code, which is entered from now on wherever `t` is.
  TranslatedBlock* improved(TranslatedBlock& t, const CodeMap::Page& code, Tier tier);
  TranslatedPage* page_of(u64 linear, const std::byte* host, kvm::CodePage* watch);
  bool keep(TranslatedPage& page, GuestPhys physical, u32 lines, std::span<const u8> bytes);
  bool make_certain(SplitTail& tail);
  void doubt_tails();
  const u8* give_up(const StepSite& s);
  void drop_page_of(const TranslatedBlock& t);
  // Compares what was translated with memory where that may have changed.
  bool valid(TranslatedPage& page);
  void flush();
  // Brings the code maps in line with the address space, the ring and what code there is.
  void refresh_jumps();
  void clear_jumps();
  void forget_ways(TranslatedPage& page);
  void check_entered();
  // Translates it again, with the instructions looked up alone that have strayed.
  void split_runs(TranslatedBlock& t);
  // A handler has executed an instruction of a run, and filled the TLB or not.
  void note_run(const StepSite& s, bool filled);
  // What comes now is where a trace of the third tier was left.
  bool leaves_trace() const;
  // Aims a link, unless the code at either end has changed.
  static void follow(Exit& x, TranslatedBlock& to);
  // Puts it where jumps that are not linked find it.
  void note_way(TranslatedBlock& to);
  // Runs `t` and what follows from it. False: run() must return cpu_.exit.
  bool execute(TranslatedBlock& t);
  // `t` is what was being executed.
  void note_sample(TranslatedBlock& t);
  bool settle(const StepSite& s);
  u8 usable_vectors() const;
  CodeMap& map() { return store_->maps.map(cpu_.state.cpl == 3); }
  // The code to go on with after an instruction that has ended a block; null: the dispatcher shall see.
  const u8* onward();
  static const u8* step(Cpu* cpu, const StepSite* s);

  Cpu& cpu_;
  std::unique_ptr<Lockstep> lockstep_; // null: nothing is checked
  std::unique_ptr<Store> store_;       // null: nothing was executed yet

  // What the maps are in line with.
  u64 mmu_generation_ = 0;
  u64 code_changes_ = 0;
  u64 epoch_ = 0;
  u64 entered_checked_at_ = 0; // instructions

  Exit* pending_ = nullptr;           // waits for the translation of where it leads
  const StepSite* stepped_ = nullptr; // the last one, when it ended the stay
  Step step_result_{};
  TranslatedBlock* strayed_ = nullptr; // for split_runs()
  bool run_filled_ = false;            // the TLB, by an instruction of the run that handlers are executing
  bool go_on_ = true;                  // when settle() was asked about it
  s32 entry_budget_ = 0;
  bool flush_wanted_ = false;
  u64 program_gs_ = 0; // the GS base of whoever called run()
  bool running_ = false;
  GuestTurn turn_;
  // host::has_avx() and so on, which usable_vectors() would spend a tenth of a short handler's time on.
  const bool host_avx_, host_avx512_;
  const std::unique_ptr<Statistics> own_statistics_; // null: they are elsewhere
  Statistics& statistics_;
};

} // namespace ring3::x86::jit
