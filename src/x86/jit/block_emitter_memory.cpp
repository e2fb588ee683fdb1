// SPDX-License-Identifier: Apache-2.0
// Memory operands: how their addresses are looked up, and which of them share that.
#include "x86/jit/block_emitter.h"

#include "x86/jit/tlb_probe.h"
#include "x86/jit/vector_copy.h"
#include "x86/mmu/tlb.h"

namespace ring3::x86::jit {

namespace {

constexpr u64 page_of(u64 linear) { return linear & ~page_offset_mask; }

// The forms of stack instructions that are one access of eight bytes. find_groups() and the emission have to
// agree on them.
bool pushes_value(const Decoded& d) {
  const Operand& o = d.operand[0];
  return d.op == Op::push && d.operand_bytes == 8 && (is_imm(o) || (is_gpr(o) && o.bits == 64));
}
bool pops_register(const Decoded& d) {
  const Operand& o = d.operand[0];
  return d.op == Op::pop && d.operand_bytes == 8 && is_gpr(o) && o.bits == 64;
}
// Of AH to BH, which no instruction can name together with R8 to R15: the rewritten operand has those.
bool stores_high_byte(const Decoded& d) {
  const Operand& from = d.operand[1];
  return d.op == Op::mov && d.has_memory && d.memory_written && is_gpr(from) && from.bits == 8 &&
         (from.reg & 7) == 1;
}
// Displacements that still fit when the size of the access is added.
bool roomy(s64 displacement) { return displacement > -0x7fff'0000 && displacement < 0x7fff'0000; }

} // namespace

// What emit_native() will make of the instruction, as far as lookups are concerned.
GroupCandidate BlockEmitter::candidate(unsigned i) const {
  const Decoded& d = source_[i].decoded;
  constexpr GroupCandidate neutral{.access = std::nullopt, .neutral = true};
  constexpr GroupCandidate harmless{.access = std::nullopt, .harmless = true};
  const auto on_stack = [](s32 at, bool write) {
    return GroupCandidate{.access = SimpleAccess{HostMem::at(guest_rsp, at), 8, write}};
  };
  if (!source_[i].copied || source_[i].split) return {};
  if (is_hint(d.op)) return neutral;
  const Operand& o = d.operand[0];
  switch (d.op) {
  case Op::push: return pushes_value(d) ? on_stack(-8, true) : harmless;
  case Op::pushf:
  case Op::pushfq: return d.operand_bytes == 8 ? on_stack(-8, true) : GroupCandidate{};
  case Op::pop: return pops_register(d) ? on_stack(0, false) : harmless;
  case Op::ret: return jump_form(d) == JumpForm::ret ? on_stack(0, false) : GroupCandidate{};
  case Op::jcc:
  case Op::jmp: return followed(i) ? neutral : GroupCandidate{};
  case Op::call: return d.operand_bytes == 8 && is_imm(o) ? on_stack(-8, true) : GroupCandidate{};
  case Op::lea: return o.bits != 16 && plan_.map[o.reg >> 3] != no_reg && place_of(i) ? neutral : harmless;
  case Op::div:
  case Op::idiv: return harmless;
  default: break;
  }
  if (vector_level_of(d, source_[i].insn)) return can_copy_vector(d, plan_.map) ? harmless : GroupCandidate{};
  if (stores_high_byte(d)) return harmless;
  const auto form = copy_form(d);
  if (!form || !can_copy(d, *form, plan_.map, d.has_memory)) return {};
  if (!d.has_memory) return neutral;
  const auto p = place_of(i);
  if (!p || p->constant || p->segment == Seg::fs || p->segment == Seg::gs || p->address.base == no_reg ||
      d.memory_bits > 64)
    return harmless;
  return {.access = SimpleAccess{p->address, static_cast<u8>(d.memory_bits / 8), d.memory_written}};
}

void BlockEmitter::find_groups() {
  std::array<GroupCandidate, max_insns> candidates;
  for (unsigned i = 0; i < source_.size(); ++i) candidates[i] = candidate(i);
  plan_lookups(source_, std::span(candidates).first(source_.size()), plan_,
               std::span(group_).first(source_.size()));
  for (unsigned i = 0; i < source_.size(); ++i) {
    steps_[i].begins_run = group_[i].run.span != 0 && group_[i].last != i;
    steps_[i].in_run = steps_[i].begins_run || group_[i].member;
  }
}

std::optional<BlockEmitter::Place> BlockEmitter::place_of(unsigned i) const {
  const Decoded& d = source_[i].decoded;
  if (d.vsib || d.address_bytes != 8 || d.disp_size == 64 || !roomy(d.displacement)) return std::nullopt;
  Place p;
  p.segment = d.segment;
  if (d.base == reg_rip) {
    const u64 address = next_ip(i) + static_cast<u64>(d.displacement);
    p.constant = d.segment != Seg::fs && d.segment != Seg::gs;
    p.linear = address;
    // Linux's per-CPU variables are small offsets from GS, written as if they were relative to RIP.
    p.address.disp = static_cast<s32>(address);
    if (!p.constant && (!fits32(address) || !roomy(p.address.disp))) return std::nullopt;
    return p;
  }
  if (d.base < 16) p.address.base = plan_.map[d.base];
  if (d.index < 16) {
    p.address.index = plan_.map[d.index];
    p.address.scale = d.scale;
  }
  p.address.disp = static_cast<s32>(d.displacement);
  return p;
}

BlockEmitter::Place BlockEmitter::stack_place(s32 displacement) const {
  return {.address = HostMem::at(guest_rsp, displacement), .segment = Seg::ss};
}

HostMem BlockEmitter::found_at(const Place& p) {
  const bool based = p.segment == Seg::fs || p.segment == Seg::gs;
  const HostMem base = HostMem::in_cpu(l_.segment_base[static_cast<unsigned>(p.segment)]);
  const bool registers = p.address.base != no_reg || p.address.index != no_reg;
  if (based && !registers) {
    e_.mov(scratch_a, base);
    return {.base = scratch_a, .index = scratch_b, .disp = p.address.disp};
  }
  if (based || p.address.index != no_reg) {
    e_.lea(scratch_a, p.address);
    if (based) e_.add(scratch_a, base);
    return {.base = scratch_a, .index = scratch_b};
  }
  HostMem out = p.address;
  (registers ? out.index : out.base) = scratch_b;
  return out;
}

bool BlockEmitter::lookup(const Place& given, unsigned size, bool write, unsigned i, HostMem& out,
                          u16 misaligned) {
  const LookupGroup& group = group_[i];
  if (group.member) {
    out = found_at(given);
    return true;
  }
  const auto add_slow = [&](Cond c) -> Cold& {
    Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(c));
    slow.index = static_cast<u16>(i);
    slow.last = group.run.span != 0 ? group.last : slow.index;
    return slow;
  };
  const bool shared = group.slot != LookupGroup::none;
  const bool first = shared && group.all.span != 0;
  if (shared && !first && (slots_filled_ >> group.slot & 1) != 0) {
    if (live_before_[i] != 0) keep_flags();
    e_.mov(scratch_b, frame::addend(static_cast<unsigned>(group.slot)));
    e_.test(scratch_b, scratch_b);
    Cold& slow = add_slow(Cond::e);
    host_flags_lost();
    slow.found_run = e_.here();
    out = found_at(given);
    return true;
  }

  Place p = given;
  const LookupRange& range = first ? group.all : group.run;
  if (range.span != 0) {
    p.address.disp = range.lo;
    size = range.span;
    write = range.write;
  }
  constexpr auto second = static_cast<s32>(TlbTable::entries * sizeof(TlbEntry));
  const s32 tag = write ? offsetof(TlbEntry, write_tag) : offsetof(TlbEntry, read_tag);
  constexpr s32 addend = offsetof(TlbEntry, addend);
  if (p.constant) {
    if ((p.linear & page_offset_mask) + size > page_size || (p.linear & misaligned) != 0) return false;
    if (live_before_[i] != 0) keep_flags();
    const auto at = static_cast<s32>(TlbTable::index(p.linear) * sizeof(TlbEntry));
    const u64 page = page_of(p.linear);
    e_.mov(scratch_b, frame::tlb);
    if (fits32(page)) {
      e_.cmp_imm(HostMem::at(scratch_b, at + tag), static_cast<s32>(page));
    } else {
      e_.mov_imm(scratch_a, page);
      e_.cmp(scratch_a, HostMem::at(scratch_b, at + tag));
    }
    Cold& slow = add_slow(Cond::ne);
    host_flags_lost();
    e_.mov(scratch_b, HostMem::at(scratch_b, at + addend));
    slow.found = e_.here();
    slow.tag_at = second + at + tag;
    slow.addend_at = second + at + addend;
    slow.page_is_known = fits32(page);
    slow.page = static_cast<s32>(page);
    if (fits32(p.linear)) {
      out = HostMem::at(scratch_b, static_cast<s32>(p.linear));
    } else {
      e_.mov_imm(scratch_a, p.linear);
      out = {.base = scratch_a, .index = scratch_b};
    }
    return true;
  }

  if (live_before_[i] != 0) keep_flags();
  const bool based = p.segment == Seg::fs || p.segment == Seg::gs;
  const HostMem base = HostMem::in_cpu(l_.segment_base[static_cast<unsigned>(p.segment)]);
  if (based && p.address.base == no_reg && p.address.index == no_reg) {
    // Per-CPU and thread-local variables have no register in their address.
    e_.mov(scratch_b, base);
    e_.lea(scratch_b, HostMem::at(scratch_b, p.address.disp));
  } else {
    if (p.address.base != no_reg && p.address.index == no_reg && p.address.disp == 0) {
      e_.mov(scratch_b, HostReg{p.address.base});
    } else {
      e_.lea(scratch_b, p.address);
    }
    if (based) e_.add(scratch_b, base);
  }
  if (misaligned != 0) {
    e_.test8_imm(scratch_b, static_cast<u8>(misaligned));
    add_slow(Cond::ne);
  }
  emit_probe(e_, frame::tlb, size, write);
  Cold& slow = add_slow(Cond::ne);
  host_flags_lost();
  e_.mov(scratch_b, HostMem::at(scratch_b, addend));
  slow.found = e_.here();
  slow.tag_at = second + tag;
  slow.addend_at = second + addend;
  if (first) {
    e_.mov(frame::addend(static_cast<unsigned>(group.slot)), scratch_b);
    slots_filled_ |= 1u << group.slot;
    slow.found_run = e_.here();
  }
  out = found_at(given);
  return true;
}

// --- out of the way ---

void BlockEmitter::look_up_run(const Cold& c) {
  const LookupGroup& g = group_[c.index];
  constexpr auto second = static_cast<s32>(TlbTable::entries * sizeof(TlbEntry));
  const s32 tag = g.run.write ? offsetof(TlbEntry, write_tag) : offsetof(TlbEntry, read_tag);
  if (g.all.span != 0) e_.mov_imm(frame::addend(static_cast<unsigned>(g.slot)), 0);
  HostMem address = candidate(c.index).access->address;
  address.disp = g.run.lo;
  e_.lea(scratch_b, address);
  emit_probe(e_, frame::tlb, g.run.span, g.run.write);
  u8* const found = e_.jcc(Cond::e);
  e_.lea(scratch_b, HostMem::at(scratch_b, second));
  e_.cmp(scratch_a, HostMem::at(scratch_b, tag));
  u8* const missed = e_.jcc(Cond::ne);
  e_.aim_here(found);
  e_.mov(scratch_b, HostMem::at(scratch_b, offsetof(TlbEntry, addend)));
  if (!e_.overflowed()) Emitter::aim(e_.jmp(), c.found_run);
  e_.aim_here(missed);
}

// --- instructions ---

bool BlockEmitter::high_byte(unsigned i) {
  const Decoded& d = source_[i].decoded;
  if (!stores_high_byte(d)) return false;
  const HostReg from = plan_.map[d.operand[1].reg >> 3];
  const auto p = place_of(i);
  HostMem at;
  if (!p || from == no_reg || !lookup(*p, 1, true, i, at)) return false;
  e_.lea(scratch_b, at);
  e_.mov(false, scratch_a, from);
  e_.shr(scratch_a, 8);
  e_.mov8(HostMem::at(scratch_b), scratch_a);
  return true;
}

bool BlockEmitter::stack(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const Operand& o = d.operand[0];
  HostMem at;
  switch (d.op) {
  case Op::push: {
    if (d.operand_bytes == 8 && o.kind == Operand::Kind::mem && d.memory_bits == 64) {
      const auto p = place_of(i);
      if (!p || !lookup(*p, 8, false, i, at)) return false;
      e_.mov(scratch_a, at);
      e_.mov(frame::target, scratch_a);
      static_cast<void>(lookup(stack_place(-8), 8, true, i, at));
      e_.mov(scratch_a, frame::target);
      e_.mov(at, scratch_a);
      e_.lea(guest_rsp, HostMem::at(guest_rsp, -8));
      return true;
    }
    if (!pushes_value(d)) return false;
    const HostReg from = is_gpr(o) ? plan_.map[o.reg >> 3] : no_reg;
    if (!lookup(stack_place(-8), 8, true, i, at)) return false;
    if (is_gpr(o)) {
      e_.mov(at, from);
    } else {
      e_.op_rm(true, 0xc7, 0, at);
      e_.raw<s32>(static_cast<s32>(o.value));
    }
    e_.lea(guest_rsp, HostMem::at(guest_rsp, -8));
    return true;
  }
  case Op::pop: {
    if (!pops_register(d)) return false;
    if (!lookup(stack_place(0), 8, false, i, at)) return false;
    e_.mov(plan_.map[o.reg >> 3], at);
    if (o.reg != rsp * 8) e_.lea(guest_rsp, HostMem::at(guest_rsp, 8));
    return true;
  }
  case Op::leave:
    if (d.operand_bytes != 8) return false;
    if (!lookup({.address = HostMem::at(rbp), .segment = Seg::ss}, 8, false, i, at)) return false;
    e_.mov(scratch_a, at);
    e_.lea(guest_rsp, HostMem::at(rbp, 8));
    e_.mov(HostReg{rbp}, scratch_a);
    return true;
  default: return false;
  }
}

} // namespace ring3::x86::jit
