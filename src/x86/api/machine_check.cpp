// SPDX-License-Identifier: Apache-2.0
// Machine checks as a VMM sets them up and reports them (api.rst 4.104 to 4.106).
#include "x86/cpu/machine_check.h"

#include "x86/api/capabilities.h"
#include "x86/api/vcpu.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ring3::x86 {

u64 supported_mcg_cap(std::span<const kvm_cpuid_entry2> cpuid) {
  CpuidTable table;
  table.set(cpuid);
  return mcg::ctl_p | mcg::ser_p | (table.amd() ? 0 : mcg::cmci_p);
}

int Vcpu::setup_mce(u64 cap) {
  constexpr u64 extended_count = u64{0xff} << 16;
  const u64 known = supported_mcg_cap(cpu_.cpuid.entries()) | 0xff | extended_count;
  const unsigned banks = mcg::banks(cap);
  if (banks == 0 || banks > max_mc_banks || (cap & ~known) != 0) return -EINVAL;
  CpuState& s = cpu_.state;
  s.mcg_cap = cap;
  if ((cap & mcg::ctl_p) != 0) s.mcg_ctl = ~u64{0};
  for (unsigned bank = 0; bank < banks; ++bank) {
    s.mc_banks[4 * bank] = ~u64{0};
    if ((cap & mcg::cmci_p) != 0) s.mc_ctl2[bank] = 0;
  }
  machine_check_changed();
  return 0;
}

// CMCI brings an LVT entry; and KVM leaves AMD's processors only the number of banks and MCG_CTL.
void Vcpu::machine_check_changed() {
  if (cpu_.cpuid.amd()) cpu_.state.mcg_cap &= 0x1ff;
  if (lapic_ != nullptr) lapic_->set_features(lapic_features());
}

int Vcpu::set_mce(const kvm_x86_mce& in) {
  CpuState& s = cpu_.state;
  if (in.bank >= mcg::banks(s.mcg_cap) || (in.status & mci::val) == 0) return -EINVAL;
  u64* const bank = &s.mc_banks[4 * in.bank]; // CTL, STATUS, ADDR, MISC
  const auto record = [&](u64 status) {
    bank[1] = status;
    bank[2] = in.addr;
    bank[3] = in.misc;
  };
  const bool uncorrected = (in.status & mci::uc) != 0;
  // "Uncorrected, no action required" is a matter for the CMCI.
  if (uncorrected && in.mcg_status == 0 && (in.status & (mci::pcc | mci::s | mci::ar)) == 0) {
    record(in.status);
    s.mcg_status = 0;
    const bool signalled = (s.mcg_cap & mcg::cmci_p) != 0 && (s.mc_ctl2[in.bank] & mci::cmci_enable) != 0;
    if (signalled && lapic_ != nullptr) lapic_->corrected_machine_check();
    return 0;
  }
  const u64 overflow = (bank[1] & mci::val) != 0 ? mci::over : 0;
  if (!uncorrected) {
    if (overflow == 0 || (bank[1] & mci::uc) == 0) {
      record(in.status | overflow);
    } else {
      bank[1] |= mci::over; // the graver one stays
    }
    return 0;
  }
  // Reporting may be off, for all or for this bank.
  if ((s.mcg_cap & mcg::ctl_p) != 0 && s.mcg_ctl != ~u64{0}) return 0;
  if (bank[0] != ~u64{0}) return 0;
  if ((s.mcg_status & mcg::mcip) != 0 || (s.cr4 & cr4::mce) == 0) {
    triple_fault_pending_ = true;
    return 0;
  }
  record(in.status | overflow);
  s.mcg_status = in.mcg_status;
  queued_ = QueuedEvent{EventType::exception, static_cast<u8>(Vector::mc), std::nullopt, true};
  event_pending();
  return 0;
}

} // namespace ring3::x86
