// SPDX-License-Identifier: Apache-2.0
#include "x86/api/emulation_failure.h"

#include "x86/api/vcpu.h"
#include "x86/api/vm.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86 {

namespace {

enum class Mandatory : u8 { none, x66, xf3, xf2 };

// Opcodes 0f 00 to 0f ff.
bool knows_two_byte(u8 opcode, u8 modrm, Mandatory prefix, bool rex_w) {
  const bool plain = prefix == Mandatory::none || prefix == Mandatory::x66;
  switch (opcode) {
  case 0x10:
  case 0x11: // MOVUPS, MOVUPD
  case 0x28:
  case 0x29:               // MOVAPS, MOVAPD
  case 0x2b: return plain; // MOVNTPS, MOVNTPD
  case 0x6f:
  case 0x7f: return prefix != Mandatory::xf2; // MOVQ, MOVDQA, MOVDQU
  case 0xe7: return prefix == Mandatory::x66; // MOVNTDQ
  case 0xae: {
    const unsigned group = modrm >> 3 & 7; // FXSAVE, FXRSTOR, CLFLUSH; not the XSAVE family
    return group < 2 || (group == 7 && plain);
  }
  case 0xb8: return false; // POPCNT
  case 0xc2:
  case 0xc4:
  case 0xc5:
  case 0xc6: return false;
  case 0xc7: return !rex_w && (modrm >> 3 & 7) == 1; // CMPXCHG8B
  default: break;
  }
  const bool vector = (opcode >= 0x12 && opcode <= 0x17) || (opcode >= 0x2a && opcode <= 0x2f) ||
                      (opcode >= 0x50 && opcode <= 0x7e) || opcode >= 0xd0;
  return !vector;
}

} // namespace

bool kvm_emulates(std::span<const u8> code, bool code64) {
  Mandatory prefix = Mandatory::none;
  bool rex_w = false;
  std::size_t at = 0;
  const auto byte = [&code](std::size_t i) { return i < code.size() ? code[i] : u8{0}; };
  for (;; ++at) {
    const u8 b = byte(at);
    constexpr u8 others[] = {0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x67, 0xf0};
    const bool rex = code64 && (b & 0xf0) == 0x40;
    if (rex) {
      rex_w = (b & 8) != 0;
    } else if (b == 0x66) {
      if (prefix == Mandatory::none) prefix = Mandatory::x66;
    } else if (b == 0xf2 || b == 0xf3) {
      prefix = b == 0xf2 ? Mandatory::xf2 : Mandatory::xf3;
    } else if (std::ranges::find(others, b) == std::end(others)) {
      break;
    }
  }
  const u8 opcode = byte(at);
  const u8 next = byte(at + 1);
  if (opcode >= 0xd8 && opcode <= 0xdf) {
    return (opcode == 0xd9 || opcode == 0xdd) && (next >> 3 & 7) == 7; // FNSTCW, FNSTSW
  }
  // VEX and EVEX, where LES, LDS and BOUND would have a register in place of their memory operand.
  const bool wide_prefix = opcode == 0xc4 || opcode == 0xc5 || opcode == 0x62;
  if (wide_prefix && (code64 || next >= 0xc0)) return false;
  if (opcode != 0x0f) return true;
  if (next == 0x3a) return false;
  if (next == 0x38) {
    const u8 third = byte(at + 2);
    return (third == 0xf0 || third == 0xf1) && prefix != Mandatory::xf2 && prefix != Mandatory::xf3; // MOVBE
  }
  return knows_two_byte(next, byte(at + 2), prefix, rex_w);
}

std::size_t Vcpu::instruction_bytes(std::span<u8> out) {
  const CpuState& s = cpu_.state;
  std::size_t count = 0;
  while (count < out.size()) {
    u64 linear = s.rip() + count;
    if (!cpu_.code64()) linear = (linear + s.segment(Seg::cs).base) & low_mask(32);
    GuestPhys at;
    if (!cpu_.mmu.probe(GuestVirt{linear}, at)) break;
    const u64 n = std::min<u64>(out.size() - count, page_size - at.page_offset());
    if (!cpu_.mmu.read_phys(at, &out[count], n)) break;
    count += n;
  }
  return count;
}

bool Vcpu::leaves_emulation_to_user_space() {
  if (!settings().exit_on_emulation_failure.load(std::memory_order_relaxed)) return false;
  u8 code[15];
  const std::size_t n = instruction_bytes(code);
  return n != 0 && !kvm_emulates({code, n}, cpu_.code64());
}

kvm::Entry Vcpu::fail_emulation(kvm_run& run) {
  abandon_instruction();
  run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
  auto& failure = run.emulation_failure;
  failure.suberror = KVM_INTERNAL_ERROR_EMULATION;
  failure.ndata = 1; // the flags
  failure.flags = 0;
  u8 code[15];
  const std::size_t n = instruction_bytes(code);
  if (n == 0) return kvm::Entry::user;
  failure.ndata = 3;
  failure.flags = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
  failure.insn_size = static_cast<u8>(n);
  std::memset(failure.insn_bytes, 0x90, sizeof failure.insn_bytes);
  std::memcpy(failure.insn_bytes, code, n);
  return kvm::Entry::user;
}

} // namespace ring3::x86
