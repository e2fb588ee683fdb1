// SPDX-License-Identifier: Apache-2.0
// x87 instructions within a block.
#include "x86/jit/block_emitter.h"
#include "x86/jit/vector_copy.h"
#include "x86/jit/x87_copy.h"

#include <algorithm>

namespace ring3::x86::jit {

// The instruction at `i` has executed, so FOP and FIP are its own. In memory they have to be when something
// else may ask: what leaves the block or calls a handler before they are there writes them itself.
void BlockEmitter::has_set_pointers(unsigned i) {
  pointers_of_ = static_cast<s16>(i);
  const auto later = source_.subspan(i + 1);
  if (std::ranges::any_of(later, [](const Source& s) { return sets_x87_pointers(s.insn); })) return;
  keep_pointers(pointers_of_);
  pointers_of_ = none;
}

// Changes scratch_a.
void BlockEmitter::keep_pointers(s16 of) {
  if (of == none) return;
  const StepSite& s = steps_[of];
  e_.mov16_imm(HostMem::in_cpu(l_.x87 + s32{offsetof(X87State, fop)}), static_cast<u16>(s.insn.imm));
  keep_address(offsetof(X87State, fip), s.ip);
}

void BlockEmitter::keep_address(s32 member, u64 address) {
  const HostMem to = HostMem::in_cpu(l_.x87 + member);
  if (fits32(address)) {
    e_.mov_imm(to, static_cast<s32>(address));
  } else {
    e_.mov_imm(scratch_a, address);
    e_.mov(to, scratch_a);
  }
}

// FDP is the offset in the segment.
void BlockEmitter::keep_data_pointer(const Place& p) {
  constexpr s32 fdp = offsetof(X87State, fdp);
  if (p.constant) {
    keep_address(fdp, p.linear);
  } else if (p.address.base == no_reg && p.address.index == no_reg) {
    keep_address(fdp, static_cast<u64>(s64{p.address.disp}));
  } else {
    e_.lea(scratch_a, p.address);
    e_.mov(HostMem::in_cpu(l_.x87 + fdp), scratch_a);
  }
}

bool BlockEmitter::x87(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const auto form = x87_form(d, source_[i].insn);
  if (!form) return false;
  const auto p = form->memory_bytes != 0 ? place_of(i) : std::nullopt;
  if (form->memory_bytes != 0 &&
      (!p || (p->constant && (p->linear & page_offset_mask) + form->memory_bytes > page_size)))
    return false;

  if (form->kind == X87Form::Kind::wait && (live_vectors_ & vector_level::x87) == 0) {
    if (live_before_[i] != 0) keep_flags();
    host_flags_lost();
    e_.test8_imm(HostMem::in_cpu(l_.vectors_usable), vector_level::x87);
    Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(Cond::e));
    slow.index = slow.last = static_cast<u16>(i);
    return true;
  }
  make_vectors_live(i, vector_level::x87);
  HostMem memory;
  if (p) static_cast<void>(lookup(*p, form->memory_bytes, d.memory_written, i, memory));
  switch (form->kind) {
  case X87Form::Kind::wait:
  case X87Form::Kind::nothing: return true;
  case X87Form::Kind::load_control: load_control(i, memory); return true;
  case X87Form::Kind::copied: break;
  }
  const FlagUse& use = use_[i];
  const bool passed_on = use.writes != 0 && (live_after_[i] & ~use.writes) != 0;
  if ((use.reads != 0 || passed_on) && !in_host_) fetch_flags(true);
  copy_x87(e_, d, p ? &memory : nullptr);
  if (use.writes != 0) {
    in_host_ = true;
    in_memory_ = false;
  }
  if (sets_x87_pointers(source_[i].insn)) {
    if (p) keep_data_pointer(*p);
    has_set_pointers(i);
  }
  return true;
}

// FLDCW. Memory is read once, since somebody else may write it.
void BlockEmitter::load_control(unsigned i, const HostMem& memory) {
  constexpr u32 masks = 0x3f;
  const HostMem word = HostMem::in_cpu(l_.x87_control);
  e_.movzx16(scratch_a, memory);
  e_.mov16(word, scratch_a);
  e_.and32(scratch_a, masks);
  e_.cmp_imm(false, scratch_a, masks);
  Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(Cond::ne));
  slow.index = slow.last = static_cast<u16>(i);
  e_.fldcw(word);
  // After the handler it is not known.
  live_vectors_ &= static_cast<u8>(~vector_level::x87);
  steps_[i].unmasks = true;
}

} // namespace ring3::x86::jit
