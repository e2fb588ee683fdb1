// SPDX-License-Identifier: Apache-2.0
// String instructions within a block.
#include "x86/jit/block_emitter.h"

#include <bit>

namespace ring3::x86::jit {

namespace {
enum class StringKind : u8 { none, movs, stos, lods, cmps, scas };

StringKind string_kind(Op op) {
  switch (op) {
  case Op::movsb:
  case Op::movsw:
  case Op::movsd:
  case Op::movsq: return StringKind::movs;
  case Op::stosb:
  case Op::stosw:
  case Op::stosd:
  case Op::stosq: return StringKind::stos;
  case Op::lodsb:
  case Op::lodsw:
  case Op::lodsd:
  case Op::lodsq: return StringKind::lods;
  case Op::cmpsb:
  case Op::cmpsw:
  case Op::cmpsd:
  case Op::cmpsq: return StringKind::cmps;
  case Op::scasb:
  case Op::scasw:
  case Op::scasd:
  case Op::scasq: return StringKind::scas;
  default: return StringKind::none;
  }
}
} // namespace

bool BlockEmitter::string(unsigned i) {
  const Decoded& d = source_[i].decoded;
  const StringKind kind = string_kind(d.op);
  if (kind == StringKind::none || d.address_bytes != 8) return false;
  const bool reads_source = kind == StringKind::movs || kind == StringKind::lods || kind == StringKind::cmps;
  const bool to_destination = kind != StringKind::lods;
  const u8 segment = source_[i].insn.seg;
  if (reads_source && (segment == static_cast<u8>(Seg::fs) || segment == static_cast<u8>(Seg::gs)))
    return false;
  const unsigned size = d.operand_bytes;
  const bool repeated = d.rep || d.repne;
  if (repeated && kind != StringKind::movs && kind != StringKind::stos) return false;

  put_flags_aside(i);
  static_assert(rflags::df == 1u << 10);
  e_.test8_imm(HostMem::in_cpu(l_.system_flags + 1), 1u << 2);
  handler_when(Cond::ne, i);
  if (repeated) {
    const auto log2 = static_cast<unsigned>(std::countr_zero(size));
    call_thunk(kind == StringKind::movs ? thunks_.strings.movs[log2] : thunks_.strings.stos[log2]);
    handler_when(Cond::ne, i);
    return true;
  }

  const HostMem kept = frame::target;
  HostMem at;
  if (reads_source) {
    static_cast<void>(lookup({.address = HostMem::at(rsi)}, size, false, i, at));
    e_.load(size, kind == StringKind::lods ? HostReg{rax} : scratch_a, at);
    if (to_destination) e_.mov(kept, scratch_a);
  }
  if (to_destination) {
    const bool stores = kind == StringKind::movs || kind == StringKind::stos;
    static_cast<void>(lookup({.address = HostMem::at(rdi), .segment = Seg::es}, size, stores, i, at));
    if (reads_source) e_.mov(scratch_a, kept);
    const HostReg value = reads_source ? scratch_a : HostReg{rax};
    if (stores) {
      e_.store(size, at, value);
    } else {
      e_.compare(size, value, at);
      in_host_ = true;
      in_memory_ = false;
    }
  }
  const auto step = static_cast<s32>(size);
  if (reads_source) e_.lea(rsi, HostMem::at(rsi, step));
  if (to_destination) e_.lea(rdi, HostMem::at(rdi, step));
  return true;
}

} // namespace ring3::x86::jit
