// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/recode.h"

namespace ring3::x86::jit {

namespace {

constexpr u8 rex_w = 8, rex_r = 4, rex_b = 1;

// The prefix's bits as REX has them; VEX, of three bytes here, has all but W inverted.
u8 rex_of(const Decoded& d) {
  if (d.encoding == Encoding::vex) {
    const u8* const vex = &d.bytes[d.vex_offset];
    return static_cast<u8>((~vex[1] >> 5 & 7) | (vex[2] >> 4 & rex_w));
  }
  return d.rex_offset != 0xff ? d.bytes[d.rex_offset] : 0;
}

// Opcodes of one byte.
std::optional<CopyForm> one_byte_form(const Decoded& d) {
  const u8 op = d.opcode;
  const u8 digit = d.modrm >> 3 & 7;
  const bool byte = (op & 1) == 0;
  if (op < 0x40) {
    if ((op & 7) < 4) return CopyForm{.reg_is_gpr = true, .byte_reg = byte, .byte_rm = byte};
    if ((op & 7) < 6) return CopyForm{};
    return std::nullopt;
  }
  switch (op) {
  case 0x63:
  case 0x69:
  case 0x6b: return CopyForm{.reg_is_gpr = true};
  case 0x80: return CopyForm{.byte_rm = true};
  case 0x81:
  case 0x83: return CopyForm{};
  case 0x84:
  case 0x85:
  case 0x86:
  case 0x87:
  case 0x88:
  case 0x89:
  case 0x8a:
  case 0x8b: return CopyForm{.reg_is_gpr = true, .byte_reg = byte, .byte_rm = byte};
  case 0x90:
  case 0x91:
  case 0x92:
  case 0x93:
  case 0x94:
  case 0x95:
  case 0x96:
  case 0x97: return CopyForm{.opcode_reg = true};
  case 0x98:
  case 0x99:
  case 0x9e:
  case 0x9f:
  case 0xa8:
  case 0xa9:
  case 0xf5:
  case 0xf8:
  case 0xf9: return CopyForm{};
  case 0xc0:
  case 0xd0:
  case 0xd2: return CopyForm{.byte_rm = true};
  case 0xc1:
  case 0xd1:
  case 0xd3: return CopyForm{};
  case 0xc6: return CopyForm{.byte_rm = true};
  case 0xc7: return CopyForm{};
  case 0xf6:
  case 0xf7:
    if (digit > 5) return std::nullopt; // divisions may fault
    return CopyForm{.byte_rm = byte};
  case 0xfe:
  case 0xff:
    if (digit > 1) return std::nullopt;
    return CopyForm{.byte_rm = byte};
  default:
    if (op >= 0xb0 && op < 0xc0) return CopyForm{.byte_reg = op < 0xb8, .opcode_reg = true};
    return std::nullopt;
  }
}

// Opcodes after 0F.
std::optional<CopyForm> two_byte_form(const Decoded& d) {
  const u8 op = d.opcode;
  switch (op) {
  case 0xa3:
  case 0xab:
  case 0xb3:
  case 0xbb:
    // In memory the bit may be anywhere.
    if (d.has_memory) return std::nullopt;
    return CopyForm{.reg_is_gpr = true};
  case 0xa4:
  case 0xa5:
  case 0xac:
  case 0xad:
  case 0xaf:
  case 0xb1:
  case 0xb7:
  case 0xb8:
  case 0xbc:
  case 0xbd:
  case 0xbf:
  case 0xc1:
  case 0xc3: return CopyForm{.reg_is_gpr = true};
  case 0xb0:
  case 0xc0: return CopyForm{.reg_is_gpr = true, .byte_reg = true, .byte_rm = true};
  case 0xb6:
  case 0xbe: return CopyForm{.reg_is_gpr = true, .byte_rm = true};
  case 0xba:
  case 0xae: return CopyForm{};
  case 0xc7: // CMPXCHG8B, CMPXCHG16B
    if (!d.has_memory) return std::nullopt;
    return CopyForm{};
  default:
    if (op >= 0x40 && op < 0x50) return CopyForm{.reg_is_gpr = true};
    if (op >= 0x90 && op < 0xa0) return CopyForm{.byte_rm = true};
    if (op >= 0xc8 && op < 0xd0) return CopyForm{.opcode_reg = true};
    return std::nullopt;
  }
}

// Opcodes after 0F 38: MOVBE, CRC32, ADCX, ADOX.
std::optional<CopyForm> three_byte_form(const Decoded& d) {
  return CopyForm{.reg_is_gpr = true, .byte_rm = d.op == Op::crc32 && d.opcode == 0xf0};
}

// General registers only.
std::optional<CopyForm> vex_form(Op op) {
  switch (op) {
  case Op::andn:
  case Op::bextr:
  case Op::bzhi:
  case Op::mulx:
  case Op::pdep:
  case Op::pext:
  case Op::sarx:
  case Op::shlx:
  case Op::shrx: return CopyForm{.reg_is_gpr = true, .vvvv = true};
  case Op::blsi:
  case Op::blsmsk:
  case Op::blsr: return CopyForm{.vvvv = true};
  case Op::rorx: return CopyForm{.reg_is_gpr = true};
  default: return std::nullopt;
  }
}

bool copyable(Op op) {
  switch (op) {
  case Op::setcc:
  case Op::cmovcc:
  case Op::mov:
  case Op::movnti:
  case Op::movzx:
  case Op::movsx:
  case Op::movsxd:
  case Op::xchg:
  case Op::xadd:
  case Op::cmpxchg:
  case Op::cmpxchg8b:
  case Op::cmpxchg16b:
  case Op::movbe:
  case Op::crc32:
  case Op::adcx:
  case Op::adox:
  case Op::bswap:
  case Op::cbw:
  case Op::cwde:
  case Op::cdqe:
  case Op::cwd:
  case Op::cdq:
  case Op::cqo:
  case Op::lahf:
  case Op::sahf:
  case Op::add:
  case Op::or_:
  case Op::adc:
  case Op::sbb:
  case Op::and_:
  case Op::sub:
  case Op::xor_:
  case Op::cmp:
  case Op::test:
  case Op::inc:
  case Op::dec:
  case Op::neg:
  case Op::not_:
  case Op::mul:
  case Op::imul:
  case Op::clc:
  case Op::stc:
  case Op::cmc:
  case Op::rol:
  case Op::ror:
  case Op::rcl:
  case Op::rcr:
  case Op::shl:
  case Op::shr:
  case Op::sar:
  case Op::shld:
  case Op::shrd:
  case Op::bt:
  case Op::bts:
  case Op::btr:
  case Op::btc:
  case Op::bsf:
  case Op::bsr:
  case Op::tzcnt:
  case Op::lzcnt:
  case Op::popcnt:
  case Op::lfence:
  case Op::mfence:
  case Op::sfence: return true;
  default: return false;
  }
}

// The fields of ModRM and the opcode with the host's registers in place of the guest's.
struct Fields {
  u8 reg = 0;
  HostReg rm = 0;
  HostReg vvvv = 0;
  bool high_byte = false; // AH to BH are named, which forbids a REX prefix
  bool needs_rex = false; // SPL to DIL are named, which takes one
};

Fields host_fields(const Decoded& d, const CopyForm& f, const RegisterMap& map) {
  Fields out;
  const u8 rex = rex_of(d);
  const auto mapped = [&](unsigned n, bool byte) -> u8 {
    if (byte && rex == 0 && n >= 4 && n < 8) {
      out.high_byte = true;
      return static_cast<u8>(n);
    }
    const HostReg h = map[n];
    if (byte && h >= 4 && h < 8) out.needs_rex = true;
    return h;
  };
  if (f.opcode_reg) {
    out.rm = mapped((d.opcode & 7u) | ((rex & rex_b) != 0 ? 8u : 0u), f.byte_reg);
    return out;
  }
  if (d.modrm_offset == 0) return out;
  if (f.vvvv) out.vvvv = map[~d.bytes[d.vex_offset + 2u] >> 3 & 15];
  const unsigned reg = (d.modrm >> 3 & 7u) | ((rex & rex_r) != 0 ? 8u : 0u);
  out.reg = f.reg_is_gpr ? mapped(reg, f.byte_reg) : static_cast<u8>(reg & 7);
  if (!d.has_memory && d.modrm >= 0xc0)
    out.rm = mapped((d.modrm & 7u) | ((rex & rex_b) != 0 ? 8u : 0u), f.byte_rm);
  return out;
}

} // namespace

std::optional<CopyForm> copy_form(const Decoded& d) {
  if (d.encoding == Encoding::vex) return vex_form(d.op);
  if (d.encoding != Encoding::legacy || !copyable(d.op)) return std::nullopt;
  // Segment, control and debug registers have MOVs of their own.
  for (unsigned i = 0; i < d.visible_operands; ++i) {
    const Operand::Kind k = d.operand[i].kind;
    if (k != Operand::Kind::gpr && k != Operand::Kind::mem && k != Operand::Kind::imm) return std::nullopt;
  }
  if (d.map == 0) return one_byte_form(d);
  if (d.map == 1) return two_byte_form(d);
  if (d.map == 2) return three_byte_form(d);
  return std::nullopt;
}

bool can_copy(const Decoded& d, const CopyForm& f, const RegisterMap& map, bool memory) {
  const Fields x = host_fields(d, f, map);
  if (x.reg == no_reg || x.rm == no_reg || x.vvvv == no_reg) return false;
  if (!x.high_byte) return true;
  return !memory && !x.needs_rex && x.reg < 8 && x.rm < 8 && (rex_of(d) & rex_w) == 0;
}

unsigned copy_prefixes(Emitter& e, const Decoded& d) {
  unsigned i = 0;
  for (; i < d.length; ++i) {
    switch (const u8 b = d.bytes[i]) {
    case 0x66:
    case 0xf0:
    case 0xf2:
    case 0xf3: e.byte(b); break;
    case 0x26:
    case 0x2e:
    case 0x36:
    case 0x3e:
    case 0x64:
    case 0x65:
    case 0x67: break;
    default:
      if ((b & 0xf0) != 0x40) return i;
    }
  }
  return i;
}

namespace {
void copy_vex(Emitter& e, const Decoded& d, const CopyForm& f, const Fields& x, const HostMem* memory) {
  const auto high = [](HostReg r) { return r != no_reg && r >= 8; };
  const bool b = memory != nullptr ? high(memory->base) : high(x.rm);
  const bool index = memory != nullptr && high(memory->index);
  const u8 last = d.bytes[d.vex_offset + 2u];
  e.byte(0xc4);
  e.byte(static_cast<u8>((high(x.reg) ? 0 : 0x80) | (index ? 0 : 0x40) | (b ? 0 : 0x20) | d.map));
  e.byte(f.vvvv ? static_cast<u8>((last & 0x87) | (~x.vvvv & 15) << 3) : last);
}
} // namespace

void copy(Emitter& e, const Decoded& d, const CopyForm& f, const RegisterMap& map, const HostMem* memory) {
  const Fields x = host_fields(d, f, map);
  if (d.encoding == Encoding::vex) {
    copy_vex(e, d, f, x, memory);
  } else {
    const bool wide = (rex_of(d) & rex_w) != 0;
    copy_prefixes(e, d);
    if (memory != nullptr) {
      e.rex(wide, x.reg, *memory, x.needs_rex);
    } else {
      e.rex(wide, x.reg, x.rm, x.needs_rex);
    }
    if (d.map != 0) e.byte(0x0f);
    if (d.map == 2) e.byte(0x38);
  }
  if (f.opcode_reg) {
    e.byte(static_cast<u8>((d.opcode & 0xf8) | (x.rm & 7)));
  } else {
    e.byte(d.opcode);
    if (memory != nullptr) {
      e.modrm(x.reg, *memory);
    } else if (d.modrm_offset != 0) {
      e.modrm(x.reg, x.rm);
    }
  }
  if (d.imm_offset != 0) {
    for (unsigned i = d.imm_offset; i < d.length; ++i) e.byte(d.bytes[i]);
  }
}

} // namespace ring3::x86::jit
