// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/block_emitter.h"

#include "x86/cpu/translation_context.h"
#include "x86/interp/vector_plan.h"
#include "x86/jit/tlb_probe.h"
#include "x86/jit/vector_copy.h"
#include "x86/mmu/tlb.h"

#include <new>
#include <utility>

namespace ring3::x86::jit {

namespace {

// BT is said to leave OF, SF, AF and PF undefined. All processors that we know leave them as they are.
bool bt_keeps_other_flags() {
  static const bool keeps = [] {
    constexpr u64 others = rflags::arithmetic & ~rflags::cf;
    const auto after = [](u64 before) {
      u64 flags = before;
      // Below the red zone.
      asm volatile("leaq -128(%%rsp), %%rsp\n\tpushq %0\n\tpopfq\n\tbtw $8, %w1\n\tpushfq\n\tpopq %0\n\t"
                   "leaq 128(%%rsp), %%rsp"
                   : "+r"(flags)
                   : "r"(0x100)
                   : "cc", "memory");
      return flags;
    };
    return (after(others) & rflags::arithmetic) == rflags::arithmetic && (after(0) & others) == 0;
  }();
  return keeps;
}

} // namespace

BlockEmitter::BlockEmitter(CodeCache& cache, CodeArea area, const Thunks& thunks, const Layout& layout,
                           const RegisterPlan& plan, std::span<const Source> source, TranslatedBlock& t,
                           StepSite* steps, std::pmr::memory_resource& memory)
    : cache_(cache), area_(area), e_(cache.room(area)), thunks_(thunks), l_(layout), plan_(plan),
      source_(source), t_(t), steps_(steps), memory_(memory) {}

BlockEmitter::Cold& BlockEmitter::add_cold(Cold::Kind kind, u8* from) {
  Cold& c = cold_[cold_count_++];
  c = Cold{};
  c.kind = kind;
  c.from = from;
  c.wanted = rflags::arithmetic;
  c.pointers = pointers_of_;
  return c;
}

Exit* BlockEmitter::make_exit(Exit::Kind kind, u64 target) {
  auto* const x = new (memory_.allocate(sizeof(Exit), alignof(Exit))) Exit{};
  x->kind = kind;
  x->target = target;
  x->of = &t_;
  return x;
}

// --- flags ---

// From the end. Where a block is left, whoever comes next may want some of them.
void BlockEmitter::find_live_flags() {
  u64 live = source_.back().flags_behind;
  for (auto i = static_cast<unsigned>(source_.size()); i-- > 0;) {
    const Source& s = source_[i];
    use_[i] = s.copied ? flag_use(s.decoded) : FlagUse{.reads = rflags::arithmetic};
    const JumpForm form = s.copied ? jump_form(s.decoded) : JumpForm::none;
    if (form == JumpForm::condition) {
      live = (followed(i) ? live : 0) | s.flags_at_target | s.flags_behind;
    } else if (form == JumpForm::jump || form == JumpForm::call) {
      use_[i] = {};
      if (!followed(i)) live = s.flags_at_target;
    }
    live_after_[i] = live;
    live = (live & ~use_[i].writes) | use_[i].reads;
    live_before_[i] = live;
    steps_[i].live_flags = static_cast<u16>(live);
  }
}

void BlockEmitter::keep_flags_now(HostReg temporary) {
  e_.mov(temporary, HostReg{rax});
  e_.lahf();
  e_.seto_al();
  e_.mov16(HostMem::in_cpu(l_.flags), rax);
  e_.mov(HostReg{rax}, temporary);
  in_memory_ = true;
}

void BlockEmitter::keep_flags() {
  if (in_host_ && !in_memory_) keep_flags_now(scratch_b);
}

void BlockEmitter::fetch_flags(bool scratch_free) {
  if (scratch_free) {
    e_.mov(scratch_a, HostReg{rax});
  } else {
    e_.mov(frame::saved_rax, rax);
  }
  e_.movzx16(rax, HostMem::in_cpu(l_.flags));
  e_.add_al_7f();
  e_.sahf();
  if (scratch_free) {
    e_.mov(HostReg{rax}, scratch_a);
  } else {
    e_.mov(HostReg{rax}, frame::saved_rax);
  }
  in_host_ = true;
}

// --- registers ---

void BlockEmitter::begin_loans() {
  for (const RegisterPlan::Loan& loan : plan_.all_loans()) {
    e_.mov(l_.reg(loan.place), loan.place);
    e_.mov(loan.place, l_.reg(loan.guest));
  }
}

void BlockEmitter::end_loans() {
  for (const RegisterPlan::Loan& loan : plan_.all_loans()) {
    e_.mov(l_.reg(loan.guest), loan.place);
    e_.mov(loan.place, l_.reg(loan.place));
  }
}

// --- the block ---

bool BlockEmitter::emit() {
  find_live_flags();
  find_groups();
  head();
  for (unsigned i = 0; i < source_.size(); ++i) {
    steps_[i].host_offset = static_cast<u16>(e_.size());
    instruction(i);
  }
  if (!ended_) end_of_block();
  const Emitter block = std::exchange(e_, Emitter(cache_.room(CodeArea::cold)));
  if (block.overflowed()) return false;
  for (unsigned i = 0; i < cold_count_; ++i) {
    const Cold c = cold_[i]; // it may add others
    cold(c);
  }
  if (e_.overflowed()) return false;
  t_.code = executable(block.begin());
  t_.end = executable(block.here());
  t_.cold_bytes = static_cast<u32>(e_.size());
  cache_.take(area_, (block.size() + 15) & ~std::size_t{15});
  cache_.take(CodeArea::cold, e_.size());
  return true;
}

void BlockEmitter::head() {
  const bool wanted = live_before_[0] != 0;
  if (wanted) keep_flags_now(scratch_b);
  t_.entry_memory = executable(e_.here());
  e_.sub32_imm(frame::budget, t_.count);
  add_cold(Cold::Kind::head, e_.jcc(Cond::s));
  if (l_.far_exit_word != nullptr) {
    e_.mov_imm(scratch_b, reinterpret_cast<u64>(l_.far_exit_word));
    e_.cmp32_imm(HostMem::at(scratch_b), 0);
  } else {
    e_.cmp32_imm(HostMem::in_cpu(l_.exit_word), 0);
  }
  add_cold(Cold::Kind::head, e_.jcc(Cond::ne));
  in_host_ = false;
  in_memory_ = wanted;
  begin_loans();
}

// Nothing to be done for them: hints.
bool BlockEmitter::is_hint(Op op) {
  switch (op) {
  case Op::nop:
  case Op::endbr32:
  case Op::endbr64:
  case Op::prefetch:
  case Op::prefetchw:
  case Op::prefetchnta:
  case Op::prefetcht0:
  case Op::prefetcht1:
  case Op::prefetcht2: return true;
  default: return false;
  }
}
bool BlockEmitter::emit_native(unsigned i) {
  return is_hint(source_[i].decoded.op) || address_only(i) || stack(i) || control_flow(i) || vector(i) ||
         x87(i) || division(i) || privileged(i) || string(i) || high_byte(i) || bit_string(i) ||
         translate_byte(i) || system(i) || copied(i);
}

void BlockEmitter::check_tail(unsigned i) {
  put_flags_aside(i);
  e_.mov_imm(scratch_b, reinterpret_cast<u64>(&steps_[i].tail->certain_for));
  e_.movzx8(scratch_a, HostMem::in_cpu(l_.cpl));
  e_.cmp(scratch_a, HostMem::at(scratch_b));
  handler_when(Cond::ne, i);
}

void BlockEmitter::instruction(unsigned i) {
  if (source_[i].copied && source_[i].split) check_tail(i);
  if (!source_[i].copied || !emit_native(i)) {
    stepped(i);
    if (ended_) return;
  }
  for (unsigned c = 0; c < cold_count_; ++c) {
    Cold& slow = cold_[c];
    if (slow.kind != Cold::Kind::slow || slow.last != i) continue;
    slow.back = e_.here();
    slow.host_flags = in_host_;
    slow.level = live_vectors_;
  }
}

void BlockEmitter::stepped(unsigned i) {
  keep_flags();
  end_loans();
  keep_pointers(std::exchange(pointers_of_, none));
  e_.mov_imm(scratch_a, reinterpret_cast<u64>(step_address(i)));
  call_thunk(thunks_.step);
  in_host_ = false;
  in_memory_ = true;
  steps_[i].native = t_.all_native = false;
  live_vectors_ = 0;
  if (source_[i].ends) {
    ended_ = true; // the step does not come back
    return;
  }
  begin_loans();
}

void BlockEmitter::aim_at_thunk(u8* field, const u8* thunk) {
  if (e_.overflowed()) return;
  const auto distance = static_cast<s32>(thunk - (executable(field) + 4));
  std::memcpy(field, &distance, sizeof distance);
}

void BlockEmitter::call_thunk(const u8* thunk) {
  e_.byte(0xe8);
  u8* const field = e_.here();
  e_.raw<u32>(0);
  aim_at_thunk(field, thunk);
}

void BlockEmitter::end_of_block() {
  const auto last = static_cast<unsigned>(source_.size()) - 1;
  end_loans();
  jump_to(next_ip(last), source_[last].flags_behind);
}

// --- instructions ---

bool BlockEmitter::copied(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const auto form = copy_form(d);
  if (!form || !can_copy(d, *form, plan_.map, d.has_memory)) return false;
  HostMem memory;
  if (d.has_memory) {
    const auto p = place_of(i);
    const u16 misaligned = d.op == Op::cmpxchg16b ? 15 : 0;
    if (!p || !lookup(*p, d.memory_bits / 8u, d.memory_written, i, memory, misaligned)) return false;
  }
  const FlagUse& use = use_[i];
  // Flags that it needs, or leaves as they are for somebody who does.
  const u64 passed_on = use.writes != 0 ? live_after_[i] & ~use.writes : 0;
  const bool needs = use.reads != 0 || passed_on != 0;
  // INC and DEC leave CF alone: it can be put back behind them, which takes less than having it there before.
  const bool carry_only = use.reads == 0 && passed_on == rflags::cf && bt_keeps_other_flags();
  const bool carry_later = needs && !in_host_ && carry_only;
  if (needs && !in_host_ && !carry_later) fetch_flags(!d.has_memory || memory.base != scratch_a);
  copy(e_, d, *form, plan_.map, d.has_memory ? &memory : nullptr);
  if (carry_later) {
    static_assert(oszapc::cf == 1u << 8);
    e_.bt16(HostMem::in_cpu(l_.flags), 8);
  }
  if (use.writes != 0 || use.may_write) {
    in_host_ = true;
    in_memory_ = false;
  }
  return true;
}

void BlockEmitter::make_vectors_live(unsigned i, u8 levels) {
  for (unsigned wanted = levels & ~live_vectors_; wanted != 0; wanted &= wanted - 1) {
    const auto level = static_cast<u8>(wanted & -wanted);
    if (live_before_[i] != 0) keep_flags();
    host_flags_lost();
    e_.test8_imm(HostMem::in_cpu(l_.vectors_live), level);
    Cold& out = add_cold(Cold::Kind::vectors, e_.jcc(Cond::e));
    out.index = static_cast<u16>(i);
    out.level = level;
    out.back = e_.here();
    live_vectors_ |= level;
  }
}

bool BlockEmitter::vector(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const auto level = vector_level_of(d, source_[i].insn);
  if (!level || !can_copy_vector(d, plan_.map)) return false;
  HostMem memory;
  if (d.has_memory) {
    const VectorPlan& plan = *source_[i].insn.plan;
    const auto p = place_of(i);
    const u16 misaligned = plan.align_mask;
    // What would refuse the operand has to be known before anything is written.
    if (!p || (p->constant && ((p->linear & page_offset_mask) + plan.memory_bytes > page_size ||
                               (p->linear & misaligned) != 0)))
      return false;
    make_vectors_live(i, *level);
    static_cast<void>(lookup(*p, plan.memory_bytes, d.memory_written, i, memory, misaligned));
  } else {
    make_vectors_live(i, *level);
  }
  copy_vector(e_, d, plan_.map, d.has_memory ? &memory : nullptr);
  if (use_[i].writes != 0) {
    in_host_ = true;
    in_memory_ = false;
  }
  return true;
}

bool BlockEmitter::address_only(unsigned i) {
  const Decoded& d = source_[i].decoded;
  if (d.op != Op::lea) return false;
  const unsigned bits = d.operand[0].bits;
  const HostReg to = plan_.map[d.operand[0].reg >> 3];
  // A segment changes nothing.
  if (bits == 16 || to == no_reg) return false;
  if (d.base == reg_rip) {
    const u64 address = next_ip(i) + static_cast<u64>(d.displacement);
    e_.mov_imm(to, bits == 32 || d.address_bytes == 4 ? static_cast<u32>(address) : address);
    return true;
  }
  HostMem address{.disp = static_cast<s32>(d.displacement)};
  if (d.base < 16) address.base = plan_.map[d.base];
  if (d.index < 16) {
    address.index = plan_.map[d.index];
    address.scale = d.scale;
  }
  // The result is as narrow as the address.
  if (bits == 32 || d.address_bytes == 4) {
    e_.lea32(to, address);
  } else {
    e_.lea(to, address);
  }
  return true;
}

// A quotient that does not fit is #DE, which the handler raises: what might not fit goes there.
bool BlockEmitter::division(unsigned i) {
  const Decoded& d = source_[i].decoded;
  if ((d.op != Op::div && d.op != Op::idiv) || d.operand[0].bits < 32) return false;
  const bool wide = d.operand[0].bits == 64;
  HostReg divisor;
  if (d.has_memory) {
    const auto p = place_of(i);
    HostMem at;
    if (!p || !lookup(*p, wide ? 8 : 4, false, i, at)) return false;
    divisor = scratch_b;
    e_.mov(wide, divisor, at);
  } else {
    divisor = plan_.map[d.operand[0].reg >> 3];
    if (divisor == no_reg) return false;
    if (live_before_[i] != 0) keep_flags();
  }
  host_flags_lost();
  const auto unless_handler = [&](Cond c) {
    Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(c));
    slow.index = slow.last = static_cast<u16>(i);
  };
  if (d.op == Op::div) {
    e_.cmp(wide, HostReg{rdx}, divisor);
    unless_handler(Cond::nb); // also for a divisor of 0
  } else {
    // The dividend is a number of the quotient's size, and the divisor neither 0 nor -1.
    e_.mov(wide, scratch_a, HostReg{rax});
    e_.sar(wide, scratch_a, wide ? 63 : 31);
    e_.cmp(wide, scratch_a, HostReg{rdx});
    unless_handler(Cond::ne);
    if (wide) {
      e_.lea(scratch_a, HostMem::at(divisor, 1));
    } else {
      e_.lea32(scratch_a, HostMem::at(divisor, 1));
    }
    e_.cmp_imm(wide, scratch_a, 1);
    unless_handler(Cond::be);
  }
  e_.divide(wide, d.op == Op::idiv, divisor);
  return true;
}

// In ring 0, where they are a few words of the Cpu. Elsewhere the handlers know whether they are allowed.
bool BlockEmitter::privileged(unsigned i) {
  const Decoded& d = source_[i].decoded;
  // Behind STI comes another instruction before interrupts do, which is so within a block.
  if (d.op != Op::cli && d.op != Op::swapgs && !(d.op == Op::sti && followed(i))) return false;
  if (live_before_[i] != 0) keep_flags();
  host_flags_lost();
  e_.cmp8_imm(HostMem::in_cpu(l_.cpl), 0);
  Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(Cond::ne));
  slow.index = slow.last = static_cast<u16>(i);
  if (d.op == Op::cli) {
    e_.and_imm(HostMem::in_cpu(l_.system_flags), ~static_cast<s32>(rflags::if_));
    return true;
  }
  if (d.op == Op::sti) {
    // One that waits is delivered as the handler says.
    e_.cmp8_imm(HostMem::in_cpu(l_.window_wanted), 0);
    Cold& waits = add_cold(Cold::Kind::slow, e_.jcc(Cond::ne));
    waits.index = waits.last = static_cast<u16>(i);
    e_.or_imm(HostMem::in_cpu(l_.system_flags), static_cast<s32>(rflags::if_));
    return true;
  }
  e_.mov(scratch_a, HostMem::in_cpu(l_.gs_base));
  e_.mov(scratch_b, HostMem::in_cpu(l_.kernel_gs_base));
  e_.mov(HostMem::in_cpu(l_.kernel_gs_base), scratch_a);
  e_.mov(HostMem::in_cpu(l_.gs_base), scratch_b);
  e_.mov(HostMem::in_cpu(l_.segment_base[static_cast<unsigned>(Seg::gs)]), scratch_b);
  return true;
}

// --- what is out of the way ---

void BlockEmitter::unlinked(const Cold& c, u8* field) {
  Exit* const x = make_exit(Exit::Kind::link, c.target);
  x->flags_in_memory = !c.host_flags;
  x->wanted = c.wanted;
  x->field = field;
  x->executable_field = executable(field);
  if (c.host_flags) keep_flags_now(scratch_b);
  e_.mov_imm(scratch_a, reinterpret_cast<u64>(x));
  aim_at_thunk(e_.jmp(), thunks_.leave);
}

void BlockEmitter::cold(const Cold& c) {
  e_.aim_here(c.from);
  switch (c.kind) {
  case Cold::Kind::head:
    e_.add32_imm(frame::budget, t_.count);
    e_.mov_imm(scratch_a, reinterpret_cast<u64>(make_exit(Exit::Kind::head, t_.linear)));
    aim_at_thunk(e_.jmp(), thunks_.leave);
    break;
  case Cold::Kind::slow: {
    if (c.found != nullptr) {
      const HostMem tag = HostMem::at(scratch_b, c.tag_at);
      c.page_is_known ? e_.cmp_imm(tag, c.page) : e_.cmp(scratch_a, tag);
      u8* const missed = e_.jcc(Cond::ne);
      e_.mov(scratch_b, HostMem::at(scratch_b, c.addend_at));
      if (!e_.overflowed()) Emitter::aim(e_.jmp(), c.found);
      e_.aim_here(missed);
    }
    if (c.found_run != nullptr) look_up_run(c);
    end_loans();
    keep_pointers(c.pointers);
    bool returns = true;
    for (unsigned i = c.index; i <= c.last && returns; ++i) {
      e_.mov_imm(scratch_a, reinterpret_cast<u64>(step_address(i)));
      call_thunk(thunks_.step);
      returns = !source_[i].ends || followed(i); // a step that ends the block does not come back
    }
    if (!returns) break;
    begin_loans();
    // The step has put them away.
    if ((c.level & vector_level::x87) != 0) call_thunk(thunks_.load_x87);
    if ((c.level & vector_level::vectors) != 0) call_thunk(thunks_.load_vectors);
    if (c.host_flags) fetch_flags(true);
    if (!e_.overflowed()) Emitter::aim(e_.jmp(), c.back);
    break;
  }
  case Cold::Kind::vectors: {
    e_.test8_imm(HostMem::in_cpu(l_.vectors_usable), c.level);
    u8* const refused = e_.jcc(Cond::e);
    call_thunk(c.level == vector_level::x87 ? thunks_.load_x87 : thunks_.load_vectors);
    if (!e_.overflowed()) Emitter::aim(e_.jmp(), c.back);
    e_.aim_here(refused);
    e_.add32_imm(frame::budget, t_.count - c.index);
    end_loans();
    keep_pointers(c.pointers);
    e_.mov_imm(scratch_a, reinterpret_cast<u64>(make_exit(Exit::Kind::interpret, steps_[c.index].ip)));
    aim_at_thunk(e_.jmp(), thunks_.leave);
    break;
  }
  case Cold::Kind::link: unlinked(c, c.from); break;
  case Cold::Kind::side:
    end_loans();
    keep_pointers(c.pointers);
    give_back(t_.count - c.index - 1u, c.host_flags);
    if (same_page(c.target)) {
      u8* const field = e_.jmp();
      e_.aim_here(field);
      unlinked(c, field);
    } else {
      if (c.host_flags) keep_flags_now(scratch_b);
      probe_constant(c.target);
    }
    break;
  case Cold::Kind::other_return:
    end_loans();
    if (c.pointers != none) {
      e_.mov(scratch_b, scratch_a); // where it goes
      keep_pointers(c.pointers);
      e_.mov(scratch_a, scratch_b);
    }
    give_back(t_.count - c.index - 1u, false);
    in_host_ = false; // return_expected() has kept them
    jump_indirect(c.index, c.pushed);
    if (c.literal != nullptr) {
      e_.aim_here(c.literal);
      e_.raw<u64>(c.target);
    }
    break;
  case Cold::Kind::jump:
    if (c.host_flags) keep_flags_now(scratch_b);
    probe_constant(c.target);
    break;
  case Cold::Kind::far_miss:
    probe_second(static_cast<s32>(JumpTable::index(c.target) * sizeof(JumpEntry)));
    e_.mov_imm(scratch_a, reinterpret_cast<u64>(make_exit(Exit::Kind::jump, c.target)));
    aim_at_thunk(e_.jmp(), thunks_.leave);
    break;
  case Cold::Kind::miss: {
    probe_second(0);
    e_.mov(l_.reg(reg_rip), scratch_a);
    Exit* const x = make_exit(Exit::Kind::indirect, 0);
    x->step = step_address(c.index);
    x->pushed = c.pushed;
    e_.mov_imm(scratch_a, reinterpret_cast<u64>(x));
    aim_at_thunk(e_.jmp(), thunks_.leave);
    break;
  }
  }
}

} // namespace ring3::x86::jit
