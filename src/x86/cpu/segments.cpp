// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/segments.h"

namespace ring3::x86 {

Segment Descriptor::segment(u16 selector) const {
  Segment s;
  s.selector = selector;
  s.type = type();
  s.s = this->s();
  s.dpl = dpl();
  s.present = present();
  s.avl = (raw & bit(52)) != 0;
  s.l = l();
  s.db = db();
  s.g = (raw & bit(55)) != 0;
  s.limit = static_cast<u32>(field(raw, 15, 0) | (field(raw, 51, 48) << 16));
  if (s.g) s.limit = (s.limit << 12) | 0xfff;
  s.base = field(raw, 39, 16) | (field(raw, 63, 56) << 24) | (field(high, 31, 0) << 32);
  return s;
}

bool read_descriptor(Cpu& cpu, u16 selector, Descriptor& out, Vector v, u32 ext, bool wide) {
  const CpuState& s = cpu.state;
  u64 base;
  u64 limit;
  if ((selector & 4) != 0) {
    const Segment& ldt = s.segment(Seg::ldtr);
    if (!ldt.usable()) {
      cpu.raise(v, selector_error(selector, ext));
      return false;
    }
    base = ldt.base;
    limit = ldt.limit;
  } else {
    base = s.gdtr.base;
    limit = s.gdtr.limit;
  }
  const u64 offset = selector & 0xfff8u;
  if (offset + (wide ? 15 : 7) > limit) {
    cpu.raise(v, selector_error(selector, ext));
    return false;
  }
  out.at = GuestVirt{base + offset};
  if (!cpu.state.long_mode()) out.at.value &= low_mask(32);
  out.high = 0;
  if (!cpu.load_system<u64>(out.at, out.raw)) return false;
  return !wide || cpu.load_system<u64>(out.at + 8, out.high);
}

bool mark_accessed(Cpu& cpu, Descriptor& d) {
  if ((d.raw & bit(40)) != 0) return true;
  d.raw |= bit(40);
  return cpu.store_system<u8>(d.at + 5, static_cast<u8>(d.raw >> 40));
}

bool set_tss_busy(Cpu& cpu, const Descriptor& d, bool busy) {
  const u64 raw = with_bits(d.raw, bit(41), busy);
  return cpu.store_system<u8>(d.at + 5, static_cast<u8>(raw >> 40));
}

void load_real_segment(Cpu& cpu, Seg s, u16 selector) {
  Segment& d = cpu.state.segment(s);
  d.selector = selector;
  d.base = u64{selector} << 4;
  if (cpu.state.v8086()) {
    d.limit = 0xffff;
    d.type = 3;
    d.s = true;
    d.dpl = 3;
    d.present = true;
    d.db = d.g = d.l = false;
  } else {
    // Real mode keeps the hidden limit and attributes ("unreal" mode relies on it), except that the segment
    // is usable.
    d.present = true;
    d.s = true;
    if (s != Seg::cs && (d.type & 8) != 0) d.type = 3;
  }
  cpu.load_segment_cache(s);
  if (s == Seg::ss || s == Seg::cs) cpu.mode_changed();
}

bool load_data_segment(Cpu& cpu, Seg s, u16 selector, Vector v) {
  CpuState& st = cpu.state;
  if (st.real_or_v86()) {
    load_real_segment(cpu, s, selector);
    return true;
  }
  if (null_selector(selector)) {
    if (s == Seg::ss) {
      // Allowed only in 64-bit code outside ring 3, with RPL equal to CPL.
      if (!cpu.code64() || st.cpl == 3 || rpl(selector) != st.cpl) {
        cpu.raise(v, 0);
        return false;
      }
      set_null_stack_segment(cpu, st.cpl);
      st.segment(Seg::ss).selector = selector;
      return true;
    }
    // The base is cleared too, as Intel does (and AMD since NullSelectorClearsBase).
    Segment& d = st.segment(s);
    d = Segment{};
    d.selector = selector;
    cpu.load_segment_cache(s);
    return true;
  }
  Descriptor d;
  if (!read_descriptor(cpu, selector, d, v)) return false;
  const u32 error = selector_error(selector);
  if (s == Seg::ss) {
    const bool writable_data = d.s() && !d.code() && (d.type() & 2) != 0;
    if (rpl(selector) != st.cpl || !writable_data || d.dpl() != st.cpl) {
      cpu.raise(v, error);
      return false;
    }
    if (!d.present()) {
      cpu.raise(Vector::ss, error);
      return false;
    }
  } else {
    const bool readable = d.s() && (!d.code() || (d.type() & 2) != 0);
    if (!readable) {
      cpu.raise(v, error);
      return false;
    }
    const bool conforming_code = d.code() && d.conforming();
    if (!conforming_code && (rpl(selector) > d.dpl() || st.cpl > d.dpl())) {
      cpu.raise(v, error);
      return false;
    }
    if (!d.present()) {
      cpu.raise(Vector::np, error);
      return false;
    }
  }
  if (!mark_accessed(cpu, d)) return false;
  st.segment(s) = d.segment(selector);
  if (s == Seg::ss) {
    cpu.mode_changed();
  } else {
    cpu.load_segment_cache(s);
  }
  return true;
}

void set_code_segment(Cpu& cpu, u16 selector, const Descriptor& d, u8 cpl) {
  cpu.state.segment(Seg::cs) = d.segment(static_cast<u16>((selector & ~3u) | cpl));
  cpu.state.cpl = cpl;
  cpu.mode_changed();
}

void set_stack_segment(Cpu& cpu, u16 selector, const Descriptor& d) {
  cpu.state.segment(Seg::ss) = d.segment(selector);
  cpu.mode_changed();
}

void set_null_stack_segment(Cpu& cpu, u8 cpl) {
  Segment& ss = cpu.state.segment(Seg::ss);
  ss = Segment{};
  ss.selector = cpl;
  ss.dpl = cpl;
  cpu.mode_changed();
}

void null_inaccessible_segments(Cpu& cpu) {
  for (const Seg s : {Seg::es, Seg::ds, Seg::fs, Seg::gs}) {
    Segment& d = cpu.state.segment(s);
    if (!d.usable()) continue;
    const bool conforming_code = d.code() && d.conforming();
    if (!conforming_code && d.dpl < cpu.state.cpl) {
      // The base of FS and GS survives, as on hardware: 64-bit code goes on using it.
      const u64 base = d.base;
      d = Segment{};
      d.base = base;
      cpu.load_segment_cache(s);
    }
  }
}

bool read_tss_stack(Cpu& cpu, u8 ring, u16& ss, u64& sp, u32 ext) {
  const Segment& tr = cpu.state.segment(Seg::tr);
  const u32 error = selector_error(tr.selector, ext);
  if (cpu.state.long_mode()) {
    const u64 offset = 4 + u64{ring} * 8;
    if (offset + 7 > tr.limit) {
      cpu.raise(Vector::ts, error);
      return false;
    }
    ss = 0;
    return cpu.load_system<u64>(GuestVirt{tr.base + offset}, sp);
  }
  const bool wide = (tr.type & 8) != 0;
  const u64 offset = wide ? 4 + u64{ring} * 8 : 2 + u64{ring} * 4;
  if (offset + (wide ? 5 : 3) > tr.limit) {
    cpu.raise(Vector::ts, error);
    return false;
  }
  const GuestVirt at{(tr.base + offset) & low_mask(32)};
  if (wide) {
    u32 esp;
    if (!cpu.load_system<u32>(at, esp) || !cpu.load_system<u16>(at + 4, ss)) return false;
    sp = esp;
  } else {
    u16 sp16;
    if (!cpu.load_system<u16>(at, sp16) || !cpu.load_system<u16>(at + 2, ss)) return false;
    sp = sp16;
  }
  return true;
}

bool read_tss_ist(Cpu& cpu, unsigned ist, u64& sp, u32 ext) {
  const Segment& tr = cpu.state.segment(Seg::tr);
  const u64 offset = 28 + u64{ist} * 8; // IST1 lies at 36
  if (offset + 7 > tr.limit) {
    cpu.raise(Vector::ts, selector_error(tr.selector, ext));
    return false;
  }
  return cpu.load_system<u64>(GuestVirt{tr.base + offset}, sp);
}

} // namespace ring3::x86
