// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/trace.h"

#include "kvm/code_watch.h"
#include "x86/interp/bind.h"
#include "x86/interp/host_code.h"
#include "x86/jit/flag_use.h"

#include <algorithm>

namespace ring3::x86::jit {

namespace {

// A loop of this many instructions or fewer goes round more than once.
constexpr unsigned short_loop = 16;
constexpr unsigned most_rounds = 4;

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

bool TraceBuilder::read(u64 at, Source& s) {
  const u64 offset = at & page_offset_mask;
  const DecodeStatus status = decode(bytes_.data() + offset, page_size - offset, 64, s.decoded);
  if (status == DecodeStatus::need_more) return read_split(at, s);
  if (status != DecodeStatus::ok) return false;
  bool ends = false;
  bind(s.decoded, cpuid_, s.insn, ends);
  s.ip = at;
  s.ends = ends;
  s.split = false;
  s.followed = JumpForm::none;
  s.copied = s.insn.handler != handle_ud && is_what_it_says(s.decoded, cpuid_);
  s.flags_at_target = s.flags_behind = rflags::arithmetic;
  lines_ |= kvm::CodePage::lines_of(offset, s.insn.len);
  return true;
}

// Whoever executes it has to see that the page behind is still the same one, so it is never copied and ends
// the trace.
bool TraceBuilder::read_split(u64 at, Source& s) {
  const u64 offset = at & page_offset_mask;
  const u64 here = page_size - offset;
  const std::span<const u8> behind = behind_();
  std::array<u8, 15> bytes{};
  if (here >= bytes.size() || behind.size() < bytes.size()) return false;
  std::ranges::copy(bytes_.subspan(offset), bytes.begin());
  std::copy_n(behind.begin(), bytes.size() - here, bytes.begin() + static_cast<std::ptrdiff_t>(here));
  if (decode(bytes.data(), bytes.size(), 64, s.decoded) != DecodeStatus::ok) return false;
  bool ends = false;
  bind(s.decoded, cpuid_, s.insn, ends);
  s.ip = at;
  s.ends = s.split = true;
  s.followed = JumpForm::none;
  s.copied = false;
  s.flags_at_target = s.flags_behind = rflags::arithmetic;
  lines_ |= kvm::CodePage::lines_of(offset, here);
  return true;
}

// The flags that code at `target` reads before it writes them.
u16 TraceBuilder::flags_wanted(u64 target) {
  constexpr unsigned far_enough = 4; // instructions
  u64 unwritten = rflags::arithmetic;
  u64 wanted = 0;
  for (unsigned i = 0; i < far_enough && in_page(target); ++i) {
    Source s;
    if (!read(target, s) || s.split) break;
    const FlagUse use = s.copied ? flag_use(s.decoded) : FlagUse{.reads = rflags::arithmetic};
    wanted |= use.reads & unwritten;
    unwritten &= ~use.writes;
    if (unwritten == 0 || (wanted & unwritten) == unwritten) break;
    target += s.insn.len;
    const JumpForm form = jump_form(s.decoded);
    if (form == JumpForm::jump || form == JumpForm::call) {
      target += s.decoded.operand[0].value;
    } else if (s.ends) {
      break;
    }
  }
  return static_cast<u16>(wanted | unwritten);
}

// Where the trace goes on behind a jump; false: nowhere.
bool TraceBuilder::follow(Source& s, u64& next, const Warmth& warmth) {
  const u64 behind = s.ip + s.insn.len;
  const u64 target = behind + s.decoded.operand[0].value;
  const JumpForm form = s.copied ? jump_form(s.decoded) : JumpForm::none;
  switch (form) {
  case JumpForm::condition: {
    s.flags_at_target = flags_wanted(target);
    s.flags_behind = flags_wanted(behind);
    const unsigned taken = in_page(target) ? warmth(target) : 0;
    const unsigned not_taken = in_page(behind) ? warmth(behind) : 0;
    // As processors guess, where nobody knows: loops go on.
    const bool takes = taken != not_taken ? taken > not_taken : target < s.ip;
    next = takes ? target : behind;
    break;
  }
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

unsigned TraceBuilder::build(u64 start, std::span<Source> out, const Warmth& warmth) {
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
    if (next == start) {
      // Another round, if it is a whole one.
      if (count > short_loop || ++rounds > most_rounds || count + count / (rounds - 1) > out.size()) break;
      seen_.reset();
    } else if (seen_.test(next & page_offset_mask)) {
      break; // an inner loop is a trace of its own
    }
    at = next;
  }
  if (count != 0) out[count - 1].followed = JumpForm::none;
  return count;
}

} // namespace ring3::x86::jit
