// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/x87_copy.h"

#include "x86/interp/vector_plan.h"

namespace ring3::x86::jit {

namespace {

constexpr u8 fwait = 0x9b;

// FCOMI and its kin clear OF, SF and AF, which the SDM says of newer processors only.
bool comparison_clears_other_flags() {
  static const bool clears = [] {
    constexpr u64 others = rflags::of | rflags::sf | rflags::af;
    u64 flags = rflags::arithmetic;
    // Below the red zone.
    asm volatile("leaq -128(%%rsp), %%rsp\n\tfldz\n\tpushq %0\n\tpopfq\n\tfcomi %%st(0), %%st\n\tpushfq\n\t"
                 "popq %0\n\tfstp %%st(0)\n\tleaq 128(%%rsp), %%rsp"
                 : "+r"(flags)
                 :
                 : "cc", "memory", "st");
    return (flags & others) == 0;
  }();
  return clears;
}

FlagUse comparison() {
  return {.writes =
              comparison_clears_other_flags() ? rflags::arithmetic : rflags::zf | rflags::pf | rflags::cf};
}

// FCMOVcc.
u64 flags_of_move(u8 modrm) {
  switch (modrm >> 3 & 3) {
  case 0: return rflags::cf;
  case 1: return rflags::zf;
  case 2: return rflags::cf | rflags::zf;
  default: return rflags::pf;
  }
}

} // namespace

bool sets_x87_pointers(const Insn& in) { return in.plan != nullptr && in.plan->run_x87 != nullptr; }

std::optional<X87Form> x87_form(const Decoded& d, const Insn& in) {
  using Kind = X87Form::Kind;
  if (d.op != Op::x87) return std::nullopt;
  if (sets_x87_pointers(in)) return X87Form{Kind::copied, static_cast<u8>(d.memory_bits / 8)};
  if (d.opcode == fwait) return X87Form{Kind::wait};
  const unsigned digit = d.modrm >> 3 & 7;
  if (d.has_memory) {
    if (d.opcode == 0xd9 && digit == 5) return X87Form{Kind::load_control, 2};
    if (digit == 7 && (d.opcode == 0xd9 || d.opcode == 0xdd))
      return X87Form{Kind::copied, 2}; // FNSTCW, FNSTSW
    return std::nullopt;
  }
  if (d.opcode == 0xd9 && d.modrm == 0xd0) return X87Form{Kind::nothing};
  if (d.opcode == 0xdb && d.modrm == 0xe2) return X87Form{}; // FNCLEX
  if (d.opcode == 0xdf && d.modrm == 0xe0) return X87Form{}; // FNSTSW AX
  return std::nullopt;
}

FlagUse x87_flag_use(const Decoded& d) {
  if (d.opcode == fwait || d.has_memory || d.modrm < 0xc0) return {};
  if ((d.opcode == 0xda || d.opcode == 0xdb) && d.modrm < 0xe0) return {.reads = flags_of_move(d.modrm)};
  if ((d.opcode == 0xdb || d.opcode == 0xdf) && d.modrm >= 0xe8 && d.modrm < 0xf8) return comparison();
  return {};
}

void copy_x87(Emitter& e, const Decoded& d, const HostMem* memory) {
  if (memory != nullptr) {
    e.op_rm(false, d.opcode, d.modrm >> 3 & 7, *memory);
  } else {
    e.byte(d.opcode);
    e.byte(d.modrm);
  }
}

} // namespace ring3::x86::jit
