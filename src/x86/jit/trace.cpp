// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/trace.h"

#include "kvm/code_watch.h"
#include "x86/interp/bind.h"
#include "x86/interp/host_code.h"
#include "x86/jit/flag_use.h"

#include <algorithm>
#include <bit>

namespace ring3::x86::jit {

namespace {

// A loop of this many instructions or fewer goes round more than once.
constexpr unsigned short_loop = 16;
constexpr unsigned most_rounds = 4;
constexpr unsigned most_at_first = 24; // instructions

// For what has a handler that does without the host's instruction.
bool host_has_movbe() {
  static const bool has = host::has_feature(feature::movbe);
  return has;
}

// Some instructions become others where CPUID does not have them; their handlers know.
bool is_what_it_says(const Decoded& d, const CpuidTable& cpuid) {
  if (d.op == Op::tzcnt) return cpuid.has(feature::bmi1);
  if (d.op == Op::lzcnt) return cpuid.has(feature::abm);
  if (d.op == Op::movbe) return host_has_movbe();
  return true;
}

} // namespace

std::span<const u8> TraceBuilder::bytes_at(u64 offset) {
  constexpr u64 most = 15;
  const u64 size = std::min(most, page_size - offset);
  for (u32 missing = kvm::CodePage::lines_of(offset, size) & ~copied_; missing != 0; missing &= missing - 1) {
    const u64 at = static_cast<u64>(std::countr_zero(missing)) * 128;
    copy_guest(&bytes_[at], page_.host + at, 128);
    copied_ |= missing & -missing;
  }
  return std::span(bytes_).subspan(offset, size);
}

const BoundInsn* TraceBuilder::look(u64 at) {
  const u64 offset = at & page_offset_mask;
  DecodeStatus ignored;
  const BoundInsn* const found = memo_.look(bytes_at(offset), 64, cpuid_, ignored);
  if (found != nullptr) lines_ |= kvm::CodePage::lines_of(offset, found->insn.len);
  return found;
}

bool TraceBuilder::copied(const BoundInsn& b) const {
  return b.insn.handler != handle_ud && is_what_it_says(b.decoded, cpuid_);
}

void TraceBuilder::fill(Source& s, u64 at, const BoundInsn& b) const {
  s.decoded = b.decoded; // which is large
  s.insn = b.insn;
  s.ip = at;
  s.copied = copied(b);
  s.ends = b.ends;
  s.split = false;
  s.alone = page_.strays[at & page_offset_mask];
  s.followed = JumpForm::none;
  s.flags_at_target = s.flags_behind = rflags::arithmetic;
}

bool TraceBuilder::read(u64 at, Source& s) {
  const BoundInsn* const found = look(at);
  if (found == nullptr) return read_split(at, s);
  fill(s, at, *found);
  return true;
}

// Whoever executes it has to see that the page behind is still the same one. The trace ends with it.
bool TraceBuilder::read_split(u64 at, Source& s) {
  const u64 offset = at & page_offset_mask;
  const u64 here = page_size - offset;
  std::array<u8, 15> bytes{};
  if (here >= bytes.size()) return false;
  const std::span<const u8> behind = behind_();
  if (behind.size() < bytes.size()) return false;
  std::ranges::copy(bytes_at(offset), bytes.begin());
  std::copy_n(behind.begin(), bytes.size() - here, bytes.begin() + static_cast<std::ptrdiff_t>(here));
  DecodeStatus ignored;
  const BoundInsn* const found = memo_.look(bytes, 64, cpuid_, ignored);
  if (found == nullptr || found->decoded.length <= here) return false;
  fill(s, at, *found);
  s.split = true;
  lines_ |= kvm::CodePage::lines_of(offset, here);
  return true;
}

// The flags that code at `target` reads before it writes them.
u16 TraceBuilder::flags_wanted(u64 target) {
  constexpr unsigned far_enough = 4; // instructions
  u64 unwritten = rflags::arithmetic;
  u64 wanted = 0;
  for (unsigned i = 0; i < far_enough && in_page(target); ++i) {
    const BoundInsn* const s = look(target);
    if (s == nullptr) break;
    const FlagUse use = copied(*s) ? flag_use(s->decoded) : FlagUse{.reads = rflags::arithmetic};
    wanted |= use.reads & unwritten;
    unwritten &= ~use.writes;
    if (unwritten == 0 || (wanted & unwritten) == unwritten) break;
    target += s->insn.len;
    const JumpForm form = jump_form(s->decoded);
    if (form == JumpForm::jump || form == JumpForm::call) {
      target += s->decoded.operand[0].value;
    } else if (s->ends) {
      break;
    }
  }
  return static_cast<u16>(wanted | unwritten);
}

// What was found once is kept: when the code has proved to be hot, everything around it is as warm.
bool TraceBuilder::expected_to_jump(const Source& s, u64 target, u64 behind, const Warmth& warmth) {
  JumpForecast& f = page_.forecast;
  const u64 at = s.ip & page_offset_mask;
  if (!f.known[at]) {
    const unsigned taken = in_page(target) ? warmth(target) : 0;
    const unsigned not_taken = in_page(behind) ? warmth(behind) : 0;
    // As processors guess, where nobody knows: loops go on.
    f.taken[at] = taken != not_taken ? taken > not_taken : target < s.ip;
    f.known.set(at);
  }
  return f.taken[at];
}

// Where the trace goes on behind a jump; false: nowhere.
bool TraceBuilder::follow(Source& s, u64& next, const Warmth& warmth) {
  const u64 behind = s.ip + s.insn.len;
  const u64 target = behind + s.decoded.operand[0].value;
  const JumpForm form = s.copied ? jump_form(s.decoded) : JumpForm::none;
  switch (form) {
  case JumpForm::condition:
    s.flags_at_target = flags_wanted(target);
    s.flags_behind = flags_wanted(behind);
    next = expected_to_jump(s, target, behind, warmth) ? target : behind;
    break;
  case JumpForm::jump:
    s.flags_at_target = flags_wanted(target);
    next = target;
    break;
  case JumpForm::call:
    s.flags_at_target = flags_wanted(target);
    if (calls_ == most_calls || !in_page(behind)) return false;
    return_to_[calls_++] = behind;
    next = target;
    break;
  case JumpForm::ret:
    if (calls_ == 0) return false;
    next = return_to_[--calls_];
    break;
  case JumpForm::behind: next = behind; break;
  case JumpForm::none: return false;
  }
  s.followed = form;
  return true;
}

unsigned TraceBuilder::build(u64 start, std::span<Source> out, Tier tier, const Warmth& warmth) {
  if (tier == Tier::first) out = out.first(std::min<std::size_t>(out.size(), most_at_first));
  unsigned count = 0;
  unsigned rounds = 1;
  u64 at = start;
  while (count < out.size() && in_page(at)) {
    Source& s = out[count];
    if (!read(at, s)) break;
    ++count;
    if (s.split) break;
    seen_.set(at & page_offset_mask);
    u64 next = at + s.insn.len;
    if (s.ends && !follow(s, next, warmth)) break;
    if (!in_page(next)) break;
    if (tier == Tier::first) {
      if (next == start || page_.heads[next & page_offset_mask]) break;
    } else if (next == start) {
      // Another round, if it is a whole one.
      if (count > short_loop || ++rounds > most_rounds || count + count / (rounds - 1) > out.size()) break;
      seen_.reset();
    }
    if (seen_.test(next & page_offset_mask)) break; // an inner loop is a trace of its own
    at = next;
  }
  if (count != 0 && !out[count - 1].ends) {
    Source& last = out[count - 1];
    last.flags_behind = flags_wanted(last.ip + last.insn.len);
  }
  if (count != 0) out[count - 1].followed = JumpForm::none;
  return count;
}

} // namespace ring3::x86::jit
