// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/machine_check.h"

#include "x86/cpu/msr_table.h"

namespace ring3::x86 {

namespace {

// The register's place in its array; null: the CPU has fewer banks.
u64* bank_register(CpuState& s, u32 index) {
  const unsigned banks = mcg::banks(s.mcg_cap);
  const u32 ctl2 = index - msr::mc0_ctl2;
  if (ctl2 < max_mc_banks) return ctl2 < banks ? &s.mc_ctl2[ctl2] : nullptr;
  const u32 offset = index - msr::mc0_ctl;
  return offset < 4 * banks ? &s.mc_banks[offset] : nullptr;
}

bool valid_bank_value(const Cpu& c, u32 index, u64 v, bool host) {
  const CpuState& s = c.state;
  if (index < msr::mc0_ctl) {
    if ((s.mcg_cap & mcg::cmci_p) == 0 && (v != 0 || !host)) return false;
    return (v & ~(mci::cmci_enable | mci::cmci_threshold)) == 0;
  }
  switch ((index - msr::mc0_ctl) & 3) {
  case 0:
    // MCi_CTL takes all ones or all zeros; but Linux clears bit 10 of bank 4 on the K8, and UnixWare bit 0.
    return v == 0 || (v | bit(10) | 1) == ~u64{0};
  case 1: {
    // MCi_STATUS takes zero, on AMD anything while HWCR.McStatusWrEn is set.
    const bool write_enabled = c.cpuid.amd() && (s.hwcr & bit(18)) != 0;
    return v == 0 || host || write_enabled;
  }
  default: return true;
  }
}

} // namespace

bool read_machine_check(Cpu& cpu, u32 index, u64& value, bool host) {
  CpuState& s = cpu.state;
  switch (index) {
  case msr::p5_mc_addr:
  case msr::p5_mc_type: value = 0; return true;
  case msr::mcg_cap: value = s.mcg_cap; return true;
  case msr::mcg_status: value = s.mcg_status; return true;
  case msr::mcg_ctl:
    if ((s.mcg_cap & mcg::ctl_p) == 0 && !host) return false;
    value = s.mcg_ctl;
    return true;
  default: break;
  }
  const u64* r = bank_register(s, index);
  if (r == nullptr || (index < msr::mc0_ctl && (s.mcg_cap & mcg::cmci_p) == 0 && !host)) return false;
  value = *r;
  return true;
}

bool write_machine_check(Cpu& cpu, u32 index, u64 value, bool host) {
  CpuState& s = cpu.state;
  switch (index) {
  case msr::p5_mc_addr:
  case msr::p5_mc_type: return true;
  case msr::mcg_status: s.mcg_status = value; return true;
  case msr::mcg_ctl:
    if ((s.mcg_cap & mcg::ctl_p) == 0 && (value != 0 || !host)) return false;
    if (value != 0 && value != ~u64{0}) return false;
    s.mcg_ctl = value;
    return true;
  default: break;
  }
  u64* r = bank_register(s, index);
  if (r == nullptr || !valid_bank_value(cpu, index, value, host)) return false;
  *r = value;
  return true;
}

} // namespace ring3::x86
