// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/flag_use.h"

#include "x86/interp/vector_plan.h"
#include "x86/jit/x87_copy.h"

namespace ring3::x86::jit {

namespace {
constexpr u64 all = rflags::arithmetic;
constexpr u64 all_but_of = all & ~rflags::of;
constexpr u64 all_but_cf = all & ~rflags::cf;

// Shifts and rotates by an amount that is 0 change nothing at all.
FlagUse of_shift(const Decoded& d, u64 written) {
  const Operand& count = d.operand[d.op == Op::shld || d.op == Op::shrd ? 2 : 1];
  if (count.kind != Operand::Kind::imm) return {.reads = all, .may_write = true};
  const u64 mask = d.operand[0].bits == 64 ? 63 : 31;
  if ((count.value & mask) == 0) return {.reads = all};
  return {.writes = written};
}

FlagUse of_string(const Decoded& d) {
  // Repeated, they may compare nothing at all, and may be left in the middle for an interrupt.
  if (d.rep || d.repne) return {.reads = all};
  switch (d.op) {
  case Op::cmpsb:
  case Op::cmpsw:
  case Op::cmpsd:
  case Op::cmpsq:
  case Op::scasb:
  case Op::scasw:
  case Op::scasd:
  case Op::scasq: return {.writes = all};
  default: return {};
  }
}
} // namespace

u64 flags_of_condition(u8 cc) {
  switch (cc >> 1) {
  case 0: return rflags::of;
  case 1: return rflags::cf;
  case 2: return rflags::zf;
  case 3: return rflags::cf | rflags::zf;
  case 4: return rflags::sf;
  case 5: return rflags::pf;
  case 6: return rflags::sf | rflags::of;
  default: return rflags::zf | rflags::sf | rflags::of;
  }
}

FlagUse flag_use(const Decoded& d) {
  switch (d.op) {
  case Op::vector: return vector_writes_flags(d) ? FlagUse{.writes = all} : FlagUse{};
  case Op::x87: return x87_flag_use(d);
  case Op::mov:
  case Op::movnti:
  case Op::movzx:
  case Op::movsx:
  case Op::movsxd:
  case Op::lea:
  case Op::xchg:
  case Op::bswap:
  case Op::cbw:
  case Op::cwde:
  case Op::cdqe:
  case Op::cwd:
  case Op::cdq:
  case Op::cqo:
  case Op::not_:
  case Op::div: // undefined: ours leave them alone
  case Op::idiv:
  case Op::mulx:
  case Op::pdep:
  case Op::pext:
  case Op::rorx:
  case Op::sarx:
  case Op::shlx:
  case Op::shrx:
  case Op::crc32:
  case Op::movbe:
  case Op::xlat:
  case Op::pause:
  case Op::cld:
  case Op::std:
  case Op::stac:
  case Op::clac:
  case Op::rdtsc:
  case Op::rdtscp:
  case Op::rdpid:
  case Op::xgetbv:
  case Op::rdfsbase:
  case Op::rdgsbase:
  case Op::wrfsbase:
  case Op::wrgsbase:
  case Op::clflush:
  case Op::clflushopt:
  case Op::clwb:
  case Op::cli:
  case Op::sti:
  case Op::swapgs:
  case Op::push:
  case Op::pop:
  case Op::leave:
  case Op::nop:
  case Op::endbr64:
  case Op::endbr32:
  case Op::prefetch:
  case Op::prefetchw:
  case Op::prefetchnta:
  case Op::prefetcht0:
  case Op::prefetcht1:
  case Op::prefetcht2:
  case Op::lfence:
  case Op::mfence:
  case Op::sfence: return {};
  case Op::add:
  case Op::sub:
  case Op::cmp:
  case Op::and_:
  case Op::or_:
  case Op::xor_:
  case Op::test:
  case Op::neg:
  case Op::xadd:
  case Op::cmpxchg:
  case Op::bsf:
  case Op::bsr:
  case Op::popcnt: return {.writes = all};
  // Undefined flags may be what they were: the processor decides, and has to see them.
  case Op::tzcnt:
  case Op::lzcnt: return {.writes = rflags::cf | rflags::zf};
  case Op::andn:
  case Op::bzhi:
  case Op::blsi:
  case Op::blsmsk:
  case Op::blsr: return {.writes = rflags::cf | rflags::zf | rflags::sf | rflags::of};
  case Op::bextr: return {.writes = rflags::cf | rflags::zf | rflags::of};
  case Op::adcx: return {.reads = rflags::cf, .writes = rflags::cf};
  case Op::adox: return {.reads = rflags::of, .writes = rflags::of};
  case Op::cmpxchg8b:
  case Op::cmpxchg16b: return {.writes = rflags::zf};
  case Op::mul:
  case Op::imul: return {.writes = rflags::cf | rflags::of};
  case Op::popf:
  case Op::popfd:
  case Op::popfq: return {.writes = all};
  case Op::adc:
  case Op::sbb: return {.reads = rflags::cf, .writes = all};
  case Op::inc:
  case Op::dec: return {.writes = all_but_cf};
  case Op::clc:
  case Op::stc: return {.writes = rflags::cf};
  case Op::cmc: return {.reads = rflags::cf, .writes = rflags::cf};
  case Op::lahf: return {.reads = all_but_of};
  case Op::sahf: return {.writes = all_but_of};
  case Op::shl:
  case Op::shr:
  case Op::sar: return of_shift(d, all);
  case Op::shld:
  case Op::shrd: return of_shift(d, all);
  case Op::rol:
  case Op::ror: return of_shift(d, rflags::cf | rflags::of);
  case Op::rcl:
  case Op::rcr: {
    FlagUse u = of_shift(d, rflags::cf | rflags::of);
    u.reads |= rflags::cf;
    return u;
  }
  case Op::bt:
  case Op::bts:
  case Op::btr:
  case Op::btc: return {.writes = rflags::cf};
  case Op::setcc:
  case Op::cmovcc:
  case Op::jcc: return {.reads = flags_of_condition(d.condition)};
  default:
    if (d.op >= Op::movsb && d.op <= Op::scasq) return of_string(d);
    return {.reads = all};
  }
}

} // namespace ring3::x86::jit
