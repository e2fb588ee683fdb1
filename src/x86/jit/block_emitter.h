// SPDX-License-Identifier: Apache-2.0
// The host's code of one block.
#pragma once

#include "x86/jit/flag_use.h"
#include "x86/jit/lookup_groups.h"
#include "x86/jit/register_plan.h"

#include <array>
#include <optional>

namespace ring3::x86::jit {

inline bool is_gpr(const Operand& o) { return o.kind == Operand::Kind::gpr; }
inline bool is_imm(const Operand& o) { return o.kind == Operand::Kind::imm; }
// As a sign-extended immediate or displacement.
constexpr bool fits32(u64 v) { return static_cast<s64>(v) == static_cast<s32>(v); }

class BlockEmitter {
 public:
  static constexpr unsigned max_insns = 120;

  // `steps`: one for each instruction, filled but for what the emitter finds out. Exits are made in `memory`.
  BlockEmitter(CodeCache& cache, CodeArea area, const Thunks& thunks, const Layout& layout,
               const RegisterPlan& plan, std::span<const Source> source, TranslatedBlock& t, StepSite* steps,
               std::pmr::memory_resource& memory);

  // False: there is no room in the cache.
  bool emit();

 private:
  static constexpr s16 none = -1; // instruction

  // Code out of the way, for what seldom happens.
  struct Cold {
    enum class Kind : u8 { head, slow, link, jump, side, other_return, miss, far_miss, vectors };
    Kind kind;
    u8* from;  // the rel32 that leads here
    u8* back;  // slow: where the block goes on
    u16 index; // the instruction
    u16 last;  // slow: and those up to this one, which share its lookup
    // slow: the block goes on with the flags in the host's; link, jump, side: they are there only
    bool host_flags;
    u16 wanted;  // link, jump, side: flags that may be needed there
    u64 target;  // link, jump, side, far_miss; other_return: where the expected one leads
    u8* literal; // other_return: of a rel32 that wants `target`
    s8 pushed;   // miss, other_return
    u8 level;    // vectors: that are not live; slow: that have to be live again
    // slow, vectors, side, other_return: the instruction that FOP and FIP are of, if they are not in memory
    s16 pointers;
    // slow: the lookup goes on here if the second half of the TLB has the page. Null: that is not asked.
    u8* found;
    s32 tag_at, addend_at; // there, from scratch_b
    // slow: what the run accesses is looked up alone, and this is where it goes on then. Null: it is not.
    u8* found_run;
    bool page_is_known; // slow: and this is it; else it is in scratch_a
    s32 page;
  };
  // There is room for more than most blocks need, which nobody should have to fill.
  static_assert(std::is_trivially_default_constructible_v<Cold>);

  // A memory operand as addresses are computed for it.
  struct Place {
    HostMem address; // before the segment's base
    Seg segment = Seg::ds;
    bool constant = false; // `linear` it is
    u64 linear = 0;
  };

  void head();
  void find_live_flags();
  void find_groups();
  GroupCandidate candidate(unsigned i) const;
  void instruction(unsigned i);
  // There is nothing to be done for it.
  static bool is_hint(Op op);
  bool emit_native(unsigned i);
  // In front of an instruction that lies in two pages.
  void check_tail(unsigned i);
  bool copied(unsigned i);
  bool vector(unsigned i);
  bool x87(unsigned i);
  void load_control(unsigned i, const HostMem& memory);
  void make_vectors_live(unsigned i, u8 levels);
  bool stack(unsigned i);
  bool address_only(unsigned i);
  bool division(unsigned i);
  bool privileged(unsigned i);
  bool string(unsigned i);
  bool high_byte(unsigned i);
  bool bit_string(unsigned i);
  bool translate_byte(unsigned i);
  bool system(unsigned i);
  bool push_flags(unsigned i);
  bool pop_flags(unsigned i);
  bool time_stamp(unsigned i);
  bool segment_base(unsigned i);
  bool from_special_register(unsigned i);
  bool control_flow(unsigned i);
  void stepped(unsigned i);
  void end_of_block();
  void cold(const Cold& c);

  std::optional<Place> place_of(unsigned i) const;
  Place stack_place(s32 displacement) const;
  // The TLB lookup: what to access instead. False: it can only be stepped, and nothing was written.
  // `misaligned`: address bits that have to be 0.
  bool lookup(const Place& given, unsigned size, bool write, unsigned i, HostMem& out, u16 misaligned = 0);
  // The operand, where scratch_b has the addend.
  HostMem found_at(const Place& p);
  // Out of the way, for a run whose group was not found.
  void look_up_run(const Cold& c);

  // The same for a linear address that the code has computed into scratch_b, where the operand's address is
  // afterwards. The flags have been kept.
  void lookup_computed(unsigned size, bool write, unsigned i);
  // The handler executes instruction `i` if the condition holds, and the block goes on behind it.
  void handler_when(Cond c, unsigned i);
  // The host's flags are about to be changed in other ways than the instruction does.
  void put_flags_aside(unsigned i);

  // `wanted`: flags that may be needed there.
  void jump_to(u64 target, u16 wanted);
  void jump_when(Cond c, u64 target, u16 wanted);
  // Behind a jump that the block goes on behind: the way that it does not take.
  void leave_when(Cond c, unsigned i, u64 target, u16 wanted);
  void return_expected(unsigned i, const HostMem& at, s8 popped);
  // To the address in scratch_a, with the flags in memory and registers as between blocks.
  void jump_indirect(unsigned i, s8 pushed);
  void probe_constant(u64 target);
  void probe_second(s32 slot);
  // Instructions that were counted and not executed.
  void give_back(unsigned count, bool host_flags);
  // The code that a link leads to while it is not aimed at a translation.
  void unlinked(const Cold& c, u8* field);

  // --- where the guest's arithmetic flags are ---
  void keep_flags(); // into memory, if anybody wants them
  void keep_flags_now(HostReg temporary);
  void fetch_flags(bool scratch_free); // into the host's
  void host_flags_lost() { in_host_ = false; }

  // --- the x87 FPU's last instruction and its operand ---
  void has_set_pointers(unsigned i);
  void keep_pointers(s16 of);
  void keep_data_pointer(const Place& p);
  void keep_address(s32 member, u64 address);

  void begin_loans();
  void end_loans();

  const u8* executable(const u8* at) const { return cache_.executable(at); }
  bool followed(unsigned i) const { return steps_[i].followed; }
  u64 next_ip(unsigned i) const { return steps_[i].ip + source_[i].insn.len; }
  bool same_page(u64 target) const { return (target ^ t_.linear) < 4096; }
  void aim_at_thunk(u8* field, const u8* thunk);
  void call_thunk(const u8* thunk);
  Exit* make_exit(Exit::Kind kind, u64 target);
  const StepSite* step_address(unsigned i) const { return &steps_[i]; }

  CodeCache& cache_;
  const CodeArea area_;
  Emitter e_; // to `area`, and then to the cold one
  const Thunks& thunks_;
  const Layout& l_;
  const RegisterPlan& plan_;
  const std::span<const Source> source_;
  TranslatedBlock& t_;
  StepSite* const steps_;
  std::pmr::memory_resource& memory_;

  std::array<FlagUse, max_insns> use_;
  std::array<u64, max_insns> live_before_;
  std::array<u64, max_insns> live_after_;
  std::array<LookupGroup, max_insns> group_;
  bool in_host_ = false, in_memory_ = false; // neither: nobody will ask for them
  bool ended_ = false;                       // by a jump
  u8 live_vectors_ = 0;                      // levels that are known to be
  u32 slots_filled_ = 0;                     // frame::addend, a bit each
  s16 pointers_of_ = none;                   // the instruction whose FOP and FIP memory does not have yet
  static constexpr unsigned max_cold = 5 * max_insns + 4;
  std::array<Cold, max_cold> cold_;
  unsigned cold_count_ = 0;
  Cold& add_cold(Cold::Kind kind, u8* from);
};

} // namespace ring3::x86::jit
