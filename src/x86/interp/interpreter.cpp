// SPDX-License-Identifier: Apache-2.0
// The interpreter's loop.
#include "x86/cpu/cpu.h"
#include "x86/decode/block_cache.h"
#include "x86/interp/bind.h"

#include <mutex>
#include <utility>

namespace ring3::x86 {

// A fault goes to the guest, unless it is a #DB for the debugger. False: run() must return `exit`.
bool Cpu::take_fault(const Fault& f) {
  if (f.vector != Vector::db || !debugger.takes(f.dr6_bits)) return deliver_fault(f);
  fault_pending = false;
  stop_for_debugger(Vector::db, f.dr6_bits);
  return false;
}

// After an instruction that did not complete: false when run() must return `exit`.
bool Cpu::settle_abort() {
  code_update_size_ = 0;
  if (fault_pending) {
    forget_replay();
    ++instructions; // a guest that does nothing but fault must come to poll() too
    const Fault f = fault;
    return take_fault(f);
  }
  replay_next_ = 0;
  if (exit_pending) return false;
  return true;
}

// One instruction with everything around it that the fast loop leaves out: code breakpoints, single-step,
// data breakpoints, RF, and the shadows of STI and MOV SS (SDM vol. 3, 6.8 and 17.3). False: run() must
// return.
bool Cpu::step_carefully() {
  const bool had_sti_shadow = state.sti_shadow;
  const bool had_ss_shadow = state.mov_ss_shadow;
  const bool tf = (state.system_flags & rflags::tf) != 0;
  const bool single_step = debugger.single_step;
  const u64 start = state.regs[reg_rip];
  insn_start_ = start;

  // Intel's processors hold code breakpoints back after MOV SS, too; AMD's do not.
  if (breakpoints_ && (state.system_flags & rflags::rf) == 0 && (!had_ss_shadow || cpuid.amd())) {
    const u64 dr7 = active_dr7();
    const u64 linear =
        code64_ ? start : (start + segment_base_[static_cast<unsigned>(Seg::cs)]) & low_mask(32);
    u64 hit = 0;
    for (unsigned i = 0; i < 4; ++i) {
      const bool enabled = field(dr7, 2 * i + 1, 2 * i) != 0;
      if (enabled && field(dr7, 19 + 4 * i, 16 + 4 * i) == 0 && active_dr(i) == linear) hit |= bit(i);
    }
    if (hit != 0) {
      record_fault(Fault{.vector = Vector::db, .dr6_bits = hit});
      return settle_abort();
    }
  }
  if ((pending_db_ & (dr6::bt | dr6::bs)) != 0 && !had_ss_shadow) {
    const u64 bits = pending_db_;
    pending_db_ = 0;
    update_careful();
    return take_fault(Fault{.vector = Vector::db, .dr6_bits = bits, .trap = true});
  }
  trap_suppressed_ = false;
  rf_kept = false;

  Block* block = blocks_->lookup(true);
  if (block == nullptr) return settle_abort();
  const Insn& in = block->insns[0];
  state.regs[reg_rip] = (start + in.len) & ip_mask_;
  const Step step = in.handler(*this, in);
  if (step == Step::abort) {
    if (!rip_committed_) state.regs[reg_rip] = start;
    rip_committed_ = false;
    if (exit_pending && !fault_pending) {
      replay_next_ = 0;
      return false;
    }
    pending_db_ = 0;
    state.sti_shadow = state.mov_ss_shadow = false;
    const bool faulted = fault_pending;
    const bool go_on = settle_abort();
    flags_changed();
    if (!go_on || !faulted || !single_step) return go_on;
    stop_for_debugger(Vector::db, dr6::bs); // at the handler
    return false;
  }
  ++instructions;
  forget_replay();
  // A shadow lasts for one instruction; STI inside a shadow does not prolong it.
  if (had_sti_shadow) state.sti_shadow = false;
  if (had_ss_shadow) state.mov_ss_shadow = false;
  if (!rf_kept) state.system_flags &= ~rflags::rf;
  if ((tf && !trap_suppressed_) || single_step) pending_db_ |= dr6::bs;
  flags_changed();
  // The end of a shadow lets in NMIs and SMIs too, whatever IF says.
  if (window_wanted && (can_take_interrupt() || had_sti_shadow || had_ss_shadow))
    exit_word.fetch_or(exit_window, std::memory_order_relaxed);
  // Traps wait while MOV SS shields the next instruction.
  if (pending_db_ != 0 && !state.mov_ss_shadow) {
    const u64 bits = pending_db_;
    pending_db_ = 0;
    if (exit_pending && exit == CpuExit::halt && !debugger.takes(bits)) {
      // A debug trap after HLT ends the halt (SDM vol. 2, HLT); the debugger's does not.
      exit_pending = false;
      state.activity = Activity::running;
    }
    if (!take_fault(Fault{.vector = Vector::db, .dr6_bits = bits, .trap = true})) return false;
  }
  return !exit_pending;
}

namespace {
std::mutex split_lock;
}

void Cpu::take_split_lock() {
  split_lock.lock();
  holds_split_lock_ = true;
}

void Cpu::release_split_lock() {
  if (std::exchange(holds_split_lock_, false)) split_lock.unlock();
}

void Cpu::abandon_in_the_middle(bool instruction) {
  release_split_lock();
  if (instruction) state.regs[reg_rip] = insn_start_;
  rip_committed_ = delivering_ = false;
  fault_pending = exit_pending = false;
  forget_replay();
  mmu.flush_all();
  mode_changed();
}

bool Cpu::finish_instruction() {
  exit_pending = false;
  fault_pending = false;
  replay_next_ = 0;
  return step_carefully();
}

void Cpu::poll() {
  poll_at = instructions + poll_interval;
  platform.poll();
}

bool Cpu::interpret_block() {
  if (careful_) [[unlikely]]
    return step_carefully();
  insn_start_ = state.regs[reg_rip]; // its bytes may be what is missing
  Block* block = blocks_->lookup(false);
  if (block == nullptr) [[unlikely]]
    return settle_abort();
  const Insn* in = block->insns;
  u64 ip = state.regs[reg_rip];
  Step step;
  for (;;) {
    insn_start_ = ip;
    state.regs[reg_rip] = (ip + in->len) & ip_mask_;
    step = in->handler(*this, *in);
    if (step != Step::next) break;
    ip = state.regs[reg_rip];
    ++in;
  }
  instructions += static_cast<u64>(in - block->insns);
  if (step == Step::jump) {
    if (in->len != 0) ++instructions;
    return !exit_pending;
  }
  if (!rip_committed_) [[likely]]
    state.regs[reg_rip] = ip;
  rip_committed_ = false;
  return settle_abort();
}

CpuExit Cpu::interpret() {
  exit_pending = false;
  fault_pending = false;
  if (replaying() && !finish_instruction()) return exit;
  for (;;) {
    if (exit_word.load(std::memory_order_relaxed) != 0) return CpuExit::request;
    if (instructions >= poll_at) [[unlikely]]
      poll();
    if (!interpret_block()) return exit;
  }
}

} // namespace ring3::x86
