// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/lockstep.h"

#include <cstdio>
#include <cstring>
#include <fmt/format.h>

namespace ring3::x86::jit {

Lockstep::Outcome Lockstep::interpret(const TranslatedBlock& t) {
  log_.clear();
  cpu_.store_log_ = &log_;
  cpu_.tlb_ = cpu_.never_.get(); // everything takes the way on which stores are logged
  const u64 changes = cpu_.mmu.code_watch().changes();
  unsigned i = 0;
  for (; i < t.count; ++i) {
    const StepSite& s = t.steps[i];
    cpu_.insn_start_ = s.ip;
    cpu_.state.regs[reg_rip] = s.ip + s.insn.len;
    result_ = s.insn.handler(cpu_, s.insn);
    if (result_ == Step::abort) break;
    // A block goes on behind STI, unless an interrupt waits for it.
    if (!cpu_.window_wanted && std::exchange(cpu_.state.sti_shadow, false)) cpu_.update_careful();
    const bool goes_on = s.followed ? cpu_.state.rip() == t.steps[i + 1].ip && !cpu_.careful_
                                    : result_ == Step::next && !s.ends;
    // What is behind a store to code may not be what was translated.
    if (!goes_on || cpu_.mmu.code_watch().changes() != changes) {
      ++i;
      break;
    }
  }
  cpu_.store_log_ = nullptr;
  cpu_.flags_changed();
  return {cpu_.state, result_ == Step::abort, i, cpu_.fault};
}

// What the interpreter did cannot be taken back, or is not the translator's business: it stands.
bool Lockstep::keep(const TranslatedBlock& t, const Outcome& o) {
  cpu_.instructions += o.index;
  if (!o.aborted) return !cpu_.exit_pending;
  if (!cpu_.rip_committed_) cpu_.state.regs[reg_rip] = t.steps[o.index].ip;
  cpu_.rip_committed_ = false;
  return cpu_.settle_abort();
}

void Lockstep::take_back(const CpuState& before) {
  cpu_.state = before;
  cpu_.fault_pending = cpu_.rip_committed_ = false;
  cpu_.code_update_size_ = 0;
  cpu_.mode_changed();
}

namespace {
// Flags that the translator need not keep are those that nobody reads before they are written again.
u64 flags_behind(const StepSite& s, u64 rip) {
  if (!s.followed) return rflags::arithmetic;
  return rip == (&s + 1)->ip ? (&s + 1)->live_flags : s.live_flags;
}
} // namespace

bool Lockstep::execute(TranslatedBlock& t) {
  // The handlers do as the block says; whether it is still right is asked first.
  SplitTail* const tail = t.steps[t.count - 1].tail;
  if (tail != nullptr && !jit_.make_certain(*tail)) {
    jit_.drop_page_of(t);
    return true;
  }
  const u64 changes = cpu_.mmu.code_watch().changes();
  const CpuState before = cpu_.state;
  const Outcome expected = interpret(t);
  // Also when somebody wants the CPU now: the block would not begin again.
  const bool wanted_elsewhere = cpu_.exit_word.load(std::memory_order_relaxed) != 0;
  if (log_.final() || wanted_elsewhere || cpu_.exit_pending || changes != cpu_.mmu.code_watch().changes() ||
      !t.all_native)
    return keep(t, expected);
  log_.undo();

  for (bool fresh = false;; fresh = true) {
    take_back(before);
    // Nothing is linked, so that each block is left with all it has changed.
    cpu_.translation_.budget = t.count;
    cpu_.translation_.vectors_usable = jit_.usable_vectors();
    const Exit* const x = jit_.store_->thunks.enter(&cpu_, t.entry_memory);
    if (x != nullptr && x->kind == Exit::Kind::head) return true; // something else comes first
    if (x == nullptr && jit_.stepped_ == nullptr) {               // the page behind is another one now
      log_.restore();
      take_back(before);
      return true;
    }
    if (x != nullptr && x->kind != Exit::Kind::indirect) cpu_.state.regs[reg_rip] = x->target;
    // Vector instructions that the host cannot have, or a jump that faults itself: the interpreter's
    // business.
    const bool left_over =
        x != nullptr && (x->kind == Exit::Kind::interpret ||
                         (x->kind == Exit::Kind::indirect && !cpu_.canonical(cpu_.state.rip())));
    if (left_over) {
      log_.restore();
      take_back(before);
      return keep(t, interpret(t));
    }
    const Outcome actual{cpu_.state, x == nullptr && jit_.step_result_ == Step::abort,
                         static_cast<unsigned>(t.count - cpu_.translation_.budget), cpu_.fault};
    jit_.statistics_.compared.add();
    const u64 wanted = x != nullptr     ? x->wanted
                       : actual.aborted ? t.steps[expected.index].live_flags
                                        : flags_behind(*jit_.stepped_, actual.state.rip());
    const std::string what = difference(expected, actual, wanted);
    if (what.empty()) {
      cpu_.instructions += actual.index;
      return x != nullptr || jit_.settle(*jit_.stepped_);
    }
    if (fresh) return report(t, before, expected, actual, what);
    // The interpreter has walked the page tables for each access. What is in the TLB may be older.
    log_.restore();
    cpu_.mmu.flush_all();
    jit_.refresh_jumps();
  }
}

// Empty: there is none.
std::string Lockstep::difference(const Outcome& a, const Outcome& b, u64 wanted) const {
  if (a.aborted != b.aborted) return "one of them faults";
  if (a.index != b.index) return "different numbers of instructions";
  if (a.aborted && std::memcmp(&a.fault, &b.fault, sizeof a.fault) != 0 &&
      (a.fault.vector != b.fault.vector || a.fault.error_code != b.fault.error_code ||
       a.fault.cr2 != b.fault.cr2))
    return "different faults";
  for (unsigned r = 0; r < 16; ++r) {
    if (a.state.regs[r] != b.state.regs[r]) return fmt::format("register {}", r);
  }
  if (!a.aborted && a.state.rip() != b.state.rip()) return "RIP";
  if (std::memcmp(&a.state.vector, &b.state.vector, sizeof a.state.vector) != 0) return "vector registers";
  if (a.state.x87.mxcsr != b.state.x87.mxcsr) return "MXCSR";
  if (std::memcmp(&a.state.x87, &b.state.x87, sizeof a.state.x87) != 0) return "x87 state";
  if (((a.state.rflags() ^ b.state.rflags()) & wanted) != 0) return "flags";
  if (a.state.system_flags != b.state.system_flags) return "system flags";
  if (a.state.segment(Seg::gs).base != b.state.segment(Seg::gs).base ||
      a.state.kernel_gs_base != b.state.kernel_gs_base)
    return "GS base";
  if (a.state.segment(Seg::fs).base != b.state.segment(Seg::fs).base) return "FS base";
  if (!log_.same_again()) return "what was stored";
  return {};
}

bool Lockstep::report(const TranslatedBlock& t, const CpuState& before, const Outcome& a, const Outcome& b,
                      const std::string& what) {
  std::string text = fmt::format("ring3: lockstep: the engines disagree at {:#x}: {}\n", t.linear, what);
  text += "ring3: lockstep: code:";
  for (unsigned i = 0; i < t.count; ++i) {
    const StepSite& s = t.steps[i];
    if (i != 0 && s.ip != t.steps[i - 1].ip + t.steps[i - 1].insn.len)
      text += fmt::format(" -> {:#x}:", s.ip);
    for (unsigned byte = 0; byte < s.insn.len; ++byte) {
      const u64 at = (s.ip & page_offset_mask) + byte;
      text += fmt::format(" {:02x}", at < page_size ? t.page->copy[at] : s.tail->page->copy[at - page_size]);
    }
  }
  text += '\n';
  const auto show = [&](const char* name, const CpuState& s) {
    text += fmt::format("ring3: lockstep: {}: rip {:x} rflags {:x}", name, s.rip(), s.rflags());
    for (unsigned r = 0; r < 16; ++r) text += fmt::format(" r{} {:x}", r, s.regs[r]);
    text += '\n';
  };
  show("before", before);
  show("interpreter", a.state);
  show("translator", b.state);
  text += fmt::format("ring3: lockstep: interpreter {} instruction {}, translator {} instruction {}\n",
                      a.aborted ? "faults in" : "ends before", a.index,
                      b.aborted ? "faults in" : "ends before", b.index);
  std::fputs(text.c_str(), stderr);
  cpu_.fault_pending = false;
  cpu_.internal_error = "the engines disagree";
  cpu_.request_exit(CpuExit::internal_error);
  return false;
}

} // namespace ring3::x86::jit
