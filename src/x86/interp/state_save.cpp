// SPDX-License-Identifier: Apache-2.0
// FXSAVE, XSAVE and their family, LDMXCSR and STMXCSR (SDM vol. 1, 10.5 and chapter 13). Nothing runs on the
// host.
#include "x86/cpu/xsave_layout.h"
#include "x86/interp/bind.h"
#include "x86/interp/vector_plan.h"

#include <cstring>

namespace ring3::x86 {

namespace {

using namespace xsave;

constexpr u32 mxcsr_at = 24, xmm_at = 160, bv_at = 512;
constexpr u64 sse_avx = bit(component::sse) | bit(component::avx);
constexpr u32 fx_image_size = 416; // what follows is for software

// Pieces of an area that a save writes. All are checked before the first is written.
class Pieces {
 public:
  Pieces(Cpu& cpu, Seg seg, u64 offset, u64 mask) : cpu_(cpu), seg_(seg), offset_(offset), mask_(mask) {}
  void add(u32 at, u32 size, const void* data) { piece_[count_++] = {at, size, data}; }
  bool write() {
    for (unsigned i = 0; i < count_; ++i) {
      if (!cpu_.probe_write(seg_, (offset_ + piece_[i].at) & mask_, piece_[i].size)) return false;
    }
    for (unsigned i = 0; i < count_; ++i) {
      if (!cpu_.write_bytes(seg_, (offset_ + piece_[i].at) & mask_, piece_[i].data, piece_[i].size))
        return false;
    }
    return true;
  }

 private:
  struct Piece {
    u32 at, size;
    const void* data;
  };
  Cpu& cpu_;
  Seg seg_;
  u64 offset_, mask_;
  std::array<Piece, 16> piece_{};
  unsigned count_ = 0;
};

// Outside 64-bit mode registers 8 and up are neither saved nor restored; what is left of a component then.
u32 visible_size(const Cpu& cpu, unsigned index, u32 size) {
  if (cpu.code64()) return size;
  switch (index) {
  case component::sse:
  case component::avx:
  case component::zmm_hi256: return size / 2;
  case component::hi16_zmm: return 0;
  default: return size;
  }
}

// Puts back the registers that the mode hides.
class HiddenRegisters {
 public:
  explicit HiddenRegisters(Cpu& cpu) : cpu_(cpu), hidden_(!cpu.code64()) {
    if (hidden_) std::memcpy(saved_, cpu.state.vector.zmm[8], sizeof saved_);
  }
  ~HiddenRegisters() {
    if (hidden_) std::memcpy(cpu_.state.vector.zmm[8], saved_, sizeof saved_);
  }
  HiddenRegisters(const HiddenRegisters&) = delete;
  HiddenRegisters& operator=(const HiddenRegisters&) = delete;

 private:
  Cpu& cpu_;
  bool hidden_;
  u8 saved_[24][64];
};

// Without REX.W the image has 32-bit instruction and data pointers with selectors, which are 0 here.
void narrow_pointers(std::byte* image) {
  store_raw<u32>(image + 12, 0);
  store_raw<u32>(image + 20, 0);
}

bool aligned_operand(Cpu& cpu, const Insn& in, u64 align) {
  GuestVirt a;
  if (!cpu.linear(static_cast<Seg>(in.seg), cpu.effective_address(in), 1, false, a)) return false;
  if ((a.value & (align - 1)) == 0) return true;
  cpu.gp();
  return false;
}

// --- FXSAVE and FXRSTOR ---

bool fast_fx(const Cpu& cpu) {
  return (cpu.state.efer & efer::ffxsr) != 0 && cpu.state.cpl == 0 && cpu.code64();
}

bool fx_allowed(Cpu& cpu) {
  if ((cpu.state.cr0 & cr0::em) != 0) {
    cpu.ud();
    return false;
  }
  if ((cpu.state.cr0 & cr0::ts) != 0) {
    cpu.raise(Vector::nm);
    return false;
  }
  return true;
}

template <bool wide> Step run_fxsave(Cpu& cpu, const Insn& in) {
  if (!fx_allowed(cpu) || !aligned_operand(cpu, in, 16)) return Step::abort;
  std::byte image[fx_image_size] = {};
  store(cpu.state, component::x87, image);
  if (!wide) narrow_pointers(image);
  store_raw<u32>(image + mxcsr_at, cpu.state.x87.mxcsr);
  store_raw<u32>(image + mxcsr_at + 4, mxcsr_mask);
  u32 size = xmm_at;
  if (!fast_fx(cpu)) {
    store(cpu.state, component::sse, image);
    size += visible_size(cpu, component::sse, 256);
  }
  return cpu.write_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), image, size) ? Step::next
                                                                                           : Step::abort;
}

template <bool wide> Step run_fxrstor(Cpu& cpu, const Insn& in) {
  if (!fx_allowed(cpu) || !aligned_operand(cpu, in, 16)) return Step::abort;
  std::byte image[fx_image_size];
  if (!cpu.read_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), image, sizeof image))
    return Step::abort;
  const u32 mxcsr = load_raw<u32>(image + mxcsr_at);
  if ((mxcsr & ~mxcsr_mask) != 0) return cpu.gp();
  if (!wide) narrow_pointers(image);
  load(cpu.state, component::x87, image);
  cpu.state.x87.mxcsr = mxcsr;
  if (!fast_fx(cpu)) {
    const HiddenRegisters keep(cpu);
    load(cpu.state, component::sse, image);
  }
  return Step::next;
}

// --- XSAVE family ---

enum class Save { plain, opt, compact, supervisor };

bool xsave_allowed(Cpu& cpu, bool supervisor) {
  if ((cpu.state.cr4 & cr4::osxsave) == 0) {
    cpu.ud();
    return false;
  }
  if ((cpu.state.cr0 & cr0::ts) != 0) {
    cpu.raise(Vector::nm);
    return false;
  }
  if (supervisor && cpu.state.cpl != 0) {
    cpu.gp();
    return false;
  }
  return true;
}

u64 requested(const CpuState& s) { return (s.regs[rdx] & low_mask(32)) << 32 | (s.regs[rax] & low_mask(32)); }

template <Save kind, bool wide> Step run_xsave(Cpu& cpu, const Insn& in) {
  constexpr bool supervisor = kind == Save::supervisor;
  constexpr bool compact = supervisor || kind == Save::compact;
  if (!xsave_allowed(cpu, supervisor) || !aligned_operand(cpu, in, 64)) return Step::abort;
  const CpuState& s = cpu.state;
  const u64 enabled = (s.xcr0 & supported_xcr0) | (supervisor ? s.xss & supported_xss : 0);
  const u64 rfbm = enabled & requested(s);
  u64 used = in_use(s) & rfbm;
  if constexpr (compact) {
    if (s.x87.mxcsr != 0x1f80) used |= rfbm & bit(component::sse);
  }
  const u64 saved = kind == Save::plain ? rfbm : used;
  const Seg seg = static_cast<Seg>(in.seg);
  const u64 offset = cpu.effective_address(in);

  alignas(64) std::byte area[max_size];
  Pieces pieces(cpu, seg, offset, Cpu::address_mask(in.addrsize));
  if ((saved & bit(component::x87)) != 0) {
    store(s, component::x87, area);
    if (!wide) narrow_pointers(area);
    pieces.add(0, mxcsr_at, area);
    pieces.add(32, 128, area + 32);
  }
  if ((compact ? saved & bit(component::sse) : rfbm & sse_avx) != 0) {
    store_raw<u32>(area + mxcsr_at, s.x87.mxcsr);
    store_raw<u32>(area + mxcsr_at + 4, mxcsr_mask);
    pieces.add(mxcsr_at, 8, area + mxcsr_at);
  }
  if ((saved & bit(component::sse)) != 0) {
    store(s, component::sse, area);
    pieces.add(xmm_at, visible_size(cpu, component::sse, 256), area + xmm_at);
  }
  for (const Component& c : components) {
    if ((saved >> c.index & 1) == 0) continue;
    const u32 at = compact ? compacted_offset(rfbm, c.index) : c.offset;
    const u32 size = visible_size(cpu, c.index, c.size);
    store(s, c.index, area + at);
    if (size != 0) pieces.add(at, size, area + at);
  }
  u64 header[2] = {used, rfbm | compacted};
  if constexpr (compact) {
    pieces.add(bv_at, 16, header);
  } else {
    u64 old;
    if (!cpu.read_bytes(seg, (offset + bv_at) & Cpu::address_mask(in.addrsize), &old, sizeof old))
      return Step::abort;
    header[0] |= old & ~rfbm;
    pieces.add(bv_at, 8, header);
  }
  return pieces.write() ? Step::next : Step::abort;
}

template <bool supervisor, bool wide> Step run_xrstor(Cpu& cpu, const Insn& in) {
  if (!xsave_allowed(cpu, supervisor) || !aligned_operand(cpu, in, 64)) return Step::abort;
  CpuState& s = cpu.state;
  const u64 enabled = (s.xcr0 & supported_xcr0) | (supervisor ? s.xss & supported_xss : 0);
  const u64 rfbm = enabled & requested(s);
  const Seg seg = static_cast<Seg>(in.seg);
  const u64 offset = cpu.effective_address(in);
  const u64 mask = Cpu::address_mask(in.addrsize);

  alignas(64) std::byte area[max_size];
  const auto fetch = [&](u32 at, u32 size) {
    return cpu.read_bytes(seg, (offset + at) & mask, area + at, size);
  };
  if (!fetch(bv_at, header_size)) return Step::abort;
  u64 header[8];
  std::memcpy(header, area + bv_at, sizeof header);
  const u64 bv = header[0];
  const u64 comp = header[1];
  const bool compact = (comp & compacted) != 0;
  if (compact) {
    if ((!supervisor && !cpu.cpuid.has(feature::xsavec)) || (comp & ~(enabled | compacted)) != 0 ||
        (bv & ~(comp & ~compacted)) != 0) {
      return cpu.gp();
    }
    for (unsigned i = 2; i < 8; ++i) {
      if (header[i] != 0) return cpu.gp();
    }
  } else if (supervisor || comp != 0 || header[2] != 0 || (bv & ~enabled) != 0) {
    return cpu.gp();
  }

  const u64 present = rfbm & bv;
  const bool mxcsr_loaded = (compact ? present & bit(component::sse) : rfbm & sse_avx) != 0;
  u32 mxcsr = 0x1f80;
  if ((present & bit(component::x87)) != 0 && (!fetch(0, mxcsr_at) || !fetch(32, 128))) return Step::abort;
  if (mxcsr_loaded) {
    if (!fetch(mxcsr_at, 4)) return Step::abort;
    mxcsr = load_raw<u32>(area + mxcsr_at);
    if ((mxcsr & ~mxcsr_mask) != 0) return cpu.gp();
  }
  if ((present & bit(component::sse)) != 0 && !fetch(xmm_at, visible_size(cpu, component::sse, 256))) {
    return Step::abort;
  }
  std::array<u32, components.size()> at{};
  for (unsigned i = 0; i < components.size(); ++i) {
    const Component& c = components[i];
    at[i] = compact ? compacted_offset(comp, c.index) : c.offset;
    const u32 size = visible_size(cpu, c.index, c.size);
    if ((present >> c.index & 1) != 0 && size != 0 && !fetch(at[i], size)) return Step::abort;
  }

  const u32 old_pkru = s.pkru;
  {
    const HiddenRegisters keep(cpu);
    if (!wide) narrow_pointers(area);
    for (unsigned i = 0; i < 2; ++i) {
      if ((present >> i & 1) != 0) {
        load(s, i, area);
      } else if ((rfbm >> i & 1) != 0) {
        initialise(s, i);
      }
    }
    for (unsigned i = 0; i < components.size(); ++i) {
      const Component& c = components[i];
      if ((present >> c.index & 1) != 0) {
        // Parts that the mode hides were not read, and are put back.
        load(s, c.index, area + at[i]);
      } else if ((rfbm >> c.index & 1) != 0) {
        initialise(s, c.index);
      }
    }
  }
  if (mxcsr_loaded || (compact && (rfbm & bit(component::sse)) != 0)) s.x87.mxcsr = mxcsr;
  if (s.pkru != old_pkru) {
    cpu.mmu.flush_all();
    return Step::jump;
  }
  return Step::next;
}

// --- MXCSR alone ---

template <bool vex> Step run_ldmxcsr(Cpu& cpu, const Insn& in) {
  constexpr const VectorNeeds& needs = vex ? vector_needs::vex : vector_needs::sse;
  if (!vector_needs_met(cpu.state, needs)) return refuse_vector(cpu, needs);
  u32 v;
  if (!cpu.read_operand<u32>(in, v)) return Step::abort;
  if ((v & ~mxcsr_mask) != 0) return cpu.gp();
  cpu.state.x87.mxcsr = v;
  return Step::next;
}

template <bool vex> Step run_stmxcsr(Cpu& cpu, const Insn& in) {
  constexpr const VectorNeeds& needs = vex ? vector_needs::vex : vector_needs::sse;
  if (!vector_needs_met(cpu.state, needs)) return refuse_vector(cpu, needs);
  return cpu.write_operand<u32>(in, cpu.state.x87.mxcsr) ? Step::next : Step::abort;
}

} // namespace

Handler bind_state_save(const Decoded& d, Insn&, const CpuidTable&) {
  if (d.op < Op::fxsave || d.op > Op::vstmxcsr) return nullptr;
  if (d.lock) return handle_ud;
  switch (d.op) {
  case Op::fxsave: return run_fxsave<false>;
  case Op::fxsave64: return run_fxsave<true>;
  case Op::fxrstor: return run_fxrstor<false>;
  case Op::fxrstor64: return run_fxrstor<true>;
  case Op::xsave: return run_xsave<Save::plain, false>;
  case Op::xsave64: return run_xsave<Save::plain, true>;
  case Op::xsavec: return run_xsave<Save::compact, false>;
  case Op::xsavec64: return run_xsave<Save::compact, true>;
  case Op::xsaveopt: return run_xsave<Save::opt, false>;
  case Op::xsaveopt64: return run_xsave<Save::opt, true>;
  case Op::xsaves: return run_xsave<Save::supervisor, false>;
  case Op::xsaves64: return run_xsave<Save::supervisor, true>;
  case Op::xrstor: return run_xrstor<false, false>;
  case Op::xrstor64: return run_xrstor<false, true>;
  case Op::xrstors: return run_xrstor<true, false>;
  case Op::xrstors64: return run_xrstor<true, true>;
  case Op::ldmxcsr: return run_ldmxcsr<false>;
  case Op::vldmxcsr: return run_ldmxcsr<true>;
  case Op::stmxcsr: return run_stmxcsr<false>;
  case Op::vstmxcsr: return run_stmxcsr<true>;
  default: return nullptr;
  }
}

} // namespace ring3::x86
