// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/vector_copy.h"

#include "x86/interp/vector_plan.h"

namespace ring3::x86::jit {

namespace {

// The prefix's bits for registers beyond the first eight, as in REX; VEX and EVEX have them inverted.
struct Extension {
  bool r = false, x = false, b = false;
};

struct Fields {
  u8 reg = 0, rm = 0; // of three bits
  Extension ext;
};

Fields host_fields(const Decoded& d, const RegisterMap& map, const HostMem* memory) {
  Fields f;
  f.reg = d.modrm >> 3 & 7;
  f.rm = d.modrm & 7;
  if (d.encoding == Encoding::legacy) {
    const u8 rex = d.rex_offset != 0xff ? d.bytes[d.rex_offset] : 0;
    f.ext = {(rex & 4) != 0, (rex & 2) != 0, (rex & 1) != 0};
  } else if (d.encoding == Encoding::vex && d.bytes[d.vex_offset] == 0xc5) {
    f.ext.r = (d.bytes[d.vex_offset + 1u] & 0x80) == 0;
  } else {
    const u8 p = d.bytes[(d.encoding == Encoding::vex ? d.vex_offset : d.evex_offset) + 1u];
    f.ext = {(p & 0x80) == 0, (p & 0x40) == 0, (p & 0x20) == 0};
  }
  const VectorGpr gpr = vector_gpr(d);
  if (gpr.in_reg) {
    const HostReg h = map[gpr.number];
    f.reg = h & 7;
    f.ext.r = h >= 8;
  }
  if (gpr.in_rm) {
    const HostReg h = map[gpr.number];
    f.rm = h & 7;
    f.ext.b = h >= 8;
    f.ext.x = false;
  }
  if (memory != nullptr) {
    f.ext.x = memory->index != no_reg && memory->index >= 8;
    f.ext.b = memory->base != no_reg && memory->base >= 8;
  }
  return f;
}

} // namespace

std::optional<u8> vector_level_of(const Decoded& d, const Insn& in) {
  if (d.op != Op::vector) return std::nullopt;
  if (runs_on_mmx_registers(in)) {
    const bool both = in.plan != nullptr && (in.plan->floating || in.plan->needs.cr4_set != 0);
    return both ? vector_level::x87 | vector_level::sse : vector_level::x87;
  }
  if (!runs_on_vector_registers(in)) return std::nullopt;
  if (in.plan == nullptr) return vector_level::avx; // VZEROUPPER, VZEROALL
  const u64 xcr0 = in.plan->needs.xcr0_set;
  return xcr0 == 0                        ? vector_level::sse
         : xcr0 == vector_needs::xcr0_avx ? vector_level::avx
                                          : vector_level::avx512;
}

bool can_copy_vector(const Decoded& d, const RegisterMap& map) {
  const VectorGpr gpr = vector_gpr(d);
  return (!gpr.in_reg && !gpr.in_rm) || map[gpr.number] != no_reg;
}

void copy_vector(Emitter& e, const Decoded& d, const RegisterMap& map, const HostMem* memory) {
  if (d.modrm_offset == 0) { // EMMS, VZEROUPPER, VZEROALL
    e.bytes(std::span(d.bytes.data(), d.length));
    return;
  }
  const Fields f = host_fields(d, map, memory);
  const auto inverted = [&](u8 kept) {
    return static_cast<u8>(kept | (f.ext.r ? 0 : 0x80) | (f.ext.x ? 0 : 0x40) | (f.ext.b ? 0 : 0x20));
  };
  unsigned at = 0; // the opcode
  if (d.encoding == Encoding::legacy) {
    at = copy_prefixes(e, d);
    const u8 wide = d.rex_offset != 0xff ? d.bytes[d.rex_offset] & 8 : 0;
    const auto rex = static_cast<u8>(0x40 | wide | (f.ext.r ? 4 : 0) | (f.ext.x ? 2 : 0) | (f.ext.b ? 1 : 0));
    if (rex != 0x40) e.byte(rex);
  } else if (d.encoding == Encoding::vex) {
    at = d.vex_offset;
    const bool two_bytes = d.bytes[at] == 0xc5;
    e.byte(0xc4);
    e.byte(inverted(two_bytes ? 1 : d.bytes[at + 1] & 0x1f));
    e.byte(two_bytes ? d.bytes[at + 1] & 0x7f : d.bytes[at + 2]);
    at += two_bytes ? 2 : 3;
  } else {
    at = d.evex_offset;
    e.byte(0x62);
    u8 p0 = inverted(d.bytes[at + 1] & 0x1f);
    if (vector_gpr(d).in_reg) p0 |= 0x10; // the fifth bit of a register that has four
    e.byte(p0);
    e.byte(d.bytes[at + 2]);
    // The fifth bit of an index, too.
    e.byte(d.bytes[at + 3]);
    at += 4;
  }
  for (; at < d.modrm_offset; ++at) e.byte(d.bytes[at]);
  unsigned tail = d.modrm_offset + 1u;
  if (memory != nullptr) {
    // Displacements of one byte are scaled in EVEX.
    e.modrm(f.reg, *memory, d.encoding == Encoding::evex);
    tail += (d.sib_offset != 0 ? 1u : 0u) + d.disp_size / 8u;
  } else {
    e.byte(static_cast<u8>(0xc0 | f.reg << 3 | f.rm));
  }
  for (; tail < d.length; ++tail) e.byte(d.bytes[tail]);
}

} // namespace ring3::x86::jit
