// SPDX-License-Identifier: Apache-2.0
#include "forms.h"

#include "base/bits.h"

#include <Zydis/Zydis.h>
#include <unordered_set>

namespace ring3::x86::native {

namespace {

ZydisMachineMode machine_mode(unsigned code_bits) {
  return code_bits == 64 ? ZYDIS_MACHINE_MODE_LONG_64 : ZYDIS_MACHINE_MODE_LEGACY_32;
}

void add_modrm(Bytes& out, const Shape& s, const Fields& f) {
  if (s.modrm >= 0xc0) {
    out.add(0xc0 | (f.reg & 7) << 3 | (f.rm & 7));
    return;
  }
  const unsigned reg = (f.reg & 7U) << 3;
  using Address = Fields::Address;
  unsigned mod = f.displacement_size == 0 ? 0 : f.displacement_size == 1 ? 0x40 : 0x80;
  unsigned size = f.displacement_size;
  Address kind = f.address;
  if (s.needs_index && kind != Address::index_only) kind = Address::base_index;
  switch (kind) {
  case Address::rip:
    out.add(reg | 5);
    size = 4;
    break;
  case Address::absolute:
    if (s.code_bits == 64) {
      out.add(reg | 4);
      out.add(0x25);
    } else {
      out.add(reg | 5);
    }
    size = 4;
    break;
  case Address::index_only:
    out.add(reg | 4);
    out.add(f.scale << 6U | (f.index & 7U) << 3 | 5);
    size = 4;
    break;
  case Address::base:
  case Address::base_index:
    // Without a displacement, RBP and R13 mean something else.
    if ((f.base & 7) == 5 && mod == 0) {
      mod = 0x40;
      size = 1;
    }
    if (kind == Address::base && (f.base & 7) != 4) {
      out.add(mod | reg | (f.base & 7));
    } else {
      out.add(mod | reg | 4);
      const unsigned index = kind == Address::base ? 4U : f.index & 7U;
      out.add(f.scale << 6U | index << 3 | (f.base & 7));
    }
    break;
  }
  for (unsigned i = 0; i < size; ++i) out.add(f.displacement >> 8 * i & 0xff);
}

} // namespace

Bytes assemble(const Shape& s, const Fields& f) {
  Bytes out;
  const bool memory = s.modrm < 0xc0;
  const bool has_index = memory && (f.address == Fields::Address::base_index ||
                                    f.address == Fields::Address::index_only || s.needs_index);
  const bool has_base = memory && f.address != Fields::Address::rip &&
                        f.address != Fields::Address::absolute && f.address != Fields::Address::index_only;
  const unsigned r = f.reg >> 3 & 1U;
  const unsigned x = has_index ? f.index >> 3 & 1U : memory ? 0 : f.rm >> 4 & 1U;
  const unsigned b = has_base ? f.base >> 3 & 1U : memory ? 0 : f.rm >> 3 & 1U;
  if (f.segment_prefix != 0) out.add(f.segment_prefix);
  if (f.address_prefix) out.add(0x67);
  for (const u8 p : s.prefixes) {
    if (p != 0) out.add(p);
  }
  switch (s.encoding) {
  case Encoding::legacy: {
    const unsigned rex = 0x40 | (s.w ? 8U : 0U) | r << 2 | (memory ? x : 0U) << 1 | b;
    // Half of the time an empty REX, which makes SPL of AH.
    if (s.code_bits == 64 && (rex != 0x40 || (f.rest[9] & 1) != 0)) out.add(rex);
    if (s.map != 0) out.add(0x0f);
    if (s.map == 2) out.add(0x38);
    if (s.map == 3) out.add(0x3a);
    break;
  }
  case Encoding::vex: {
    const unsigned vvvv = (~f.vvvv & 15U) << 3;
    const unsigned last = vvvv | static_cast<unsigned>(s.l) << 2 | s.pp;
    if (f.short_vex && s.map == 1 && !s.w && x == 0 && b == 0) {
      out.add(0xc5);
      out.add((r ^ 1) << 7 | last);
    } else {
      out.add(0xc4);
      out.add((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | s.map);
      out.add((s.w ? 0x80U : 0U) | last);
    }
    break;
  }
  case Encoding::evex: {
    const unsigned r4 = f.reg >> 4 & 1U;
    unsigned v4 = f.vvvv >> 4 & 1U;
    if (s.needs_index) v4 = f.index >> 4 & 1U;
    out.add(0x62);
    out.add((r ^ 1) << 7 | (x ^ 1) << 6 | (b ^ 1) << 5 | (r4 ^ 1) << 4 | s.map);
    out.add((s.w ? 0x80U : 0U) | (~f.vvvv & 15U) << 3 | 4 | s.pp);
    out.add((s.z ? 0x80U : 0U) | static_cast<unsigned>(s.l) << 5 | (s.b ? 0x10U : 0U) | (v4 ^ 1) << 3 |
            f.mask);
    break;
  }
  }
  out.add(s.opcode);
  add_modrm(out, s, f);
  for (const u8 v : f.rest) out.add(v);
  return out;
}

namespace {

// Instructions without ModRM take the byte as an immediate, which does no harm, except that the register of
// opcode forms is REX.B alone.
bool string_op(Op op) { return op >= Op::movsb && op <= Op::scasq; }

const char* skip_reason(const Decoded& d, const ZydisDecodedInstruction& in) {
  if (in.meta.branch_type == ZYDIS_BRANCH_TYPE_FAR) return "far control transfer: needs descriptor tables";
  switch (d.op) {
  case Op::cpuid:
  case Op::rdtsc:
  case Op::rdtscp:
  case Op::rdpid:
  case Op::rdrand:
  case Op::rdseed:
  case Op::xgetbv:
  case Op::rdpmc:
  case Op::rdpru: return "shows the host's identity, time or random numbers";
  case Op::sgdt:
  case Op::sidt:
  case Op::sldt:
  case Op::str:
  case Op::smsw: return "UMIP: Linux emulates it for user space";
  case Op::rdfsbase:
  case Op::rdgsbase:
  case Op::wrfsbase:
  case Op::wrgsbase: return "FS and GS bases belong to the test process";
  case Op::lds:
  case Op::les:
  case Op::lfs:
  case Op::lgs:
  case Op::lss: return "loads a segment register: needs descriptor tables";
  case Op::lar:
  case Op::lsl:
  case Op::verr:
  case Op::verw: return "reads the host's descriptor tables";
  case Op::syscall:
  case Op::sysenter:
  case Op::int_:
  case Op::int1:
  case Op::int3:
  case Op::into:
  case Op::vmcall:
  case Op::vmmcall: return "enters the kernel or the hypervisor";
  case Op::iret:
  case Op::iretd:
  case Op::iretq: return "far control transfer: needs descriptor tables";
  case Op::rdpkru:
  case Op::wrpkru: return "depends on the host's CR4.PKE";
  case Op::monitor:
  case Op::mwait: return "depends on the host's hypervisor";
  case Op::in:
  case Op::out:
  case Op::insb:
  case Op::insw:
  case Op::insd:
  case Op::outsb:
  case Op::outsw:
  case Op::outsd: return "port access: needs a TSS";
  default: break;
  }
  if (d.op == Op::nop && d.map == 1 && d.opcode == 0x0d)
    return "AMD refuses 0F 0D with a register, Intel does not";
  if (d.op == Op::movsxd && d.operand_bytes == 2) return "AMD reads 32 bits, Intel 16";
  if (d.op >= Op::fxsave && d.op <= Op::xrstors64) return "state saving: has tests of its own";
  if (d.op == Op::push && d.operand[0].kind == Operand::Kind::segment && d.operand_bytes == 4)
    return "AMD writes 32 bits, Intel 16";
  for (unsigned i = 0; i < d.operands; ++i) {
    const Operand& o = d.operand[i];
    if (o.kind == Operand::Kind::segment && o.written)
      return "loads a segment register: needs descriptor tables";
  }
  if (d.code_bits != 64) {
    if (d.op == Op::vector || d.op == Op::x87) return "32-bit code: the same handlers as in 64-bit code";
    if (in.meta.category == ZYDIS_CATEGORY_SYSTEM) return "32-bit code: the same handlers as in 64-bit code";
  }
  return nullptr;
}

class Walk {
 public:
  explicit Walk(FormList& out) : out_(out) {
    ZydisDecoderInit(&decoder_[0], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    ZydisDecoderInit(&decoder_[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
  }

  bool offer(const Shape& s, Fields f) {
    f.reg = static_cast<u8>(s.modrm >> 3 & 7);
    f.rm = s.modrm & 7;
    f.mask = s.mask;
    if (s.vvvv_used) f.vvvv = 3;
    f.index = 6;
    f.rest.fill(0);
    const Bytes b = assemble(s, f);
    Decoded d;
    if (decode(b.data.data(), b.size, s.code_bits, d) != DecodeStatus::ok) return false;
    // The rest of the ModRM bytes is no news to an instruction that has none.
    const u64 key = form_key(d) * 2 + (s.code_bits == 64 ? 1 : 0);
    if (!seen_.insert(key).second) return true;
    ZydisDecodedInstruction in;
    ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
    ZydisDecoderDecodeFull(&decoder_[s.code_bits == 64 ? 0 : 1], b.data.data(), b.size, &in, operands);
    Form form{s, key, d, disassemble(b.data.data(), d.length, s.code_bits), false, false};
    if (const char* reason = skip_reason(d, in)) {
      out_.left_out.push_back({form.name, reason});
      return true;
    }
    form.free_reg = stays(s, f, key, [](Fields& x, unsigned v) { x.reg = static_cast<u8>(v); });
    if (s.modrm >= 0xc0)
      form.free_rm = stays(s, f, key, [](Fields& x, unsigned v) { x.rm = static_cast<u8>(v); });
    out_.forms.push_back(std::move(form));
    return true;
  }

 private:
  template <class Change> static bool stays(const Shape& s, const Fields& f, u64 key, Change change) {
    unsigned same = 0;
    for (unsigned v = 0; v < 8; ++v) {
      Fields x = f;
      change(x, v);
      const Bytes b = assemble(s, x);
      Decoded d;
      if (decode(b.data.data(), b.size, s.code_bits, d) != DecodeStatus::ok) continue;
      same += form_key(d) * 2 + (s.code_bits == 64 ? 1 : 0) == key;
    }
    return same > 2;
  }

  FormList& out_;
  ZydisDecoder decoder_[2];
  std::unordered_set<u64> seen_;
};

void walk_legacy(Walk& w, unsigned code_bits) {
  constexpr std::array<u8, 2> prefix_sets[] = {{0, 0},       {0x66, 0},    {0xf3, 0}, {0xf2, 0},
                                               {0x66, 0xf3}, {0x66, 0xf2}, {0xf0, 0}, {0xf0, 0x66}};
  for (const auto& prefixes : prefix_sets) {
    for (unsigned rex_w = 0; rex_w < (code_bits == 64 ? 2U : 1U); ++rex_w) {
      for (unsigned at = 0; at < 1024; ++at) {
        Shape s;
        s.code_bits = static_cast<u8>(code_bits);
        s.prefixes = prefixes;
        s.w = rex_w != 0;
        s.map = static_cast<u8>(at >> 8);
        s.opcode = static_cast<u8>(at);
        if (s.map == 0) {
          // Prefixes and the escapes to other maps.
          const u8 o = s.opcode;
          if (o == 0x0f || o == 0x26 || o == 0x2e || o == 0x36 || o == 0x3e || (o >= 0x64 && o <= 0x67) ||
              o == 0xf0 || o == 0xf2 || o == 0xf3 ||
              (code_bits == 64 && ((o & 0xf0) == 0x40 || o == 0x62 || o == 0xc4 || o == 0xc5))) {
            continue;
          }
        }
        if (s.map == 1 && (s.opcode == 0x38 || s.opcode == 0x3a)) continue;
        Fields f;
        for (unsigned modrm = 0; modrm < 256; modrm = modrm == 0x3f ? 0xc0 : modrm + 1) {
          if (modrm < 0xc0 && (modrm & 7) != 7) continue;
          s.modrm = static_cast<u8>(modrm);
          w.offer(s, f);
        }
      }
    }
  }
}

void walk_vex(Walk& w, Encoding encoding) {
  const bool evex = encoding == Encoding::evex;
  // aaa, z and b of EVEX.
  struct Decoration {
    bool b, z;
    u8 mask;
  };
  constexpr Decoration decorations[] = {{false, false, 0}, {false, false, 1}, {false, true, 1},
                                        {true, false, 0},  {true, false, 1},  {true, true, 1}};
  for (unsigned at = 0x100; at < 0x400; ++at) {
    for (unsigned bits = 0; bits < 32; ++bits) {
      Shape s;
      s.encoding = encoding;
      s.map = static_cast<u8>(at >> 8);
      s.opcode = static_cast<u8>(at);
      s.pp = bits & 3;
      s.w = (bits & 4) != 0;
      s.l = static_cast<u8>(bits >> 3);
      if (!evex && s.l > 1) continue;
      for (const Decoration& x : decorations) {
        if (!evex && (x.b || x.mask != 0)) continue;
        s.b = x.b;
        s.z = x.z;
        s.mask = x.mask;
        for (unsigned modrm = 7; modrm < 0x100; modrm += 8) {
          if (modrm == 0x47) modrm = 0xc7;
          s.modrm = static_cast<u8>(modrm);
          s.needs_index = false;
          s.vvvv_used = true;
          if (w.offer(s, Fields{})) continue;
          s.vvvv_used = false;
          if (w.offer(s, Fields{})) continue;
          if (modrm < 0xc0 && (s.map == 2)) {
            s.needs_index = true;
            s.vvvv_used = !evex; // the mask of AVX2's gathers
            w.offer(s, Fields{});
          }
        }
      }
    }
  }
}

} // namespace

u64 form_key(const Decoded& d) {
  u64 h = 0xcbf29ce484222325;
  const auto mix = [&](u64 v) { h = (h ^ v) * 0x100000001b3 ^ h >> 29; };
  mix(d.mnemonic);
  mix(static_cast<u64>(d.encoding));
  mix(d.map);
  mix(d.opcode);
  mix(d.vector_bits);
  if (d.op != Op::vector && d.op != Op::x87) mix(d.operand_bytes);
  mix(d.lock);
  if (string_op(d.op)) mix(2 + d.rep + 2U * d.repne);
  mix(d.evex_b);
  mix(d.evex_z);
  mix(d.evex_mask != 0);
  for (unsigned i = 0; i < d.operands; ++i) {
    const Operand& o = d.operand[i];
    mix(static_cast<u64>(o.kind));
    mix(o.bits);
    mix(o.element_bits);
  }
  return h;
}

FormList enumerate_forms() {
  FormList out;
  Walk w(out);
  walk_legacy(w, 64);
  walk_vex(w, Encoding::vex);
  walk_vex(w, Encoding::evex);
  walk_legacy(w, 32);
  return out;
}

const char* mnemonic_of(const Decoded& d) {
  const char* s = ZydisMnemonicGetString(static_cast<ZydisMnemonic>(d.mnemonic));
  return s != nullptr ? s : "?";
}

std::string disassemble(const u8* bytes, unsigned size, unsigned code_bits) {
  ZydisDisassembledInstruction out;
  if (!ZYAN_SUCCESS(ZydisDisassembleIntel(machine_mode(code_bits), 0x10000800, bytes, size, &out)))
    return "(bad)";
  return out.text;
}

} // namespace ring3::x86::native
