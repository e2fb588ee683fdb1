// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/msr_table.h"

#include "x86/api/vm_settings.h"
#include "x86/cpu/control_registers.h"
#include "x86/cpu/machine_check.h"

#include <algorithm>
#include <array>

namespace ring3::x86 {

namespace {

using Read = bool (*)(Cpu&, u32 index, u64& value);
using Write = bool (*)(Cpu&, u32 index, u64 value, bool host);

struct Entry {
  u32 first;
  u32 last;
  Feature feature;
  Read read;
  Write write; // null: read-only
};

constexpr unsigned variable_mtrrs = 8;

// A register that is a field of CpuState and takes any value.
template <u64 CpuState::*Field> bool read_field(Cpu& c, u32, u64& v) {
  v = c.state.*Field;
  return true;
}
template <u64 CpuState::*Field> bool write_field(Cpu& c, u32, u64 v, bool) {
  c.state.*Field = v;
  return true;
}
template <u64 CpuState::*Field> bool write_canonical(Cpu& c, u32, u64 v, bool) {
  if (!c.canonical_base(v)) return false;
  c.state.*Field = v;
  return true;
}
template <u64 CpuState::*Field, u64 Allowed> bool write_masked(Cpu& c, u32, u64 v, bool) {
  if ((v & ~Allowed) != 0) return false;
  c.state.*Field = v;
  return true;
}
template <u64 Value> bool read_constant(Cpu&, u32, u64& v) {
  v = Value;
  return true;
}
bool write_zero_only(Cpu&, u32, u64 v, bool) { return v == 0; }
bool write_ignored(Cpu&, u32, u64, bool) { return true; }
// A command register: bit 0 starts the operation; there is nothing to predict or flush here.
bool write_command(Cpu&, u32, u64 v, bool) { return (v & ~u64{1}) == 0; }

// --- time ---

bool read_tsc(Cpu& c, u32, u64& v) {
  v = c.guest_tsc();
  return true;
}
bool write_tsc(Cpu& c, u32, u64 v, bool host) {
  if (host) {
    c.state.tsc_offset = c.platform.tsc_offset_for(v);
  } else {
    // A guest's write shows in TSC_ADJUST (SDM vol. 3, 17.17.3).
    const u64 delta = v - c.guest_tsc();
    c.state.tsc_offset += delta;
    c.state.tsc_adjust += delta;
  }
  c.platform.tsc_changed();
  return true;
}
bool write_tsc_adjust(Cpu& c, u32, u64 v, bool host) {
  if (!host) {
    c.state.tsc_offset += v - c.state.tsc_adjust;
    c.platform.tsc_changed();
  }
  c.state.tsc_adjust = v;
  return true;
}
bool write_tsc_aux(Cpu& c, u32, u64 v, bool) {
  if ((v >> 32) != 0) return false;
  c.state.tsc_aux = v;
  return true;
}
// Bits 15:8 of PLATFORM_INFO: the maximum non-turbo ratio, in units of 100 MHz. A VMM may say something else.
bool read_platform_info(Cpu& c, u32, u64& v) {
  v = c.state.platform_info.value_or((c.platform.tsc_khz() / 100000) << 8);
  return true;
}
bool write_platform_info(Cpu& c, u32, u64 v, bool host) {
  if (host) c.state.platform_info = v;
  return host;
}
// The guest's way to ask for the revision is to write 0 first.
bool write_ucode_rev(Cpu& c, u32, u64 v, bool host) {
  if (host) c.state.ucode_rev = v;
  return true;
}
// What a VMM decides and a guest only reads.
template <u64 CpuState::*Field> bool write_by_host(Cpu& c, u32, u64 v, bool host) {
  if (host) c.state.*Field = v;
  return host;
}

// --- the APIC's own ---

bool read_apic(Cpu& c, u32 index, u64& v) { return c.platform.read_apic_msr(index, v); }
bool write_apic(Cpu& c, u32 index, u64 v, bool host) { return c.platform.write_apic_msr(index, v, host); }

// --- KVM's own ---

bool read_pv(Cpu& c, u32 index, u64& v) { return c.platform.read_pv_msr(index, v); }
bool write_pv(Cpu& c, u32 index, u64 v, bool) { return c.platform.write_pv_msr(index, v); }

// --- segmentation and system calls ---

bool read_base(Cpu& c, u32 index, u64& v) {
  v = c.state.segment(index == msr::fs_base ? Seg::fs : Seg::gs).base;
  return true;
}
bool write_base(Cpu& c, u32 index, u64 v, bool) {
  if (!c.canonical_base(v)) return false;
  const Seg s = index == msr::fs_base ? Seg::fs : Seg::gs;
  c.state.segment(s).base = v;
  c.load_segment_cache(s);
  return true;
}
bool write_efer_msr(Cpu& c, u32, u64 v, bool) {
  if (write_efer(c, v)) return true;
  c.fault_pending = false;
  return false;
}

// --- speculation control ---

constexpr u64 spec_ctrl_bits = 7; // IBRS, STIBP, SSBD

// --- memory types ---

bool valid_memory_type(u64 t) { return t == 0 || t == 1 || t == 4 || t == 5 || t == 6; }

bool write_pat(Cpu& c, u32, u64 v, bool) {
  for (unsigned i = 0; i < 8; ++i) {
    const u64 t = (v >> (8 * i)) & 0xff;
    if (!valid_memory_type(t) && t != 7) return false;
  }
  c.state.pat = v;
  return true;
}
bool write_mtrr_def_type(Cpu& c, u32, u64 v, bool) {
  if ((v & ~u64{0xcff}) != 0 || !valid_memory_type(v & 0xff)) return false;
  c.state.mtrr_def_type = v;
  return true;
}
unsigned fixed_index(u32 index) {
  if (index == msr::mtrr_fix64k) return 0;
  if (index == msr::mtrr_fix16k_80000 || index == msr::mtrr_fix16k_a0000)
    return index - msr::mtrr_fix16k_80000 + 1;
  return index - msr::mtrr_fix4k_c0000 + 3;
}
bool read_mtrr_fixed(Cpu& c, u32 index, u64& v) {
  v = c.state.mtrr_fixed[fixed_index(index)];
  return true;
}
bool write_mtrr_fixed(Cpu& c, u32 index, u64 v, bool) {
  for (unsigned i = 0; i < 8; ++i) {
    if (!valid_memory_type((v >> (8 * i)) & 0xff)) return false;
  }
  c.state.mtrr_fixed[fixed_index(index)] = v;
  return true;
}
bool read_mtrr_variable(Cpu& c, u32 index, u64& v) {
  v = c.state.mtrr_variable[index - msr::mtrr_phys_base0];
  return true;
}
bool write_mtrr_variable(Cpu& c, u32 index, u64 v, bool) {
  const bool mask = (index & 1) != 0;
  const u64 reserved = c.mmu.phys_reserved() | (mask ? low_mask(11) : low_mask(12) & ~u64{0xff});
  if ((v & reserved) != 0 || (!mask && !valid_memory_type(v & 0xff))) return false;
  c.state.mtrr_variable[index - msr::mtrr_phys_base0] = v;
  return true;
}

// --- machine check ---

bool read_mc(Cpu& c, u32 index, u64& v) { return read_machine_check(c, index, v, false); }
bool write_mc(Cpu& c, u32 index, u64 v, bool host) { return write_machine_check(c, index, v, host); }

// --- extended state ---

bool write_xss(Cpu& c, u32, u64 v, bool) {
  if ((v & ~c.cpuid.xss_allowed()) != 0) return false;
  c.state.xss = v;
  return true;
}
bool read_pkrs(Cpu& c, u32, u64& v) {
  v = c.state.pkrs;
  return true;
}
bool write_pkrs(Cpu& c, u32, u64 v, bool) {
  if ((v >> 32) != 0) return false;
  c.state.pkrs = static_cast<u32>(v);
  c.mmu.flush_all();
  return true;
}

// The architectural switches are kept; branch trace and PEBS are reported as unavailable, read-only.
constexpr u64 misc_enable_read_only = bit(7) | bit(11) | bit(12);
constexpr u64 misc_enable_writable =
    bit(0) | bit(3) | bit(16) | misc_enable_mwait | bit(22) | bit(23) | bit(34);
bool write_misc_enable(Cpu& c, u32, u64 v, bool host) {
  // A VMM may say anything, and reads it back.
  if (!host && (v & ~(misc_enable_writable | misc_enable_read_only)) != 0) return false;
  const bool toggles = ((v ^ c.state.misc_enable) & misc_enable_mwait) != 0;
  if (toggles && !c.platform.settings().has_quirk(KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT)) {
    // KVM's condition: a processor without SSE3 has no such bit.
    if (!c.cpuid.has(feature::sse3)) return false;
    c.cpuid.set_feature(feature::monitor, (v & misc_enable_mwait) != 0);
  }
  if (!host) v = (v & misc_enable_writable) | (c.state.misc_enable & misc_enable_read_only);
  c.state.misc_enable = v;
  return true;
}

// Extended configuration space through port 0xcf8 (bit 46) may be switched on: there are no devices in it to
// reach.
bool write_nb_cfg(Cpu&, u32, u64 v, bool) { return (v & ~bit(46)) == 0; }

bool write_hwcr(Cpu& c, u32, u64 v, bool) {
  v &= ~(bit(3) | bit(6) | bit(8)); // FFDIS, SMMLOCK's neighbours: ignored as KVM does
  if ((v & ~(bit(24) | bit(18))) != 0) return false;
  c.state.hwcr = v;
  return true;
}

constexpr Entry table[] = {
    // clang-format off
    {msr::p5_mc_addr, msr::p5_mc_type, feature::always, read_mc, write_mc},
    {msr::tsc, msr::tsc, feature::tsc, read_tsc, write_tsc},
    {msr::kvm_wall_clock_old, msr::kvm_system_time_old, feature::always, read_pv, write_pv},
    {msr::platform_id, msr::platform_id, feature::always, read_constant<0>, nullptr},
    {msr::apic_base, msr::apic_base, feature::always, read_apic, write_apic},
    {msr::smi_count, msr::smi_count, feature::always, read_field<&CpuState::smi_count>,
     write_by_host<&CpuState::smi_count>},
    {msr::tsc_adjust, msr::tsc_adjust, feature::tsc_adjust, read_field<&CpuState::tsc_adjust>, write_tsc_adjust},
    {msr::spec_ctrl, msr::spec_ctrl, feature::spec_ctrl, read_field<&CpuState::spec_ctrl>,
     write_masked<&CpuState::spec_ctrl, spec_ctrl_bits>},
    {msr::pred_cmd, msr::pred_cmd, feature::spec_ctrl, nullptr, write_command},
    {msr::ucode_rev, msr::ucode_rev, feature::always, read_field<&CpuState::ucode_rev>, write_ucode_rev},
    {msr::smbase, msr::smbase, feature::always, read_field<&CpuState::smbase>, write_field<&CpuState::smbase>},
    {msr::platform_info, msr::platform_info, feature::always, read_platform_info, write_platform_info},
    {msr::mtrr_cap, msr::mtrr_cap, feature::mtrr, read_constant<0x500 | variable_mtrrs>, nullptr},
    {msr::arch_capabilities, msr::arch_capabilities, feature::arch_capabilities, read_field<&CpuState::arch_capabilities>,
     write_by_host<&CpuState::arch_capabilities>},
    {msr::misc_features, msr::misc_features, feature::always, read_constant<0>, write_zero_only},
    {msr::sysenter_cs, msr::sysenter_cs, feature::sep, read_field<&CpuState::sysenter_cs>, write_field<&CpuState::sysenter_cs>},
    {msr::sysenter_esp, msr::sysenter_esp, feature::sep, read_field<&CpuState::sysenter_esp>, write_canonical<&CpuState::sysenter_esp>},
    {msr::sysenter_eip, msr::sysenter_eip, feature::sep, read_field<&CpuState::sysenter_eip>, write_canonical<&CpuState::sysenter_eip>},
    {msr::mcg_cap, msr::mcg_cap, feature::always, read_mc, nullptr},
    {msr::mcg_status, msr::mcg_ctl, feature::always, read_mc, write_mc},
    {msr::misc_enable, msr::misc_enable, feature::always, read_field<&CpuState::misc_enable>, write_misc_enable},
    {msr::debugctl, msr::debugctl, feature::always, read_field<&CpuState::debugctl>, write_zero_only},
    {msr::power_ctl, msr::power_ctl, feature::always, read_field<&CpuState::power_ctl>, write_field<&CpuState::power_ctl>},
    {msr::mtrr_phys_base0, msr::mtrr_phys_base0 + 2 * variable_mtrrs - 1, feature::mtrr, read_mtrr_variable, write_mtrr_variable},
    {msr::mtrr_fix64k, msr::mtrr_fix64k, feature::mtrr, read_mtrr_fixed, write_mtrr_fixed},
    {msr::mtrr_fix16k_80000, msr::mtrr_fix16k_a0000, feature::mtrr, read_mtrr_fixed, write_mtrr_fixed},
    {msr::mtrr_fix4k_c0000, msr::mtrr_fix4k_c0000 + 7, feature::mtrr, read_mtrr_fixed, write_mtrr_fixed},
    {msr::pat, msr::pat, feature::pat, read_field<&CpuState::pat>, write_pat},
    {msr::mtrr_def_type, msr::mtrr_def_type, feature::mtrr, read_field<&CpuState::mtrr_def_type>, write_mtrr_def_type},
    {msr::mc0_ctl2, msr::mc0_ctl2 + max_mc_banks - 1, feature::always, read_mc, write_mc},
    {msr::mc0_ctl, msr::mc0_ctl + 4 * max_mc_banks - 1, feature::always, read_mc, write_mc},
    // KVM does not look at CPUID here; its selftest debug_regs depends on it.
    {msr::tsc_deadline, msr::tsc_deadline, feature::always, read_apic, write_apic},
    {msr::pkrs, msr::pkrs, feature::pks, read_pkrs, write_pkrs},
    {msr::x2apic_first, msr::x2apic_last, feature::x2apic, read_apic, write_apic},
    {msr::xss, msr::xss, feature::xsaves, read_field<&CpuState::xss>, write_xss},
    {msr::kvm_first, msr::kvm_last, feature::always, read_pv, write_pv},
    {msr::efer, msr::efer, feature::always, read_field<&CpuState::efer>, write_efer_msr},
    {msr::star, msr::star, feature::syscall, read_field<&CpuState::star>, write_field<&CpuState::star>},
    {msr::lstar, msr::lstar, feature::lm, read_field<&CpuState::lstar>, write_canonical<&CpuState::lstar>},
    {msr::cstar, msr::cstar, feature::lm, read_field<&CpuState::cstar>, write_canonical<&CpuState::cstar>},
    {msr::sfmask, msr::sfmask, feature::lm, read_field<&CpuState::sfmask>, write_masked<&CpuState::sfmask, low_mask(32)>},
    {msr::fs_base, msr::gs_base, feature::lm, read_base, write_base},
    {msr::kernel_gs_base, msr::kernel_gs_base, feature::lm, read_field<&CpuState::kernel_gs_base>, write_canonical<&CpuState::kernel_gs_base>},
    {msr::tsc_aux, msr::tsc_aux, feature::rdtscp, read_field<&CpuState::tsc_aux>, write_tsc_aux},
    // The four counters every AMD processor has, which cannot be switched on here.
    {msr::k7_evntsel0, msr::k7_evntsel0 + 7, feature::always, read_constant<0>, write_zero_only},
    {msr::syscfg, msr::syscfg, feature::always, read_constant<0>, write_zero_only},
    {msr::nb_cfg, msr::nb_cfg, feature::always, read_constant<0>, write_nb_cfg},
    {msr::hwcr, msr::hwcr, feature::always, read_field<&CpuState::hwcr>, write_hwcr},
    {msr::de_cfg, msr::de_cfg, feature::always, read_constant<bit(1)>, write_ignored}, // LFENCE is serialising
    // clang-format on
};

const Entry* find(const Cpu& c, u32 index, bool host) {
  for (const Entry& e : table) {
    if (index < e.first || index > e.last) continue;
    const bool amd_only = index >= 0xc0010000;
    if (!host && amd_only && !c.cpuid.amd()) return nullptr;
    const bool intel_only = index == msr::misc_features || index == msr::platform_id;
    if (!host && intel_only && c.cpuid.amd()) return nullptr;
    if (!host && index == msr::platform_info && !c.platform.settings().platform_info_readable.load())
      return nullptr;
    if (!host && index == msr::smbase) return nullptr; // it moves in the state save area
    if (!host && e.read == read_pv && !c.platform.has_pv_msr(index)) return nullptr;
    if (!host && !c.cpuid.has(e.feature) && !(index == msr::tsc_aux && c.cpuid.has(feature::rdpid)))
      return nullptr;
    return &e;
  }
  return nullptr;
}

} // namespace

bool read_msr(Cpu& cpu, u32 index, u64& value, bool host) {
  const Entry* e = find(cpu, index, host);
  if (e == nullptr || e->read == nullptr) return false;
  // What a bank lacks, a VMM may still read.
  if (e->read == read_mc) return read_machine_check(cpu, index, value, host);
  return e->read(cpu, index, value);
}

bool write_msr(Cpu& cpu, u32 index, u64 value, bool host) {
  const Entry* e = find(cpu, index, host);
  return e != nullptr && e->write != nullptr && e->write(cpu, index, value, host);
}

bool msr_exists(u32 index) {
  return std::ranges::any_of(table, [index](const Entry& e) { return index >= e.first && index <= e.last; });
}

std::span<const u32> msr_indices() {
  static const std::vector<u32> all = [] {
    std::vector<u32> v;
    for (const Entry& e : table) {
      if (e.first == msr::x2apic_first) continue;                    // reached through KVM_GET_LAPIC
      if (e.read == nullptr || e.write == nullptr) continue;         // commands and constants are no state
      if (e.read == read_mc && e.first != msr::mcg_status) continue; // MCG_CAP says how many banks there are
      for (u32 i = e.first; i <= e.last; ++i) v.push_back(i);
    }
    return v;
  }();
  return all;
}

std::span<const u32> feature_msr_indices() {
  static constexpr u32 all[] = {msr::ucode_rev, msr::arch_capabilities, msr::de_cfg};
  return all;
}

bool feature_msr(u32 index, u64& value) {
  switch (index) {
  case msr::ucode_rev: value = CpuState{}.ucode_rev; return true;
  case msr::arch_capabilities: value = CpuState{}.arch_capabilities; return true;
  case msr::de_cfg: value = bit(1); return true;
  default: return false;
  }
}

} // namespace ring3::x86
