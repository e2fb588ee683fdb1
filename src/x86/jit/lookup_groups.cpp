// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/lookup_groups.h"

#include "x86/jit/layout.h"

#include <algorithm>

namespace ring3::x86::jit {

namespace {

// The longer, the more often it lies across two pages.
constexpr s64 longest_span = 128;

bool writes(const Decoded& d, HostReg place, const RegisterPlan& plan) {
  for (unsigned i = 0; i < d.operands; ++i) {
    const Operand& o = d.operand[i];
    if (o.kind == Operand::Kind::gpr && o.written && plan.map[o.reg >> 3] == place) return true;
  }
  return false;
}

// How much the instruction adds to the base register; nothing: it does something else to it.
std::optional<s64> added(const Decoded& d, HostReg base, const RegisterPlan& plan) {
  if (base == guest_rsp) {
    const Operand& to = d.operand[0];
    if (d.op == Op::push || d.op == Op::pushf || d.op == Op::pushfq || d.op == Op::call) return -8;
    if (d.op == Op::ret) return 8 + (to.kind == Operand::Kind::imm ? static_cast<s64>(to.value) : 0);
    if (d.op == Op::pop) return to.reg == rsp * 8 ? std::nullopt : std::optional<s64>(8);
    const bool by_number = (d.op == Op::add || d.op == Op::sub) && to.kind == Operand::Kind::gpr &&
                           to.bits == 64 && to.reg == rsp * 8 && d.operand[1].kind == Operand::Kind::imm;
    if (by_number) {
      const auto n = static_cast<s64>(d.operand[1].value);
      return d.op == Op::add ? n : -n;
    }
  }
  if (writes(d, base, plan)) return std::nullopt;
  return 0;
}

} // namespace

void plan_lookups(std::span<const Source> source, std::span<const GroupCandidate> candidates,
                  const RegisterPlan& plan, std::span<LookupGroup> out) {
  std::ranges::fill(out, LookupGroup{});
  for (unsigned first = 0; first < source.size(); ++first) {
    if (!candidates[first].access) continue;
    const SimpleAccess& a = *candidates[first].access;
    s64 moved = 0; // the base register, since the first one
    s64 lo = a.disp;
    s64 hi = s64{a.disp} + a.size;
    bool write = a.write;
    unsigned last = first;
    for (unsigned i = first;;) {
      const auto change = added(source[i].decoded, a.base, plan);
      const bool leaves = source[i].ends && source[i].followed == JumpForm::none;
      if (!change || leaves || ++i == source.size()) break;
      moved += *change;
      if (const auto& next = candidates[i].access; next && next->base == a.base) {
        const s64 new_lo = std::min(lo, moved + next->disp);
        const s64 new_hi = std::max(hi, moved + next->disp + next->size);
        if (new_hi - new_lo > longest_span) break;
        lo = new_lo;
        hi = new_hi;
        write |= next->write;
        last = i;
      } else if (!candidates[i].neutral) {
        break;
      }
    }
    if (last == first || lo < -0x7000'0000 || hi > 0x7000'0000) continue;
    out[first] = {.last = static_cast<u16>(last),
                  .lo = static_cast<s32>(lo),
                  .span = static_cast<u16>(hi - lo),
                  .write = write};
    for (unsigned i = first + 1; i <= last; ++i) {
      if (candidates[i].access) out[i].member = true;
    }
    first = last;
  }
}

} // namespace ring3::x86::jit
