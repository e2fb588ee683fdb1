// SPDX-License-Identifier: Apache-2.0
// Where a block is left, and the jumps that it goes on behind.
#include "x86/cpu/translation_context.h"
#include "x86/jit/block_emitter.h"

namespace ring3::x86::jit {

namespace {
Cond opposite(Cond c) { return static_cast<Cond>(static_cast<u8>(c) ^ 1); }
} // namespace

bool BlockEmitter::control_flow(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const Operand& o = d.operand[0];
  const u64 target = next_ip(i) + o.value;
  HostMem at;
  switch (d.op) {
  case Op::jcc: {
    if (jump_form(d) != JumpForm::condition) return false;
    const auto taken = static_cast<Cond>(d.condition);
    const u16 at_target = source_[i].flags_at_target;
    const u16 behind = source_[i].flags_behind;
    if (followed(i)) {
      if (target == next_ip(i)) return true; // it goes on there in any case
      if (!in_host_) fetch_flags(true);
      if (steps_[i + 1].ip == target) {
        leave_when(opposite(taken), i, next_ip(i), behind);
      } else {
        leave_when(taken, i, target, at_target);
      }
      return true;
    }
    end_loans();
    if (!in_host_) fetch_flags(true);
    jump_when(taken, target, at_target);
    jump_to(next_ip(i), behind);
    break;
  }
  case Op::jmp:
    if (d.operand_bytes != 8) return false;
    if (followed(i)) return true;
    if (is_imm(o)) {
      end_loans();
      jump_to(target, source_[i].flags_at_target);
      break;
    }
    if (is_gpr(o)) {
      keep_flags();
      e_.mov(scratch_a, plan_.map[o.reg >> 3]);
    } else {
      const auto p = place_of(i);
      if (o.kind != Operand::Kind::mem || d.memory_bits != 64 || !p || !lookup(*p, 8, false, i, at))
        return false;
      e_.mov(scratch_a, at);
    }
    end_loans();
    jump_indirect(i, 0);
    break;
  case Op::call: {
    if (d.operand_bytes != 8 || (o.kind == Operand::Kind::mem && d.memory_bits != 64)) return false;
    if (o.kind == Operand::Kind::mem) {
      const auto p = place_of(i);
      if (!p || !lookup(*p, 8, false, i, at)) return false;
      e_.mov(scratch_a, at);
      e_.mov(frame::target, scratch_a);
    } else if (!is_imm(o) && !is_gpr(o)) {
      return false;
    }
    static_cast<void>(lookup(stack_place(-8), 8, true, i, at));
    const u64 back = next_ip(i);
    if (fits32(back)) {
      e_.op_rm(true, 0xc7, 0, at);
      e_.raw<s32>(static_cast<s32>(back));
    } else {
      e_.mov_imm(scratch_a, back);
      e_.mov(at, scratch_a);
    }
    if (is_imm(o)) {
      e_.lea(guest_rsp, HostMem::at(guest_rsp, -8));
      if (followed(i)) return true;
      end_loans();
      jump_to(target, source_[i].flags_at_target);
      break;
    }
    if (is_gpr(o)) {
      e_.mov(scratch_a, plan_.map[o.reg >> 3]);
    } else {
      e_.mov(scratch_a, frame::target);
    }
    e_.lea(guest_rsp, HostMem::at(guest_rsp, -8));
    end_loans();
    jump_indirect(i, -8);
    break;
  }
  case Op::ret: {
    if (jump_form(d) != JumpForm::ret) return false;
    const auto popped = static_cast<s8>(8 + (is_imm(o) ? o.value : 0));
    if (!lookup(stack_place(0), 8, false, i, at)) return false;
    if (followed(i)) {
      return_expected(i, at, popped);
      return true;
    }
    e_.mov(scratch_a, at);
    e_.lea(guest_rsp, HostMem::at(guest_rsp, popped));
    end_loans();
    jump_indirect(i, popped);
    break;
  }
  default: return false;
  }
  ended_ = true;
  return true;
}

void BlockEmitter::jump_when(Cond c, u64 target, u16 wanted) {
  Cold& out = add_cold(same_page(target) ? Cold::Kind::link : Cold::Kind::jump, e_.jcc(c));
  out.target = target;
  out.wanted = wanted;
  out.host_flags = !in_memory_ && wanted != 0;
}

void BlockEmitter::leave_when(Cond c, unsigned i, u64 target, u16 wanted) {
  Cold& out = add_cold(Cold::Kind::side, e_.jcc(c));
  out.index = static_cast<u16>(i);
  out.target = target;
  out.wanted = wanted;
  out.host_flags = !in_memory_ && wanted != 0;
}

void BlockEmitter::jump_to(u64 target, u16 wanted) {
  if (same_page(target)) {
    Cold& out = add_cold(Cold::Kind::link, e_.jmp());
    out.target = target;
    out.wanted = wanted;
    out.host_flags = in_host_ && !in_memory_ && wanted != 0;
  } else {
    if (wanted != 0) keep_flags();
    probe_constant(target);
  }
}

// The return of a call in the same block. Keeps what a group of lookups has in scratch_b.
void BlockEmitter::return_expected(unsigned i, const HostMem& at, s8 popped) {
  if (in_host_ && !in_memory_) keep_flags_now(scratch_a);
  e_.mov(scratch_a, at);
  e_.lea(guest_rsp, HostMem::at(guest_rsp, popped));
  const u64 expected = steps_[i + 1].ip;
  u8* literal = nullptr;
  if (fits32(expected)) {
    e_.cmp_imm(true, scratch_a, static_cast<s32>(expected));
  } else {
    literal = e_.cmp_literal(scratch_a);
  }
  Cold& out = add_cold(Cold::Kind::other_return, e_.jcc(Cond::ne));
  out.index = static_cast<u16>(i);
  out.target = expected;
  out.literal = literal;
  out.pushed = popped;
  host_flags_lost();
}

void BlockEmitter::give_back(unsigned count, bool host_flags) {
  if (count == 0) return;
  if (host_flags) {
    e_.mov(false, scratch_b, frame::budget);
    e_.lea32(scratch_b, HostMem::at(scratch_b, static_cast<s32>(count)));
    e_.mov(false, frame::budget, scratch_b);
  } else {
    e_.add32_imm(frame::budget, static_cast<s32>(count));
  }
}

void BlockEmitter::probe_constant(u64 target) {
  const auto slot = static_cast<s32>(JumpTable::index(target) * sizeof(JumpEntry));
  e_.mov(scratch_b, frame::jumps);
  e_.mov_imm(scratch_a, target);
  e_.cmp(scratch_a, HostMem::at(scratch_b, slot + s32{offsetof(JumpEntry, target)}));
  Cold& out = add_cold(Cold::Kind::far_miss, e_.jcc(Cond::ne));
  out.target = target;
  e_.jmp(HostMem::at(scratch_b, slot + s32{offsetof(JumpEntry, code)}));
}

// The place's second entry: `slot` is the first one's, from scratch_b.
void BlockEmitter::probe_second(s32 slot) {
  constexpr auto second = static_cast<s32>(JumpTable::entries * sizeof(JumpEntry));
  e_.cmp(scratch_a, HostMem::at(scratch_b, slot + second + s32{offsetof(JumpEntry, target)}));
  u8* const miss = e_.jcc(Cond::ne);
  e_.jmp(HostMem::at(scratch_b, slot + second + s32{offsetof(JumpEntry, code)}));
  e_.aim_here(miss);
}

void BlockEmitter::jump_indirect(unsigned i, s8 pushed) {
  keep_flags();
  e_.mov(scratch_b, scratch_a);
  static_assert(sizeof(JumpEntry) == 16);
  e_.shr(scratch_b, 7);
  e_.xor32(scratch_b, scratch_a);
  e_.and32(scratch_b, JumpTable::entries - 1);
  e_.shl(scratch_b, 4);
  e_.add(scratch_b, frame::jumps);
  e_.cmp(scratch_a, HostMem::at(scratch_b, offsetof(JumpEntry, target)));
  Cold& out = add_cold(Cold::Kind::miss, e_.jcc(Cond::ne));
  out.index = static_cast<u16>(i);
  out.pushed = pushed;
  e_.jmp(HostMem::at(scratch_b, offsetof(JumpEntry, code)));
}

} // namespace ring3::x86::jit
