// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/smm.h"

#include "x86/cpu/control_registers.h"
#include "x86/decode/block_cache.h"

#include <array>
#include <cstring>
#include <linux/kvm.h>

namespace ring3::x86 {

namespace {

constexpr u64 area_at = 0xfe00; // from SMBASE
constexpr u64 handler_at = 0x8000;

class SaveArea {
 public:
  template <class T> void put(unsigned at, T v) { std::memcpy(&bytes_[at - area_at], &v, sizeof v); }
  template <class T> T get(unsigned at) const {
    T v;
    std::memcpy(&v, &bytes_[at - area_at], sizeof v);
    return v;
  }
  void* data() { return bytes_.data(); }
  static constexpr u64 size = 512;

 private:
  std::array<u8, size> bytes_{};
};

// Bits 23:8 of a descriptor's upper half, which both forms keep.
u32 attributes(const Segment& s) {
  return u32{s.g} << 23 | u32{s.db} << 22 | u32{s.l} << 21 | u32{s.avl} << 20 | u32{s.present} << 15 |
         u32{s.dpl} << 13 | u32{s.s} << 12 | u32{s.type} << 8;
}
Segment make_segment(u16 selector, u32 attr, u32 limit, u64 base) {
  Segment s;
  s.selector = selector;
  s.g = (attr & bit(23)) != 0;
  s.db = (attr & bit(22)) != 0;
  s.l = (attr & bit(21)) != 0;
  s.avl = (attr & bit(20)) != 0;
  s.present = (attr & bit(15)) != 0;
  s.dpl = static_cast<u8>(field(attr, 14, 13));
  s.s = (attr & bit(12)) != 0;
  s.type = static_cast<u8>(field(attr, 11, 8));
  s.limit = limit;
  s.base = base;
  return s;
}

u8 interrupt_shadow(const CpuState& s) {
  return static_cast<u8>((s.sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                         (s.mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0));
}

bool load_debug_registers(CpuState& s, u64 dr6, u64 dr7) {
  if ((dr6 >> 32) != 0 || (dr7 >> 32) != 0) return false;
  s.dr6 = (dr6 & 0xe00f) | dr6::fixed1;
  s.dr7 = (dr7 & 0xffff2bff) | 0x400;
  return true;
}

// The control registers, in the one order in which each is valid when it is loaded (SDM vol. 3, 9.8.5). The
// code segment is a 32-bit one meanwhile.
bool load_control_registers(Cpu& cpu, u64 cr0, u64 cr3, u64 cr4) {
  CpuState& s = cpu.state;
  const u64 pcid = (cr4 & cr4::pcide) != 0 ? cr3 & 0xfff : 0;
  cr3 &= ~pcid;
  if ((cr3 & cpu.mmu.phys_reserved()) != 0) return false;
  s.cr3 = cr3; // all 64 bits, though long mode is off
  if (!write_cr4(cpu, cr4 & ~cr4::pcide) || !write_cr0(cpu, cr0)) return false;
  if ((cr4 & cr4::pcide) == 0) return true;
  return write_cr4(cpu, cr4) && (pcid == 0 || write_cr3(cpu, cr3 | pcid));
}

// --- the 64-bit form (APM vol. 2, table 10-1) ---

struct Place64 {
  Seg seg;
  unsigned at;
};
constexpr Place64 system_segments64[] = {{Seg::tr, 0xfe90}, {Seg::ldtr, 0xfe70}};
constexpr Place64 segments64[] = {{Seg::es, 0xfe00}, {Seg::cs, 0xfe10}, {Seg::ss, 0xfe20},
                                  {Seg::ds, 0xfe30}, {Seg::fs, 0xfe40}, {Seg::gs, 0xfe50}};
namespace at64 {
constexpr unsigned gdtr = 0xfe60, idtr = 0xfe80, shadow = 0xfecb, efer = 0xfed0, revision = 0xfefc,
                   smbase = 0xff00, cr4 = 0xff48, cr3 = 0xff50, cr0 = 0xff58, dr7 = 0xff60, dr6 = 0xff68,
                   rflags = 0xff70, rip = 0xff78, gprs = 0xff80; // R15 first
} // namespace at64

void put_segment(SaveArea& area, const Segment& s, unsigned at) {
  area.put<u16>(at, s.selector);
  area.put<u16>(at + 2, static_cast<u16>(attributes(s) >> 8));
  area.put<u32>(at + 4, s.limit);
  area.put<u64>(at + 8, s.base);
}
Segment get_segment(const SaveArea& area, unsigned at) {
  return make_segment(area.get<u16>(at), u32{area.get<u16>(at + 2)} << 8, area.get<u32>(at + 4),
                      area.get<u64>(at + 8));
}

void save64(const CpuState& s, SaveArea& area) {
  for (const Place64& p : system_segments64) put_segment(area, s.segment(p.seg), p.at);
  for (const Place64& p : segments64) put_segment(area, s.segment(p.seg), p.at);
  area.put<u32>(at64::gdtr + 4, s.gdtr.limit);
  area.put<u64>(at64::gdtr + 8, s.gdtr.base);
  area.put<u32>(at64::idtr + 4, s.idtr.limit);
  area.put<u64>(at64::idtr + 8, s.idtr.base);
  area.put<u8>(at64::shadow, interrupt_shadow(s));
  area.put<u64>(at64::efer, s.efer);
  area.put<u32>(at64::revision, 0x00020064); // SMBASE can be moved
  area.put<u32>(at64::smbase, static_cast<u32>(s.smbase));
  area.put<u64>(at64::cr4, s.cr4);
  area.put<u64>(at64::cr3, s.cr3);
  area.put<u64>(at64::cr0, s.cr0);
  area.put<u64>(at64::dr7, s.dr7);
  area.put<u64>(at64::dr6, s.dr6);
  area.put<u64>(at64::rflags, s.rflags());
  area.put<u64>(at64::rip, s.rip());
  for (unsigned i = 0; i < 16; ++i) area.put<u64>(at64::gprs + 8 * (15 - i), s.regs[i]);
}

bool load64(Cpu& cpu, const SaveArea& area) {
  CpuState& s = cpu.state;
  for (unsigned i = 0; i < 16; ++i) s.regs[i] = area.get<u64>(at64::gprs + 8 * (15 - i));
  s.regs[reg_rip] = area.get<u64>(at64::rip);
  s.set_rflags(area.get<u64>(at64::rflags));
  if (!load_debug_registers(s, area.get<u64>(at64::dr6), area.get<u64>(at64::dr7))) return false;
  s.smbase = area.get<u32>(at64::smbase);
  if (!write_efer(cpu, area.get<u64>(at64::efer) & ~efer::lma)) return false;
  for (const Place64& p : system_segments64) s.segment(p.seg) = get_segment(area, p.at);
  s.idtr = {area.get<u64>(at64::idtr + 8), static_cast<u16>(area.get<u32>(at64::idtr + 4))};
  s.gdtr = {area.get<u64>(at64::gdtr + 8), static_cast<u16>(area.get<u32>(at64::gdtr + 4))};
  if (!load_control_registers(cpu, area.get<u64>(at64::cr0), area.get<u64>(at64::cr3),
                              area.get<u64>(at64::cr4)))
    return false;
  for (const Place64& p : segments64) s.segment(p.seg) = get_segment(area, p.at);
  return true;
}

// --- the 32-bit form, of the P6 ---

struct Place32 {
  Seg seg;
  unsigned at, selector_at;
};
constexpr Place32 segments32[] = {{Seg::tr, 0xff5c, 0xffc4}, {Seg::ldtr, 0xff78, 0xffc0},
                                  {Seg::es, 0xff84, 0xffa8}, {Seg::cs, 0xff90, 0xffac},
                                  {Seg::ss, 0xff9c, 0xffb0}, {Seg::ds, 0xff2c, 0xffb4},
                                  {Seg::fs, 0xff38, 0xffb8}, {Seg::gs, 0xff44, 0xffbc}};
namespace at32 {
constexpr unsigned smbase = 0xfef8, revision = 0xfefc, cr4 = 0xff14, shadow = 0xff1a, idtr = 0xff50,
                   gdtr = 0xff6c, dr7 = 0xffc8, dr6 = 0xffcc, gprs = 0xffd0, eip = 0xfff0, eflags = 0xfff4,
                   cr3 = 0xfff8, cr0 = 0xfffc; // EAX first
} // namespace at32

void save32(const CpuState& s, SaveArea& area) {
  const auto put = [&area](unsigned at, u64 v) { area.put<u32>(at, static_cast<u32>(v)); };
  for (const Place32& p : segments32) {
    const Segment& d = s.segment(p.seg);
    put(p.at, attributes(d));
    put(p.at + 4, d.limit);
    put(p.at + 8, d.base);
    put(p.selector_at, d.selector);
  }
  put(at32::gdtr + 4, s.gdtr.limit);
  put(at32::gdtr + 8, s.gdtr.base);
  put(at32::idtr + 4, s.idtr.limit);
  put(at32::idtr + 8, s.idtr.base);
  area.put<u8>(at32::shadow, interrupt_shadow(s));
  put(at32::revision, 0x00020000);
  put(at32::smbase, s.smbase);
  put(at32::cr4, s.cr4);
  put(at32::cr3, s.cr3);
  put(at32::cr0, s.cr0);
  put(at32::dr7, s.dr7);
  put(at32::dr6, s.dr6);
  put(at32::eflags, s.rflags());
  put(at32::eip, s.rip());
  for (unsigned i = 0; i < 8; ++i) put(at32::gprs + 4 * i, s.regs[i]);
}

bool load32(Cpu& cpu, const SaveArea& area) {
  CpuState& s = cpu.state;
  for (unsigned i = 0; i < 8; ++i) s.regs[i] = area.get<u32>(at32::gprs + 4 * i);
  s.regs[reg_rip] = area.get<u32>(at32::eip);
  s.set_rflags(area.get<u32>(at32::eflags));
  if (!load_debug_registers(s, area.get<u32>(at32::dr6), area.get<u32>(at32::dr7))) return false;
  s.gdtr = {area.get<u32>(at32::gdtr + 8), static_cast<u16>(area.get<u32>(at32::gdtr + 4))};
  s.idtr = {area.get<u32>(at32::idtr + 8), static_cast<u16>(area.get<u32>(at32::idtr + 4))};
  s.smbase = area.get<u32>(at32::smbase);
  if (!load_control_registers(cpu, area.get<u32>(at32::cr0), area.get<u32>(at32::cr3),
                              area.get<u32>(at32::cr4)))
    return false;
  for (const Place32& p : segments32) {
    s.segment(p.seg) = make_segment(static_cast<u16>(area.get<u32>(p.selector_at)), area.get<u32>(p.at),
                                    area.get<u32>(p.at + 4), area.get<u32>(p.at + 8));
  }
  return true;
}

} // namespace

void set_smm(Cpu& cpu, bool in_smm) {
  CpuState& s = cpu.state;
  if (s.in_smm == in_smm) return;
  s.in_smm = in_smm;
  s.smm_in_nmi = false;
  // Blocks are found by host address, but remember the guest's: the other space may show the same memory
  // elsewhere.
  cpu.mmu.reload_slots();
  cpu.forget_code();
  cpu.flags_changed();
}

bool enter_smm(Cpu& cpu) {
  CpuState& s = cpu.state;
  ++s.smi_count;
  SaveArea area;
  if (cpu.cpuid.has(feature::lm)) {
    save64(s, area);
  } else {
    save32(s, area);
  }
  set_smm(cpu, true);
  if (!cpu.mmu.write_phys(GuestPhys{s.smbase + area_at}, area.data(), SaveArea::size)) return false;

  s.smm_in_nmi = s.nmi_blocked;
  s.nmi_blocked = true;
  s.sti_shadow = s.mov_ss_shadow = false;
  s.set_rflags(rflags::fixed1);
  s.regs[reg_rip] = handler_at;
  s.cr0 &= ~(cr0::pe | cr0::em | cr0::ts | cr0::pg);
  s.cr4 = 0;
  s.efer = 0;
  s.idtr = {0, 0};
  s.dr7 = 0x400;
  s.cpl = 0;
  Segment data = make_segment(0, 0, 0xffffffff, 0);
  data.type = 3;
  data.s = data.present = data.g = true;
  for (const Seg seg : {Seg::ds, Seg::es, Seg::fs, Seg::gs, Seg::ss}) s.segment(seg) = data;
  Segment& cs = s.segment(Seg::cs);
  cs = data;
  cs.selector = static_cast<u16>(s.smbase >> 4);
  cs.base = s.smbase;
  cpu.mmu.select_context(0);
  cpu.mmu.flush_all();
  cpu.mode_changed();
  cpu.debug_registers_changed();
  return true;
}

bool leave_smm(Cpu& cpu) {
  CpuState& s = cpu.state;
  SaveArea area;
  if (!cpu.mmu.read_phys(GuestPhys{s.smbase + area_at}, area.data(), SaveArea::size)) return false;
  if (!s.smm_in_nmi) s.nmi_blocked = false;
  set_smm(cpu, false);

  // Real-address mode first, from where everything else can be reached.
  s.segment(Seg::cs) = make_segment(0, static_cast<u32>(bit(23) | bit(15) | bit(12) | 0xb00), 0, 0);
  s.cr0 &= ~(cr0::pg | cr0::pe);
  s.cr4 &= ~(cr4::pcide | cr4::pae);
  s.efer = 0;
  const bool wide = cpu.cpuid.has(feature::lm);
  const bool ok = wide ? load64(cpu, area) : load32(cpu, area);
  cpu.fault_pending = false; // a register that refused its value says so by a fault
  if (!ok) return false;

  const u8 shadow = wide ? area.get<u8>(at64::shadow) : area.get<u8>(at32::shadow);
  s.sti_shadow = (shadow & KVM_X86_SHADOW_INT_STI) != 0;
  s.mov_ss_shadow = (shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
  s.cpl = s.v8086() ? u8{3} : s.protected_mode() ? s.segment(Seg::ss).dpl : u8{0};
  cpu.mmu.flush_all();
  cpu.mode_changed();
  cpu.debug_registers_changed();
  return true;
}

} // namespace ring3::x86
