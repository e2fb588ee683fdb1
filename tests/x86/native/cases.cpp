// SPDX-License-Identifier: Apache-2.0
#include "cases.h"

#include "base/bits.h"

#include <cstdlib>
#include <string_view>

namespace ring3::x86::native {

namespace {

constexpr u32 float_values[] = {0x00000000, 0x80000000, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000,
                                0x7fc00000, 0xffc00000, 0x7f800001, 0xffa00000, 0x00000001, 0x80000001,
                                0x007fffff, 0x00800000, 0x80800000, 0x7f7fffff, 0xff7fffff, 0x3f000000,
                                0x40490fdb, 0x4b000000, 0x4b000001, 0x4f000000, 0xcf000000, 0x4effffff,
                                0x5f000000, 0x3effffff, 0x33800000, 0x7fffffff};
constexpr u64 double_values[] = {
    0x0000000000000000, 0x8000000000000000, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000,
    0xfff0000000000000, 0x7ff8000000000000, 0xfff8000000000000, 0x7ff0000000000001, 0xfff4000000000000,
    0x0000000000000001, 0x8000000000000001, 0x000fffffffffffff, 0x0010000000000000, 0x7fefffffffffffff,
    0xffefffffffffffff, 0x3fe0000000000000, 0x400921fb54442d18, 0x4330000000000000, 0x41e0000000000000,
    0xc1e0000000000000, 0x41dfffffffc00000, 0x43e0000000000000, 0xc3e0000000000000, 0x43f0000000000000,
    0x36a0000000000000, 0x3810000000000000, 0x47efffffe0000000, 0x3fdfffffffffffff};
struct Extended {
  u64 mantissa;
  u16 exponent;
};
constexpr Extended extended_values[] = {{0, 0},
                                        {0, 0x8000},
                                        {u64{1} << 63, 0x3fff},
                                        {u64{1} << 63, 0xbfff},
                                        {u64{1} << 63, 0x7fff},
                                        {u64{1} << 63, 0xffff},
                                        {u64{3} << 62, 0x7fff},
                                        {u64{3} << 62, 0xffff},
                                        {(u64{1} << 63) | 1, 0x7fff},
                                        {(u64{5} << 61), 0xffff},
                                        {1, 0},
                                        {1, 0x8000},
                                        {~u64{0} >> 1, 0},
                                        {u64{1} << 63, 0},      // pseudo-denormal
                                        {u64{1} << 62, 0x3fff}, // unnormal
                                        {0, 0x7fff},            // pseudo-infinity
                                        {1, 0x7fff},            // pseudo-NaN
                                        {u64{1} << 63, 1},
                                        {~u64{0}, 0x7ffe},
                                        {~u64{0}, 0xfffe},
                                        {0xc90fdaa22168c235, 0x4000},
                                        {u64{1} << 63, 0x401e},
                                        {u64{1} << 63, 0x403e},
                                        {u64{1} << 63, 0xc03e},
                                        {u64{1} << 63, 0x4007},
                                        {u64{1} << 63, 0x3ffe},
                                        {u64{1} << 63, 0x3f80},
                                        {~u64{0}, 0x3fff},
                                        {~u64{0}, 0x407e},
                                        {~u64{0}, 0x43fe},
                                        {u64{1} << 63, 0x3c00},
                                        {u64{1} << 63, 0xe000},
                                        {u64{1} << 63, 0x5fff}};

constexpr u64 spread(u64 element, unsigned bits) {
  u64 v = 0;
  for (unsigned at = 0; at < 64; at += bits) v |= (element & low_mask(bits)) << at;
  return v;
}

unsigned element_bits_of_index(const Decoded& d) {
  // The letter after the verb: vpgatherDq, vscatterQps.
  const std::string_view name = mnemonic_of(d);
  for (const std::string_view verb : {std::string_view("gather"), std::string_view("scatter")}) {
    if (const auto at = name.find(verb); at != name.npos) return name[at + verb.size()] == 'q' ? 64 : 32;
  }
  return 32;
}

bool uses_stack(Op op) {
  switch (op) {
  case Op::push:
  case Op::pop:
  case Op::call:
  case Op::ret:
  case Op::enter:
  case Op::leave: return true;
  default: return false;
  }
}

// RSP and RBP that were chosen for a memory operand lead an instruction's other access anywhere, and what is
// mapped there belongs to this process.
bool stack_is_wild(const Case& c) {
  if (!uses_stack(c.decoded.op)) return false;
  const auto wild = [&](unsigned reg) {
    const u64 at = c.decoded.code_bits == 64 ? c.state.gpr[reg] : c.state.gpr[reg] & 0xffffffff;
    return at < arena::control || at >= arena::stack_end + 0x100000;
  };
  return wild(rsp) || (c.decoded.op == Op::leave && wild(rbp));
}

Extended random_extended(Random& r) {
  if (!r.one_in(3)) return extended_values[r.below(std::size(extended_values))];
  Extended e{r.next(), static_cast<u16>(r.next())};
  if (!r.one_in(4)) {
    e.mantissa |= u64{1} << 63;
    // Near one, so that results are in range.
    e.exponent = static_cast<u16>((e.exponent & 0x8000) | (0x3fff - 80 + r.below(160)));
  }
  return e;
}

} // namespace

CaseMaker::CaseMaker(u64 seed) : pool_(pool_size) {
  Random r(seed ^ 0x706f6f6c);
  for (Vector64& v : pool_) {
    const u64 kind = r.below(7);
    for (unsigned at = 0; at < 64; at += 8) {
      u64 w = 0;
      switch (kind) {
      case 0: w = r.next(); break;
      case 1:
        for (unsigned i = 0; i < 2; ++i) w = w << 32 | float_values[r.below(std::size(float_values))];
        break;
      case 2: w = double_values[r.below(std::size(double_values))]; break;
      case 3: // floats of ordinary size
        for (unsigned i = 0; i < 2; ++i) {
          w = w << 32 | ((r.next() & 0x807fffff) | (127 - 20 + r.below(40)) << 23);
        }
        break;
      case 4: w = (r.next() & 0x800fffffffffffff) | (1023 - 40 + r.below(80)) << 52; break;
      case 5: w = spread(integer(r, 64), 8U << r.below(4)); break;
      default:
        for (unsigned i = 0; i < 4; ++i) w = w << 16 | (integer(r, 16) & 0xffff);
        break;
      }
      std::memcpy(v.bytes + at, &w, 8);
    }
  }
}

u64 CaseMaker::integer(Random& r, unsigned bits) {
  switch (r.below(8)) {
  case 0: return r.below(4) - 2;
  case 1: return (u64{1} << r.below(bits)) + r.below(3) - 1;
  case 2: return ~(u64{1} << r.below(bits)) + r.below(3);
  case 3: return u64{1} << (bits - 1);
  case 4: return low_mask(bits - 1);
  case 5: return r.below(256);
  case 6: return spread(r.next(), 8U << r.below(3));
  default: return r.next();
  }
}

u64 CaseMaker::pick_address(Random& r, u64 size) {
  if (size == 0) size = 1;
  const u64 middle = arena::data + arena::page;
  switch (r.below(32)) {
  case 0: return middle - 1 - r.below(size);                            // across the pages
  case 1: return arena::data_end - 1 - r.below(size);                   // into nothing
  case 2: return arena::data - 1 - r.below(size);                       // from nothing
  case 3: return arena::data_end - size;                                // up to the end
  case 4: return arena::data + 64 * (1 + r.below(100)) - r.below(size); // across a cache line
  case 5:
  case 6: return arena::data + r.below(arena::region_size - size);
  case 7: return arena::data + (r.below(arena::region_size - size) & ~u64{3});
  default: return arena::data + (r.below(arena::region_size - size) & ~u64{63});
  }
}

u64 CaseMaker::pick_target(Random& r, unsigned code_bits) {
  const u64 t = r.one_in(2) ? arena::forward_target : arena::backward_target;
  if (code_bits == 64 && r.one_in(24)) return t | u64{1} << (47 + r.below(16));
  return t;
}

bool CaseMaker::encode(const Form& form, Random& e, Random& r, Fields& f, Case& out) {
  const Shape& s = form.shape;
  const bool wide = s.code_bits == 64;
  const unsigned registers = wide ? s.encoding == Encoding::evex ? 32 : 16 : 8;
  f = Fields{};
  f.reg = static_cast<u8>(form.free_reg ? e.below(registers) : s.modrm >> 3 & 7U);
  f.rm = static_cast<u8>(form.free_rm ? e.below(registers) : s.modrm & 7U);
  if (!form.free_rm && out.decoded.modrm_offset == 0) f.rm = static_cast<u8>(wide ? e.below(16) : 0);
  if (s.vvvv_used) f.vvvv = static_cast<u8>(e.below(registers));
  if (s.modrm >= 0xc0 && form.free_rm && form.free_reg && e.one_in(6)) f.rm = f.reg;
  if (s.vvvv_used && e.one_in(6)) f.vvvv = f.reg;
  if (s.vvvv_used && e.one_in(6)) f.vvvv = f.rm;
  f.base = static_cast<u8>(r.below(wide ? 16 : 8));
  f.index = static_cast<u8>(r.below(s.needs_index ? registers : wide ? 16 : 8));
  f.scale = static_cast<u8>(r.below(4));
  using Address = Fields::Address;
  switch (r.below(10)) {
  case 0:
  case 1: f.address = Address::base_index; break;
  case 2: f.address = wide ? Address::rip : Address::absolute; break;
  case 3: f.address = Address::absolute; break;
  case 4: f.address = Address::index_only; break;
  default: f.address = Address::base; break;
  }
  f.displacement_size = static_cast<u8>(r.below(3));
  if (f.displacement_size == 2) f.displacement_size = 4;
  f.displacement = static_cast<u32>(r.one_in(2) ? integer(r, 32) : r.below(0x200) - 0x100);
  if (s.mask != 0) f.mask = static_cast<u8>(1 + e.below(7));
  f.address_prefix = wide && r.one_in(10);
  if (r.one_in(40)) {
    constexpr u8 plain[] = {0x26, 0x2e, 0x36, 0x3e};
    f.segment_prefix = plain[r.below(4)];
  }
  f.short_vex = e.one_in(3);
  const u64 value = integer(e, 8U << e.below(4));
  std::memcpy(f.rest.data(), &value, 8);
  f.rest[8] = static_cast<u8>(e.next());
  f.rest[9] = static_cast<u8>(e.next());
  return true;
}

void CaseMaker::fill_x87(Random& r, X87State& x) {
  x.fcw = static_cast<u16>(0x37f);
  if (r.one_in(2)) x.fcw = static_cast<u16>(0x7f | (r.next() & 0xf00));
  if (r.one_in(6)) x.fcw = static_cast<u16>((x.fcw & ~0x3fU) | (r.next() & 0x3f));
  x.fsw = static_cast<u16>(r.next() & 0x7f00);
  if (r.one_in(4)) x.fsw |= static_cast<u16>(r.next() & 0x7f);
  if ((x.fsw & ~x.fcw & 0x3f) != 0) x.fsw |= 0x8080;
  x.ftw = static_cast<u8>(r.one_in(3) ? r.next() : 0xff);
  for (auto& st : x.st) {
    const Extended e = random_extended(r);
    std::memset(st, 0, 16);
    std::memcpy(st, &e.mantissa, 8);
    std::memcpy(st + 8, &e.exponent, 2);
  }
}

void CaseMaker::fill_state(Random& r, Case& c) {
  MachineState& s = c.state;
  const bool wide = c.decoded.code_bits == 64;
  for (u64& g : s.gpr) {
    g = integer(r, 8U << r.below(4));
    if (!wide) g &= 0xffffffff;
  }
  s.gpr[rsp] = arena::stack + arena::page + (r.below(0x400) & ~u64{7}) - 0x200;
  if (r.one_in(8)) s.gpr[rsp] += r.below(8);
  if (r.one_in(24)) s.gpr[rsp] = (r.one_in(2) ? arena::stack : arena::stack_end) + r.below(24) - 12;
  s.rip = arena::instruction;
  s.flags = (r.next() & (rflags::arithmetic | rflags::id)) | rflags::fixed1 | rflags::if_;
  if (r.one_in(6)) s.flags |= rflags::df;
  // Which vector and x87 accesses count as unaligned, processors do not agree on.
  const Op op = c.decoded.op;
  if (r.one_in(48) && op != Op::vector && op != Op::x87 && op != Op::enter) s.flags |= rflags::ac;
  fill_x87(r, s.x87);
  s.x87.mxcsr = 0x1f80;
  if (r.one_in(2)) s.x87.mxcsr |= static_cast<u32>(r.next() & 0xe07f);
  if (r.one_in(10)) s.x87.mxcsr &= static_cast<u32>(r.next() | ~u64{0x1f80});
  for (auto& z : s.vector.zmm) std::memcpy(z, pool_[r.below(pool_size)].bytes, 64);
  for (u64& k : s.vector.k) k = r.one_in(4) ? ~u64{0} : integer(r);
}

// Small distances, so that the elements lie around the base.
void CaseMaker::place_index_vector(Random& r, Case& c) {
  u8* z = c.state.vector.zmm[c.decoded.index];
  const unsigned bits = element_bits_of_index(c.decoded);
  for (unsigned at = 0; at < 64; at += bits / 8) {
    const u64 v = r.below(r.one_in(8) ? 2048 : 256) - 128;
    std::memcpy(z + at, &v, bits / 8);
  }
}

// Chooses where the memory operand is, and solves for the base, the index or the displacement.
void CaseMaker::place_operand(const Form&, Random& r, Fields&, Case& c, MemoryImage& memory) {
  Decoded& d = c.decoded;
  u64 size = d.memory_bits / 8;
  if (d.vsib) size = 64;
  u64 target = pick_address(r, size);
  if (d.vsib) {
    place_index_vector(r, c);
    if (!r.one_in(4)) target = arena::data + 0x800 + r.below(0x1000);
  }
  const u64 mask = d.address_bytes == 8 ? ~u64{0} : low_mask(8U * d.address_bytes);
  u64* g = c.state.gpr;
  if (d.address_bytes == 2) return; // below what may be mapped: always a fault
  if (d.rip_relative || d.base == reg_zero) {
    u64 displacement = target - (d.rip_relative ? arena::instruction + d.length : 0);
    if (!d.rip_relative && !d.vsib && d.index != reg_zero) displacement -= g[d.index] << d.scale;
    // Only a displacement that sign-extends right reaches it; the index gives way.
    if (d.base == reg_zero && d.index != reg_zero && !d.vsib) {
      g[d.index] = r.below(0x1000);
      displacement = target - (g[d.index] << d.scale);
    }
    if (d.disp_size == 32)
      store_raw<u32>(c.bytes.data.data() + d.disp_offset, static_cast<u32>(displacement));
    if (d.disp_size == 64) store_raw<u64>(c.bytes.data.data() + d.disp_offset, displacement);
  } else {
    const u64 displacement = static_cast<u64>(d.displacement);
    if (d.index == d.base && !d.vsib) {
      // v * (1 + 2^scale) + displacement: as near as an integer comes.
      g[d.base] = ((target - displacement) & low_mask(31)) / (1 + (u64{1} << d.scale));
    } else {
      u64 rest = displacement;
      if (d.index != reg_zero && !d.vsib) {
        if (r.one_in(2)) g[d.index] = r.below(0x400);
        rest += g[d.index] << d.scale;
      }
      g[d.base] = target - rest;
    }
    if (mask != ~u64{0} && c.decoded.code_bits == 64) g[d.base] = (g[d.base] & mask) | r.next() << 32;
    if (c.decoded.code_bits != 64) g[d.base] &= 0xffffffff;
  }
  // A value worth having there.
  const u64 offset = target - arena::data;
  if (offset >= arena::region_size) return;
  u8 value[64];
  std::memcpy(value, pool_[r.below(pool_size)].bytes, 64);
  if (d.op == Op::x87 && d.memory_bits == 80) {
    const Extended e = random_extended(r);
    std::memcpy(value, &e.mantissa, 8);
    std::memcpy(value + 8, &e.exponent, 2);
    if (r.one_in(3)) {
      for (unsigned i = 0; i < 9; ++i) value[i] = static_cast<u8>(r.below(10) | r.below(10) << 4); // FBLD
    }
  } else if (d.op != Op::vector && r.one_in(2)) {
    const u64 v = integer(r, 8U << r.below(4));
    std::memcpy(value, &v, 8);
  }
  if (d.op == Op::ldmxcsr || d.op == Op::vldmxcsr) value[2] &= 0xfd; // AMD's MISALIGNSSE
  if (d.op == Op::jmp || d.op == Op::call) {
    const u64 t = pick_target(r, d.code_bits);
    std::memcpy(value, &t, 8);
  }
  std::memcpy(memory.data + offset, value, std::min<u64>(64, arena::region_size - offset));
}

// Operands that the encoding does not show, and values that must not be anything at all.
void CaseMaker::place_implicit(Random& r, Case& c, MemoryImage& memory) {
  const Decoded& d = c.decoded;
  u64* g = c.state.gpr;
  const u64 mask = d.address_bytes >= 8 ? ~u64{0} : low_mask(8U * d.address_bytes);
  const auto point = [&](unsigned reg, u64 size) {
    const u64 a = pick_address(r, size);
    g[reg] = mask == ~u64{0} ? a : d.code_bits == 64 ? (a & mask) | r.next() << 32 : a;
  };
  const auto stack_slot = [&](u64 value) {
    const u64 offset = g[rsp] - arena::stack;
    if (offset >= arena::region_size) return;
    std::memcpy(memory.stack + offset, &value, std::min<u64>(8, arena::region_size - offset));
  };
  switch (d.op) {
  case Op::movsb:
  case Op::movsw:
  case Op::movsd:
  case Op::movsq:
  case Op::cmpsb:
  case Op::cmpsw:
  case Op::cmpsd:
  case Op::cmpsq:
  case Op::stosb:
  case Op::stosw:
  case Op::stosd:
  case Op::stosq:
  case Op::lodsb:
  case Op::lodsw:
  case Op::lodsd:
  case Op::lodsq:
  case Op::scasb:
  case Op::scasw:
  case Op::scasd:
  case Op::scasq:
    point(rsi, d.operand_bytes);
    point(rdi, d.operand_bytes);
    if (r.one_in(4)) g[rdi] = g[rsi] + r.below(64) - 32; // overlap
    if (d.code_bits != 64) g[rdi] &= 0xffffffff;
    g[rcx] = r.one_in(8) ? r.below(1200) : r.below(24);
    if (mask != ~u64{0} && d.code_bits == 64) g[rcx] |= r.next() << 32;
    if (d.rep || d.repne) {
      // Something to find, and something that stays equal for a while.
      if (r.one_in(2)) std::memset(memory.data + r.below(0x1f00), static_cast<int>(g[rax] & 0xff), 0x100);
    }
    break;
  case Op::xlat: point(rbx, 256); break;
  case Op::clzero: point(rax, 64); break;
  case Op::leave: g[rbp] = g[rsp] + (r.below(64) & ~u64{7}); break;
  case Op::enter: g[rbp] = r.one_in(2) ? g[rsp] + 64 : arena::stack + r.below(arena::region_size); break;
  case Op::popf:
  case Op::popfd:
  case Op::popfq: stack_slot(r.next() & ~rflags::tf); break;
  case Op::ret: {
    stack_slot(pick_target(r, d.code_bits));
    break;
  }
  case Op::jmp:
  case Op::call:
    if (d.operand[0].kind == Operand::Kind::gpr && d.operand[0].reg != rsp * 8)
      g[d.operand[0].reg / 8] = pick_target(r, d.code_bits);
    break;
  case Op::bt:
  case Op::bts:
  case Op::btr:
  case Op::btc:
    // The bit string reaches as far as the register says; keep it near.
    if (d.has_memory && d.operand[1].kind == Operand::Kind::gpr) {
      const unsigned reg = d.operand[1].reg / 8;
      if (reg != d.base && reg != d.index) g[reg] = r.below(0x4000) - 0x2000;
      if (d.code_bits != 64) g[reg] &= 0xffffffff;
    }
    break;
  case Op::jcxz:
  case Op::jecxz:
  case Op::jrcxz:
  case Op::loop:
  case Op::loope:
  case Op::loopne:
    if (r.one_in(2)) g[rcx] = r.below(3) | (r.one_in(2) ? r.next() << 32 : 0);
    if (d.code_bits != 64) g[rcx] &= 0xffffffff;
    break;
  case Op::div:
  case Op::idiv:
    // Most quotients of random numbers do not fit.
    if (r.one_in(2)) {
      g[rdx] = r.one_in(2) ? 0 : r.below(16) - 8;
      if (d.operand_bytes == 1) g[rax] &= 0xfff;
      if (d.code_bits != 64) g[rdx] &= 0xffffffff;
    }
    break;
  case Op::cmpxchg8b:
  case Op::cmpxchg16b:
  case Op::cmpxchg:
    if (r.one_in(2)) g[rdx] = r.below(2);
    break;
  case Op::vector: {
    const std::string_view name = mnemonic_of(d);
    // What faults when nothing is written is up to the processor.
    if (name.find("maskmov") != name.npos && !d.has_memory) {
      point(rdi, 16);
      const u64 at = arena::data + r.below(arena::region_size - 16);
      g[rdi] = (g[rdi] & ~mask) | at;
    }
    break;
  }
  default: break;
  }
}

bool CaseMaker::make(const Form& form, u64 encoding_seed, u64 seed, Case& c, MemoryImage& memory) {
  Random r(seed);
  Random registers(encoding_seed ^ 0x72656773);
  Fields f;
  const Shape& s = form.shape;
  bool found = false;
  for (unsigned attempt = 0; attempt < 24 && !found; ++attempt) {
    c.decoded = form.sample;
    encode(form, registers, r, f, c);
    c.bytes = assemble(s, f);
    Decoded d;
    if (decode(c.bytes.data.data(), std::min(c.bytes.size, 15U), s.code_bits, d) != DecodeStatus::ok)
      continue;
    if (form_key(d) * 2 + (s.code_bits == 64 ? 1 : 0) != form.key) continue;
    if (d.segment == Seg::fs || d.segment == Seg::gs) continue;
    c.decoded = d;
    found = true;
  }
  if (!found) return false;
  c.bytes.size = c.decoded.length;
  fill_state(r, c);
  // A background that differs from case to case without being written anew.
  for (unsigned i = 0; i < 4; ++i) {
    std::memcpy(memory.data + r.below(arena::region_size / 64) * 64, pool_[r.below(pool_size)].bytes, 64);
    std::memcpy(memory.stack + r.below(arena::region_size / 64) * 64, pool_[r.below(pool_size)].bytes, 64);
  }
  place_implicit(r, c, memory);
  if (c.decoded.has_memory && !c.decoded.address_only) place_operand(form, r, f, c, memory);
  if (stack_is_wild(c)) return false;
  if (c.decoded.branch_relative && c.decoded.imm_size != 16) {
    const u64 target = pick_target(r, 32);
    const u64 distance = target - (arena::instruction + c.decoded.length);
    std::memcpy(c.bytes.data.data() + c.decoded.imm_offset, &distance, c.decoded.imm_size / 8U);
  }
  return decode(c.bytes.data.data(), c.bytes.size, s.code_bits, c.decoded) == DecodeStatus::ok;
}

} // namespace ring3::x86::native
