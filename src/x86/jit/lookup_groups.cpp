// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/lookup_groups.h"

#include "x86/jit/layout.h"

#include <algorithm>
#include <array>

namespace ring3::x86::jit {

namespace {

// The longer, the more often they lie across two pages. Each instruction of a run is left to its handler
// then, and each run looked up alone.
constexpr s64 longest_run = 128, longest_group = 256;

// How much the instruction adds to the register; nothing: it does something else to it.
std::optional<s64> added(const Decoded& d, HostReg base, const RegisterPlan& plan) {
  if (base == no_reg) return 0;
  const auto is_base = [&](const Operand& o) {
    return o.kind == Operand::Kind::gpr && plan.map[o.reg >> 3] == base;
  };
  const Operand& to = d.operand[0];
  if (base == guest_rsp) {
    const s64 size = d.operand_bytes; // 2 or 8
    if (d.op == Op::push || d.op == Op::pushf || d.op == Op::pushfq || d.op == Op::call) return -size;
    if (d.op == Op::ret) return size + (to.kind == Operand::Kind::imm ? static_cast<s64>(to.value) : 0);
    if (d.op == Op::pop) return is_base(to) ? std::nullopt : std::optional<s64>(size);
  }
  if (is_base(to) && to.bits == 64) {
    if ((d.op == Op::add || d.op == Op::sub) && d.operand[1].kind == Operand::Kind::imm) {
      const auto n = static_cast<s64>(d.operand[1].value);
      return d.op == Op::add ? n : -n;
    }
    if (d.op == Op::inc) return 1;
    if (d.op == Op::dec) return -1;
    const bool itself = d.base < 16 && plan.map[d.base] == base && d.index >= 16;
    if (d.op == Op::lea && itself && d.address_bytes == 8) return d.displacement;
  }
  for (unsigned i = 0; i < d.operands; ++i) {
    if (is_base(d.operand[i]) && d.operand[i].written) return std::nullopt;
  }
  return 0;
}

// The range grows by what is accessed there. False: it would become too long, and stays as it is.
bool extend(LookupRange& r, s64 at, const SimpleAccess& a, s64 longest) {
  const s64 lo = r.span == 0 ? at : std::min(s64{r.lo}, at);
  const s64 hi = std::max(r.span == 0 ? at : s64{r.lo} + r.span, at + a.size);
  if (hi - lo > longest || lo < -0x7000'0000 || hi > 0x7000'0000) return false;
  r = {.lo = static_cast<s32>(lo), .span = static_cast<u16>(hi - lo), .write = r.write || a.write};
  return true;
}

class Planner {
 public:
  Planner(std::span<const Source> source, std::span<const GroupCandidate> candidates,
          const RegisterPlan& plan, std::span<LookupGroup> out)
      : source_(source), candidates_(candidates), plan_(plan), out_(out) {}

  // The group that begins with this instruction, if there are others.
  void group(unsigned first);

 private:
  struct Member {
    u16 index;
    bool begins_run;
    s64 moved; // the address, since the first one
  };

  bool planned(unsigned i) const { return out_[i].member || out_[i].run.span != 0; }
  // Finds those that can be of it.
  void collect(unsigned first);
  // A place in the frame for them; none: all are taken.
  s8 take_slot(unsigned first, unsigned last);

  const std::span<const Source> source_;
  const std::span<const GroupCandidate> candidates_;
  const RegisterPlan& plan_;
  const std::span<LookupGroup> out_;
  std::array<u16, frame::addends> free_from_{}; // the instruction that it is not in use before

  LookupRange all_;
  std::array<Member, 128> members_;
  unsigned count_ = 0;
};

void Planner::collect(unsigned first) {
  const SimpleAccess& a = *candidates_[first].access;
  all_ = {};
  count_ = 0;
  s64 moved = 0;
  bool in_run = false; // one that this instruction may be of
  LookupRange run;
  for (unsigned i = first; i < source_.size() && count_ < members_.size(); ++i) {
    const auto& next = candidates_[i].access;
    const bool fits = next && !planned(i) && next->address.base == a.address.base &&
                      next->address.index == a.address.index && next->address.scale == a.address.scale &&
                      extend(all_, moved + next->address.disp, *next, longest_group);
    if (fits) {
      if (!in_run || source_[i].alone || !extend(run, moved + next->address.disp, *next, longest_run)) {
        in_run = false;
        run = {};
        static_cast<void>(extend(run, moved + next->address.disp, *next, longest_run));
      }
      members_[count_++] = {static_cast<u16>(i), !in_run, moved};
      in_run = !source_[i].alone;
    } else if (!candidates_[i].neutral) {
      if (!next && !candidates_[i].harmless) break;
      in_run = false;
    }
    const auto of_base = added(source_[i].decoded, a.address.base, plan_);
    const auto of_index = added(source_[i].decoded, a.address.index, plan_);
    if (!of_base || !of_index) break;
    moved += *of_base + *of_index * (s64{1} << a.address.scale);
    if (source_[i].ends && source_[i].followed == JumpForm::none) break;
  }
}

s8 Planner::take_slot(unsigned first, unsigned last) {
  for (unsigned s = 0; s < free_from_.size(); ++s) {
    if (free_from_[s] > first) continue;
    free_from_[s] = static_cast<u16>(last + 1);
    return static_cast<s8>(s);
  }
  return LookupGroup::none;
}

void Planner::group(unsigned first) {
  if (!candidates_[first].access || planned(first)) return;
  collect(first);
  unsigned in_first_run = 1;
  while (in_first_run < count_ && !members_[in_first_run].begins_run) ++in_first_run;
  s8 slot = LookupGroup::none;
  if (in_first_run < count_) {
    slot = take_slot(first, members_[count_ - 1].index);
    if (slot == LookupGroup::none) count_ = in_first_run;
  }
  if (count_ < 2) return;
  for (unsigned m = 0; m < count_;) {
    LookupGroup& g = out_[members_[m].index];
    const s64 moved = members_[m].moved;
    do {
      const Member& x = members_[m];
      const SimpleAccess& a = *candidates_[x.index].access;
      static_cast<void>(extend(g.run, x.moved - moved + a.address.disp, a, longest_run));
      g.last = x.index;
      if (&out_[x.index] != &g) out_[x.index].member = true;
    } while (++m < count_ && !members_[m].begins_run);
    g.slot = slot;
  }
  if (slot != LookupGroup::none) out_[first].all = all_;
}

} // namespace

void plan_lookups(std::span<const Source> source, std::span<const GroupCandidate> candidates,
                  const RegisterPlan& plan, std::span<LookupGroup> out) {
  std::ranges::fill(out, LookupGroup{});
  Planner planner(source, candidates, plan, out);
  for (unsigned i = 0; i < source.size(); ++i) planner.group(i);
}

} // namespace ring3::x86::jit
