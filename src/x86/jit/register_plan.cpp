// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/register_plan.h"

#include <bit>

namespace ring3::x86::jit {

namespace {
constexpr u32 homeless = 1u << r9 | 1u << r10 | 1u << r11;
constexpr u32 lendable = [] {
  u32 all = 0;
  for (const HostReg r : identity) all |= 1u << r;
  return all & ~(1u << rax); // flags pass through it
}();

// Those that the decoder does not name.
u32 implied_registers(const Decoded& d) {
  switch (d.op) {
  case Op::xlat: return 1u << rax | 1u << rbx;
  case Op::movsb:
  case Op::movsw:
  case Op::movsd:
  case Op::movsq:
  case Op::cmpsb:
  case Op::cmpsw:
  case Op::cmpsd:
  case Op::cmpsq: return 1u << rsi | 1u << rdi | 1u << rcx;
  case Op::stosb:
  case Op::stosw:
  case Op::stosd:
  case Op::stosq:
  case Op::scasb:
  case Op::scasw:
  case Op::scasd:
  case Op::scasq: return 1u << rax | 1u << rdi | 1u << rcx;
  case Op::lodsb:
  case Op::lodsw:
  case Op::lodsd:
  case Op::lodsq: return 1u << rax | 1u << rsi;
  default: return 0;
  }
}
} // namespace

u32 registers_of(const Decoded& d) {
  u32 used = 0;
  for (unsigned i = 0; i < d.operands; ++i) {
    if (d.operand[i].kind == Operand::Kind::gpr) used |= 1u << (d.operand[i].reg >> 3);
  }
  if (d.has_memory) {
    if (d.base < 16) used |= 1u << d.base;
    if (!d.vsib && d.index < 16) used |= 1u << d.index;
  }
  return used | implied_registers(d);
}

RegisterPlan plan_registers(std::span<const Source> source, unsigned& count) {
  u32 used = 0;
  unsigned n = 0;
  for (; n < source.size(); ++n) {
    const u32 with = used | (source[n].copied ? registers_of(source[n].decoded) : 0);
    if (std::popcount(with & homeless) > std::popcount(lendable & ~with)) break;
    used = with;
  }
  count = n;

  RegisterPlan plan;
  plan.map.fill(no_reg);
  for (const HostReg r : identity) plan.map[r] = r;
  plan.map[rsp] = guest_rsp;
  u32 free = lendable & ~used;
  for (const u8 guest : {r9, r10, r11}) {
    if ((used >> guest & 1) == 0) continue;
    // The last ones: what they hold is seldom needed soon.
    const auto place = static_cast<HostReg>(31 - std::countl_zero(free));
    free &= ~(1u << place);
    plan.map[place] = no_reg;
    plan.map[guest] = place;
    plan.loans[plan.loan_count++] = {guest, place};
  }
  return plan;
}

} // namespace ring3::x86::jit
