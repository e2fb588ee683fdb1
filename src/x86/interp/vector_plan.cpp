// SPDX-License-Identifier: Apache-2.0
#include "x86/interp/vector_plan.h"

#include "x86/interp/vector_emitter.h"

#include <algorithm>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <unordered_map>

namespace ring3::x86 {

namespace {

using Kind = Operand::Kind;

bool is_vector(Kind k) { return k == Kind::xmm || k == Kind::ymm || k == Kind::zmm; }

bool has_kind(const Decoded& d, Kind k) {
  return std::any_of(d.operand.begin(), d.operand.begin() + d.operands,
                     [k](const Operand& o) { return o.kind == k; });
}

bool legacy_prefix(u8 b) {
  switch (b) {
  case 0x66:
  case 0xf2:
  case 0xf3:
  case 0x67:
  case 0xf0:
  case 0x26:
  case 0x2e:
  case 0x36:
  case 0x3e:
  case 0x64:
  case 0x65: return true;
  default: return false;
  }
}

bool string_compare(const Decoded& d) { return d.map == 3 && d.opcode >= 0x60 && d.opcode <= 0x63; }

// Comparisons that leave their result in EFLAGS.
bool writes_flags(const Decoded& d) {
  if (d.map == 1) {
    if (d.opcode == 0x2e || d.opcode == 0x2f) return true;
    return d.encoding == Encoding::vex && (d.opcode == 0x98 || d.opcode == 0x99);
  }
  if (d.map == 2)
    return d.encoding != Encoding::evex && (d.opcode == 0x17 || d.opcode == 0x0e || d.opcode == 0x0f);
  return string_compare(d) && d.encoding != Encoding::evex;
}

// May the result or MXCSR depend on MXCSR? Wrong positives only cost time.
bool uses_mxcsr(const Decoded& d) {
  const u8 o = d.opcode;
  const auto in = [o](u8 first, u8 last) { return o >= first && o <= last; };
  switch (d.map) {
  case 1:
    if (d.encoding == Encoding::evex && in(0x78, 0x7b)) return true;
    return in(0x51, 0x53) || in(0x58, 0x5f) || in(0x2c, 0x2f) || o == 0x2a || o == 0xc2 || o == 0xd0 ||
           in(0x7c, 0x7d) || o == 0xe6;
  case 2:
    if (d.encoding == Encoding::legacy) return false;
    return o == 0x13 || in(0x2c, 0x2d) || in(0x42, 0x43) || in(0x4c, 0x4f) || in(0x96, 0x9f) ||
           in(0xa6, 0xaf) || in(0xb6, 0xbf) || in(0xc8, 0xcd);
  case 3:
    if (in(0x08, 0x0b) || in(0x40, 0x41)) return true;
    return d.encoding != Encoding::legacy &&
           (o == 0x1d || in(0x26, 0x27) || in(0x50, 0x51) || in(0x54, 0x57) || in(0x66, 0x67) || o == 0xc2);
  default: return true; // FP16's maps
  }
}

// EVEX forms of exception classes E4NF, E5NF, E6NF and E9NF (SDM vol. 2, tables 2-46 to 2-58): an element's
// place in memory is not its place in the result, so nothing of the operand can be left unread.
bool reads_memory_whole(const Decoded& d) {
  const u8 o = d.opcode;
  const auto in = [o](u8 first, u8 last) { return o >= first && o <= last; };
  switch (d.map) {
  case 1:
    return o == 0x12 || o == 0x14 || o == 0x15 || o == 0x16 || in(0x60, 0x63) || in(0x67, 0x6d) ||
           o == 0x70 || o == 0x71 || o == 0xc6 || in(0xd1, 0xd3) || o == 0xe1 || o == 0xe2 ||
           in(0xf1, 0xf3) || o == 0xf5 || o == 0xf6;
  case 2:
    return o == 0x00 || o == 0x04 || in(0x0c, 0x0d) || o == 0x16 || o == 0x2b || o == 0x36 ||
           (o == 0x72 && mandatory_prefix(d) == 3) || in(0x75, 0x77) || in(0x7d, 0x7f) || o == 0x83 ||
           o == 0x8d || o == 0x8f || o == 0xc4;
  case 3:
    return in(0x00, 0x01) || in(0x03, 0x05) || o == 0x0f || o == 0x18 || o == 0x1a || o == 0x38 ||
           o == 0x3a || o == 0x23 || o == 0x42 || o == 0x43 || o == 0xce || o == 0xcf;
  default: return false;
  }
}

// Broadcasts of more than one element: VBROADCASTF32X2 and on.
bool broadcasts_tuple(const Decoded& d) {
  return d.map == 2 &&
         (d.opcode == 0x19 || d.opcode == 0x1a || d.opcode == 0x1b ||
          (d.opcode >= 0x58 && d.opcode <= 0x5b) || d.opcode == 0x18 || d.opcode == 0x78 || d.opcode == 0x79);
}

u16 alignment_of(const Decoded& d) {
  if (!d.has_memory) return 0;
  const unsigned pp = mandatory_prefix(d);
  if (d.encoding == Encoding::legacy) {
    if (d.memory_bits != 128) return 0;
    if (d.map == 1 && (d.opcode == 0x10 || d.opcode == 0x11 || d.opcode == 0xf0)) return 0;
    if (d.map == 1 && (d.opcode == 0x6f || d.opcode == 0x7f) && pp == 2) return 0;
    if (string_compare(d)) return 0;
    return 15;
  }
  const bool aligned =
      (d.map == 1 && (d.opcode == 0x28 || d.opcode == 0x29 || d.opcode == 0x2b)) ||
      (d.map == 1 && (d.opcode == 0x6f || d.opcode == 0x7f || d.opcode == 0xe7) && pp == 1) ||
      (d.map == 2 && d.opcode == 0x2a && pp == 1);
  return aligned ? static_cast<u16>(d.memory_bits / 8 - 1) : u16{0};
}

VectorNeeds needs_of(const Decoded& d) {
  if (d.encoding == Encoding::evex || has_kind(d, Kind::mask)) return vector_needs::evex;
  if (d.encoding == Encoding::vex) return vector_needs::vex;
  if (!has_kind(d, Kind::mmx)) return vector_needs::sse;
  return has_kind(d, Kind::xmm) ? vector_needs::sse_mmx : vector_needs::mmx;
}

unsigned bits_of(Kind k) { return k == Kind::xmm ? 128 : k == Kind::ymm ? 256 : 512; }

// VP2INTERSECT writes a pair of opmask registers of which the encoding names one.
bool writes_mask_pair(const Decoded& d) {
  return d.encoding == Encoding::evex && d.map == 2 && d.opcode == 0x68;
}

void emit_stub(const Decoded& h, const HostForm& form, bool floating, host::Emitter& e) {
  const bool legacy = h.encoding == Encoding::legacy;
  const bool wide_masks = host::has_avx512bw();
  bool mmx = false;
  bool vector = false;
  for (unsigned i = 0; i < h.operands; ++i) {
    const Operand& o = h.operand[i];
    if (is_vector(o.kind)) {
      vector = true;
      // Destinations too: what an instruction leaves of them must be there before. A register that is named
      // with several widths is loaded once, with the widest.
      bool loaded = false;
      unsigned bits = bits_of(o.kind);
      for (unsigned j = 0; j < h.operands; ++j) {
        const Operand& other = h.operand[j];
        if (!is_vector(other.kind) || other.reg != o.reg) continue;
        loaded |= j < i;
        bits = std::max(bits, bits_of(other.kind));
      }
      if (loaded) continue;
      if (legacy) {
        e.load_xmm(o.reg);
      } else {
        e.load_vector(o.reg, bits);
      }
    } else if (o.kind == Kind::mask) {
      e.load_mask(o.reg, wide_masks);
    } else if (o.kind == Kind::mmx) {
      e.load_mmx(o.reg);
      mmx = true;
    }
  }
  if (floating) e.load_mxcsr(host::mxcsr_offset);
  if (string_compare(h)) {
    e.load_gpr(rax, rax * 8);
    e.load_gpr(rdx, rdx * 8);
  } else if (form.gpr != HostForm::no_gpr) {
    e.load_gpr(rax, form.gpr * 8U);
  }

  e.bytes(std::span(form.bytes.data(), form.size));

  if (string_compare(h) && (h.opcode & 1) != 0) {
    e.bytes({0x89, 0xc9}); // mov ecx, ecx
    e.store_gpr(rcx, rcx * 8);
  }
  if (form.gpr_written) e.store_gpr(rax, form.gpr * 8U);
  if (writes_flags(h)) {
    e.bytes({0x9f, 0x0f, 0x90, 0xc0, 0x66, 0x89}); // lahf; seto al; mov [rdi + flags], ax
    e.at_rdi(0, host::flags_offset);
  }
  for (unsigned i = 0; i < h.operands; ++i) {
    const Operand& o = h.operand[i];
    if (!o.written) continue;
    if (is_vector(o.kind)) {
      if (legacy) {
        e.store_xmm(o.reg);
      } else {
        // VEX and EVEX zero the destination up to the widest register there is (SDM vol. 1, 14.1.1).
        e.store_vector(o.reg, host::has_avx512() ? 512 : 256);
      }
    } else if (o.kind == Kind::mask) {
      e.store_mask(writes_mask_pair(h) ? o.reg & 6U : o.reg, wide_masks);
      if (writes_mask_pair(h)) e.store_mask(o.reg | 1U, wide_masks);
    } else if (o.kind == Kind::mmx) {
      e.store_mmx(o.reg);
    }
  }
  if (floating) {
    e.store_mxcsr(host::mxcsr_offset);
    // The guest's settings may stay on the host when they are the default: nobody reads the flags.
    e.byte(0x8b); // mov eax, [rdi + mxcsr]
    e.at_rdi(0, host::mxcsr_offset);
    e.bytes({0x25, 0xc0, 0xff, 0xff, 0xff, 0x3d}); // and eax, ~flags; cmp eax, default
    e.u32_(host::default_mxcsr);
    e.bytes({0x74, 7, 0x0f, 0xae, 0x15}); // je over; ldmxcsr [rip + ...]
    const unsigned at = e.size();
    e.u32_(0);
    if (mmx) e.bytes({0x0f, 0x77});
    if (vector && !legacy) e.bytes({0xc5, 0xf8, 0x77});
    e.bytes({0x31, 0xc0, 0xc3}); // xor eax, eax; ret
    e.patch(at, e.size() - at - 4);
    e.u32_(host::default_mxcsr);
  } else {
    if (mmx) e.bytes({0x0f, 0x77});
    if (vector && !legacy) e.bytes({0xc5, 0xf8, 0x77});
    e.bytes({0x31, 0xc0, 0xc3});
  }
}

void describe_memory(const Decoded& h, VectorPlan& p) {
  if (!h.has_memory) return;
  p.memory_bytes = h.memory_bits / 8;
  p.align_mask = alignment_of(h);
  if (h.encoding != Encoding::evex || h.evex_mask == 0) return;
  const Operand* memory = nullptr;
  unsigned other_elements = 0; // of the widest register operand that the mask may govern
  for (unsigned i = 0; i < h.visible_operands; ++i) {
    const Operand& o = h.operand[i];
    if (o.kind == Kind::mem) memory = &o;
    if (i == 0 && is_vector(o.kind) && o.element_bits != 0) other_elements = bits_of(o.kind) / o.element_bits;
  }
  if (memory == nullptr || memory->element_bits < 8 || memory->element_bits > 64) return;
  const unsigned n = std::max(1U, h.memory_bits / unsigned{memory->element_bits});
  p.mask = h.evex_mask;
  p.element_bytes = static_cast<u8>(std::min<unsigned>(memory->element_bits, h.memory_bits) / 8);
  p.elements = static_cast<u8>(n);
  p.mask_bits = static_cast<u8>(n);
  if (h.evex_b || (broadcasts_tuple(h) && other_elements > n)) {
    // For {1toN} the mask covers the vector, not memory.
    p.replicates = true;
    unsigned bits = other_elements;
    if (h.evex_b) {
      // A widening conversion has fewer elements than its source would have in a whole register.
      bits = h.vector_bits / std::max<unsigned>(8, memory->element_bits);
      if (other_elements != 0) bits = std::min(bits, other_elements);
    }
    p.mask_bits = static_cast<u8>(bits);
  }
  // VEXTRACTF32X4 and its like are of class E6NF.
  const bool extract =
      h.map == 3 && (h.opcode == 0x19 || h.opcode == 0x1b || h.opcode == 0x39 || h.opcode == 0x3b);
  p.suppresses = h.memory_written ? !extract : !reads_memory_whole(h);
}

struct FormHash {
  std::size_t operator()(const HostForm& f) const {
    u64 h = load_raw<u64>(f.bytes.data()) * 0x9e3779b97f4a7c15;
    h ^= load_raw<u64>(f.bytes.data() + 7) + f.gpr * u64{0x10001};
    return (h ^ h >> 29) * 0xbf58476d1ce4e5b9;
  }
};

class PlanCache {
 public:
  PlanStatus find(const Decoded& d, const VectorPlan*& out) {
    HostForm form;
    if (!to_host_form(d, form)) return PlanStatus::absent;
    {
      const std::shared_lock guard(lock_);
      const auto it = plans_.find(form);
      if (it != plans_.end()) {
        out = it->second.get();
        return out != nullptr ? PlanStatus::ok : PlanStatus::absent;
      }
    }
    const std::unique_lock guard(lock_);
    if (const auto it = plans_.find(form); it != plans_.end()) {
      out = it->second.get();
      return out != nullptr ? PlanStatus::ok : PlanStatus::absent;
    }
    auto plan = std::make_unique<VectorPlan>();
    const PlanStatus status = make(form, *plan);
    if (status == PlanStatus::no_memory) return status;
    if (status == PlanStatus::absent) plan.reset();
    out = plan.get();
    plans_.emplace(form, std::move(plan));
    return status;
  }

 private:
  PlanStatus make(const HostForm& form, VectorPlan& plan) {
    Decoded h;
    if (decode(form.bytes.data(), form.size, 64, h) != DecodeStatus::ok) return PlanStatus::absent;
    plan.needs = needs_of(h);
    const bool state = plan.needs.xcr0_set == 0                           ? true
                       : plan.needs.xcr0_set == vector_needs::xcr0_avx512 ? host::has_avx512()
                                                                          : host::has_avx();
    if (!state || !host_has(h.feature) || !host_has(h.feature2)) return PlanStatus::absent;
    plan.floating = uses_mxcsr(h);
    describe_memory(h, plan);
    host::Emitter e;
    emit_stub(h, form, plan.floating, e);
    const void* code = host::publish_code(e.span());
    if (code == nullptr) return PlanStatus::no_memory;
    plan.run = reinterpret_cast<HostStub>(const_cast<void*>(code));
    return PlanStatus::ok;
  }

  // CPUID is slow under a hypervisor.
  bool host_has(Feature f) {
    const u64 key = u64{f.leaf} << 24 | u64{f.subleaf} << 16 | static_cast<u64>(f.reg) << 8 | f.bit;
    const auto it = features_.find(key);
    if (it != features_.end()) return it->second;
    return features_[key] = host::has_feature(f);
  }

  std::shared_mutex lock_;
  std::unordered_map<HostForm, std::unique_ptr<VectorPlan>, FormHash>
      plans_; // null: the host has no such instruction
  std::unordered_map<u64, bool> features_;
};

PlanCache& plan_cache() {
  static PlanCache c;
  return c;
}

// Which field of the instruction holds the general register, when it has one.
bool gpr_in_reg_field(const Decoded& d) {
  if (d.map != 1) return false;
  switch (d.opcode) {
  case 0x50:              // MOVMSKPS
  case 0xd7:              // PMOVMSKB
  case 0xc5:              // PEXTRW
  case 0x2c:              // CVTTSS2SI
  case 0x2d:              // CVTSS2SI
  case 0x93: return true; // KMOV r, k
  case 0x78:
  case 0x79: return d.encoding == Encoding::evex; // VCVTTSS2USI
  default: return false;
  }
}

const Operand* explicit_gpr(const Decoded& d) {
  if (string_compare(d)) return nullptr;
  for (unsigned i = 0; i < d.visible_operands; ++i) {
    if (d.operand[i].kind == Kind::gpr) return &d.operand[i];
  }
  return nullptr;
}

// Is `b` the same instruction as `a`, up to addressing and the general register?
bool same_instruction(const Decoded& a, const Decoded& b) {
  if (a.mnemonic != b.mnemonic || a.op != b.op || a.encoding != b.encoding || a.operands != b.operands ||
      a.has_memory != b.has_memory || a.memory_bits != b.memory_bits || a.vector_bits != b.vector_bits ||
      a.evex_b != b.evex_b || a.evex_z != b.evex_z || a.evex_mask != b.evex_mask || b.vsib) {
    return false;
  }
  if (b.has_memory && (b.base != rsi || b.index != reg_zero || b.displacement != 0)) return false;
  for (unsigned i = 0; i < a.operands; ++i) {
    const Operand& x = a.operand[i];
    const Operand& y = b.operand[i];
    if (x.kind != y.kind || (x.bits != y.bits && x.kind != Kind::other && !x.hidden)) return false;
    if (x.kind == Kind::gpr && !x.hidden) {
      if (y.reg != 0) return false;
    } else if (x.kind != Kind::mem && x.kind != Kind::other && x.reg != y.reg) {
      return false;
    }
    if (x.kind == Kind::imm && x.value != y.value) return false;
  }
  return true;
}

bool rewrite(const Decoded& d, bool clear_w, HostForm& out) {
  if (d.modrm_offset == 0) return false;
  const bool narrow = d.code_bits != 64;
  const Operand* gpr = explicit_gpr(d);
  const bool gpr_reg = gpr != nullptr && gpr_in_reg_field(d);
  const bool gpr_rm = gpr != nullptr && !gpr_reg;
  out = HostForm{};
  const auto put = [&out](unsigned b) {
    if (out.size < out.bytes.size()) out.bytes[out.size++] = static_cast<u8>(b);
  };

  unsigned at = 0; // the opcode, after the prefixes
  if (d.encoding == Encoding::legacy) {
    while (at < d.modrm_offset && (legacy_prefix(d.bytes[at]) || (!narrow && (d.bytes[at] & 0xf0) == 0x40))) {
      const u8 b = d.bytes[at];
      if (b == 0x66 || b == 0xf2 || b == 0xf3) put(b);
      ++at;
    }
    if (d.rex_offset != 0xff) {
      unsigned rex = d.bytes[d.rex_offset];
      if (d.has_memory) rex &= ~3U;
      if (gpr_rm) rex &= ~1U;
      if (gpr_reg) rex &= ~4U;
      if (clear_w) rex &= ~8U;
      if (rex != 0x40) put(rex);
    }
  } else if (d.encoding == Encoding::vex) {
    at = d.vex_offset;
    if (d.bytes[at] == 0xc5) {
      unsigned p = d.bytes[at + 1];
      if (gpr_reg) p |= 0x80;
      put(0xc5);
      put(p);
      at += 2;
    } else {
      unsigned p0 = d.bytes[at + 1];
      unsigned p1 = d.bytes[at + 2];
      if (narrow) {
        p0 |= 0xe0;
        p1 |= 0x40;
      }
      if (d.has_memory) p0 |= 0x60;
      if (gpr_rm) p0 |= 0x60;
      if (gpr_reg) p0 |= 0x80;
      if (clear_w) p1 &= ~0x80U;
      put(0xc4);
      put(p0);
      put(p1);
      at += 3;
    }
  } else {
    at = d.evex_offset;
    unsigned p0 = d.bytes[at + 1];
    unsigned p1 = d.bytes[at + 2];
    unsigned p2 = d.bytes[at + 3];
    if (narrow) {
      p0 |= 0xf0;
      p1 |= 0x40;
      p2 |= 8;
    }
    if (d.has_memory || gpr_rm) p0 |= 0x60;
    if (gpr_reg) p0 |= 0x90;
    if (clear_w) p1 &= ~0x80U;
    put(0x62);
    put(p0);
    put(p1);
    put(p2);
    at += 4;
  }
  while (at < d.modrm_offset) put(d.bytes[at++]);

  unsigned modrm = d.modrm;
  if (d.has_memory) modrm = (modrm & 0x38) | 6;
  if (gpr_rm && !d.has_memory) modrm &= ~7U;
  if (gpr_reg) modrm &= ~0x38U;
  put(modrm);
  unsigned tail = d.modrm_offset + 1U;
  if (d.has_memory) tail += (d.sib_offset != 0 ? 1U : 0U) + d.disp_size / 8U;
  const bool register_in_imm =
      d.encoding == Encoding::vex && d.map == 3 && d.opcode >= 0x4a && d.opcode <= 0x4c;
  for (; tail < d.length; ++tail) put(narrow && register_in_imm ? d.bytes[tail] & 0x7f : d.bytes[tail]);

  if (gpr != nullptr) {
    out.gpr = static_cast<u8>(gpr->reg / 8);
    out.gpr_written = gpr->written;
  }
  Decoded check;
  return decode(out.bytes.data(), out.size, 64, check) == DecodeStatus::ok && check.length == out.size &&
         same_instruction(d, check);
}

} // namespace

bool has_prefix(const Decoded& d, u8 prefix) {
  for (unsigned i = 0; i < d.length && (legacy_prefix(d.bytes[i]) || i == d.rex_offset); ++i) {
    if (d.bytes[i] == prefix) return true;
  }
  return false;
}

unsigned mandatory_prefix(const Decoded& d) {
  if (d.encoding == Encoding::evex) return d.bytes[d.evex_offset + 2U] & 3;
  if (d.encoding == Encoding::vex)
    return d.bytes[d.vex_offset + (d.bytes[d.vex_offset] == 0xc5 ? 1U : 2U)] & 3;
  if (d.repne) return 3;
  if (d.rep) return 2;
  return d.operand_size_prefix ? 1 : 0;
}

bool vector_writes_flags(const Decoded& d) { return writes_flags(d); }

VectorGpr vector_gpr(const Decoded& d) {
  const Operand* const gpr = explicit_gpr(d);
  if (gpr == nullptr) return {};
  const bool in_reg = gpr_in_reg_field(d);
  return {in_reg, !in_reg, static_cast<u8>(gpr->reg / 8)};
}

bool to_host_form(const Decoded& d, HostForm& out) {
  if (rewrite(d, false, out)) return true;
  // Outside 64-bit mode W does not widen general registers.
  return d.code_bits != 64 && rewrite(d, true, out);
}

PlanStatus find_plan(const Decoded& d, const VectorPlan*& out) { return plan_cache().find(d, out); }

Step refuse_vector(Cpu& cpu, const VectorNeeds& n) {
  const CpuState& s = cpu.state;
  if (((s.cr0 & n.cr0_clear & cr0::em) | (~s.cr0 & n.cr0_set) | (~s.cr4 & n.cr4_set) |
       (~s.xcr0 & n.xcr0_set) | (s.system_flags & n.flags_clear)) != 0) {
    return cpu.ud();
  }
  if ((s.cr0 & n.cr0_clear & cr0::ts) != 0) return cpu.raise(Vector::nm);
  return cpu.raise(Vector::mf);
}

} // namespace ring3::x86
