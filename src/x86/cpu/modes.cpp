// SPDX-License-Identifier: Apache-2.0
// Reset, and everything that is derived from the mode the processor is in.
#include "x86/cpu/cpu.h"
#include "x86/decode/block_cache.h"
#include "x86/decode/decode_memo.h"

namespace ring3::x86 {

Cpu::Cpu(const kvm::MemorySlots& slots, kvm::CodeWatch& code_watch, Platform& p, std::atomic<u32>& word)
    : mmu(state, slots, code_watch), platform(p), exit_word(word), never_(std::make_unique<TlbTable>()),
      decode_memo_(std::make_unique<DecodeMemo>()), blocks_(std::make_unique<BlockCache>(*this)) {
  reset(false);
}

Cpu::~Cpu() = default;

void Cpu::forget_code() {
  decode_memo_->clear();
  blocks_->flush();
  if (executor_) executor_->forget_code();
}

void Cpu::reset(bool init) {
  const CpuState old = state;
  state = CpuState{};
  for (Segment& s : state.seg) {
    s = Segment{};
    s.type = 3;
    s.s = true;
    s.present = true;
    s.limit = 0xffff;
  }
  Segment& code = state.segment(Seg::cs);
  code.selector = 0xf000;
  code.base = 0xffff0000;
  code.type = 0xb;
  state.segment(Seg::ldtr).s = false;
  state.segment(Seg::ldtr).type = 2;
  state.segment(Seg::tr).s = false;
  state.segment(Seg::tr).type = 0xb;
  state.regs[reg_rip] = 0xfff0;
  state.regs[rdx] = cpuid.query(1, 0, state).eax;
  state.gdtr = state.idtr = TableRegister{0, 0xffff};
  if (init) {
    // INIT keeps the FPU, the time-stamp counter, the MSRs and CR0's cache bits (SDM vol. 3, table 9-1).
    state.x87 = old.x87;
    state.vector = old.vector;
    state.cr0 |= old.cr0 & (cr0::cd | cr0::nw);
    if ((old.cr0 & cr0::cd) == 0) state.cr0 &= ~cr0::cd;
    if ((old.cr0 & cr0::nw) == 0) state.cr0 &= ~cr0::nw;
    state.xcr0 = old.xcr0;
    state.xss = old.xss;
    state.pkru = old.pkru;
    state.star = old.star;
    state.lstar = old.lstar;
    state.cstar = old.cstar;
    state.sfmask = old.sfmask;
    state.kernel_gs_base = old.kernel_gs_base;
    state.sysenter_cs = old.sysenter_cs;
    state.sysenter_esp = old.sysenter_esp;
    state.sysenter_eip = old.sysenter_eip;
    state.tsc_offset = old.tsc_offset;
    state.tsc_adjust = old.tsc_adjust;
    state.tsc_aux = old.tsc_aux;
    state.pat = old.pat;
    state.misc_enable = old.misc_enable;
    state.mtrr_def_type = old.mtrr_def_type;
    for (unsigned i = 0; i < 11; ++i) state.mtrr_fixed[i] = old.mtrr_fixed[i];
    for (unsigned i = 0; i < 16; ++i) state.mtrr_variable[i] = old.mtrr_variable[i];
    state.spec_ctrl = old.spec_ctrl;
    state.power_ctl = old.power_ctl;
    state.ucode_rev = old.ucode_rev;
    state.smbase = old.smbase;
    state.platform_info = old.platform_info;
    state.arch_capabilities = old.arch_capabilities;
    state.mcg_cap = old.mcg_cap;
    state.mcg_status = old.mcg_status;
    state.mcg_ctl = old.mcg_ctl;
    for (unsigned i = 0; i < 4 * max_mc_banks; ++i) state.mc_banks[i] = old.mc_banks[i];
    for (unsigned i = 0; i < max_mc_banks; ++i) state.mc_ctl2[i] = old.mc_ctl2[i];
  } else {
    state.x87.fcw = 0x40;
    state.x87.ftw = 0xff;
  }
  pending_db_ = 0;
  fault_pending = exit_pending = false;
  forget_replay();
  mmu.select_context(0);
  if (old.in_smm) {
    mmu.reload_slots();
  } else {
    mmu.flush_all();
  }
  mode_changed();
  debug_registers_changed();
}

void Cpu::load_segment_cache(Seg s) {
  const auto i = static_cast<unsigned>(s);
  const Segment& d = state.seg[i];
  SegmentCheck& c = segment_check_[i];
  if (code64_) {
    segment_base_[i] = s == Seg::fs || s == Seg::gs ? d.base : 0;
    return;
  }
  segment_base_[i] = d.base & low_mask(32);
  c = SegmentCheck{};
  if (!d.usable() && !state.real_or_v86()) {
    c.low = 1;
    return;
  }
  if (state.real_or_v86()) {
    c.read = c.write = true;
  } else {
    c.read = d.readable();
    c.write = d.writable();
  }
  if (d.expand_down() && !state.real_or_v86()) {
    c.low = u64{d.limit} + 1;
    c.high = d.db ? 0xffffffff : 0xffff;
  } else {
    c.high = d.limit;
  }
}

void Cpu::mode_changed() {
  code64_ = state.code64();
  const bool wide_code = state.segment(Seg::cs).db;
  code_bits_ = code64_ ? 64 : wide_code ? 32 : 16;
  ip_mask_ = code64_ ? ~u64{0} : low_mask(32);
  linear_mask_ = code64_ ? ~u64{0} : low_mask(32);
  stack_mask_ = code64_ ? ~u64{0} : state.segment(Seg::ss).db ? low_mask(32) : low_mask(16);
  for (const Seg s : {Seg::es, Seg::cs, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) load_segment_cache(s);
  flags_changed();
}

void Cpu::flags_changed() {
  alignment_checks_ = state.cpl == 3 && (state.cr0 & cr0::am) != 0 && (state.system_flags & rflags::ac) != 0;
  code_tlb_ = &mmu.table(tlb_mode(false));
  // A log of stores wants all of them to take the slow path.
  tlb_ = alignment_checks_ || watchpoints_ || store_log_ != nullptr ? never_.get() : code_tlb_;
  const bool smap = (state.cr4 & cr4::smap) != 0;
  translation_.supervisor_tlb = {&mmu.table(smap ? TlbMode::kernel : TlbMode::kernel_ac),
                                 &mmu.table(TlbMode::kernel_ac)};
  update_careful();
}

void Cpu::debug_registers_changed() {
  const u64 dr7 = active_dr7();
  watchpoints_ = false;
  breakpoints_ = false;
  for (unsigned i = 0; i < 4; ++i) {
    if (field(dr7, 2 * i + 1, 2 * i) == 0) continue;
    if (field(dr7, 17 + 4 * i, 16 + 4 * i) == 0) {
      breakpoints_ = true;
    } else {
      watchpoints_ = true;
    }
  }
  flags_changed();
}

void Cpu::update_careful() {
  careful_ = breakpoints_ || watchpoints_ || debugger.single_step ||
             (state.system_flags & (rflags::tf | rflags::rf)) != 0 || state.sti_shadow || state.mov_ss_shadow;
}

bool Cpu::jump_near(u64 target, u8 opsize) {
  if (code64_) {
    if (!canonical(target)) {
      gp();
      return false;
    }
  } else {
    target &= opsize == 2 ? low_mask(16) : low_mask(32);
    if (target > state.segment(Seg::cs).limit) {
      gp();
      return false;
    }
  }
  state.regs[reg_rip] = target;
  return true;
}

} // namespace ring3::x86
