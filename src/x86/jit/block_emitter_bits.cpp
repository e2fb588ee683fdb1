// SPDX-License-Identifier: Apache-2.0
// Instructions that compute an address from more than their memory operand: bits of a string in memory, XLAT.
#include "x86/jit/block_emitter.h"
#include "x86/jit/tlb_probe.h"

#include <bit>

namespace ring3::x86::jit {

void BlockEmitter::handler_when(Cond c, unsigned i) {
  Cold& slow = add_cold(Cold::Kind::slow, e_.jcc(c));
  slow.index = slow.last = static_cast<u16>(i);
}

void BlockEmitter::put_flags_aside(unsigned i) {
  if (live_before_[i] != 0) keep_flags();
  host_flags_lost();
}

void BlockEmitter::lookup_computed(unsigned size, bool write, unsigned i) {
  const HostMem address = frame::target;
  e_.mov(address, scratch_b);
  emit_probe(e_, frame::tlb, size, write);
  handler_when(Cond::ne, i);
  e_.mov(scratch_b, HostMem::at(scratch_b, offsetof(TlbEntry, addend)));
  e_.add(scratch_b, address);
}

// BT, BTS, BTR and BTC with a bit number in a register: it may be anywhere. The host would look for it behind
// the operand's address, too, but only this word was looked up.
bool BlockEmitter::bit_string(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const bool tests = d.op == Op::bt || d.op == Op::bts || d.op == Op::btr || d.op == Op::btc;
  if (!tests || !d.has_memory || d.operand[1].kind != Operand::Kind::gpr) return false;
  const auto p = place_of(i);
  const HostReg number = plan_.map[d.operand[1].reg >> 3];
  if (!p || number == no_reg) return false;
  const unsigned bits = d.operand[0].bits;
  put_flags_aside(i);
  if (p->constant) {
    e_.mov_imm(scratch_b, p->linear);
  } else {
    e_.lea(scratch_b, p->address);
    if (p->segment == Seg::fs || p->segment == Seg::gs)
      e_.add(scratch_b, HostMem::in_cpu(l_.segment_base[static_cast<unsigned>(p->segment)]));
  }
  e_.movsx(scratch_a, number, bits);
  e_.sar(true, scratch_a, static_cast<u8>(std::countr_zero(bits)));
  e_.lea(scratch_b,
         {.base = scratch_b, .index = scratch_a, .scale = static_cast<u8>(std::countr_zero(bits / 8))});
  lookup_computed(bits / 8, d.op != Op::bt, i);
  e_.mov(false, scratch_a, number);
  e_.and32(scratch_a, bits - 1);
  if ((live_after_[i] & ~use_[i].writes) != 0) fetch_flags(false);
  if (d.lock) e_.byte(0xf0);
  if (bits == 16) e_.byte(0x66);
  e_.op_0f_rm(bits == 64, d.opcode, scratch_a, HostMem::at(scratch_b));
  in_host_ = true;
  in_memory_ = false;
  return true;
}

bool BlockEmitter::translate_byte(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const u8 segment = source_[i].insn.seg;
  const bool based = segment == static_cast<u8>(Seg::fs) || segment == static_cast<u8>(Seg::gs);
  if (d.op != Op::xlat || d.address_bytes != 8 || based) return false;
  put_flags_aside(i);
  e_.movzx8(scratch_b, HostReg{rax});
  e_.lea(scratch_b, {.base = rbx, .index = scratch_b});
  lookup_computed(1, false, i);
  e_.load(1, rax, HostMem::at(scratch_b));
  return true;
}

} // namespace ring3::x86::jit
