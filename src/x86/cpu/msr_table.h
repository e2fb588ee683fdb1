// SPDX-License-Identifier: Apache-2.0
// The model-specific registers, in one table: index, the CPUID feature that brings it, and how it is read and
// written. What is not in the table does not exist: #GP for the guest (SDM vol. 4; APM vol. 2, appendix A).
#pragma once

#include "x86/cpu/cpu.h"

#include <span>

namespace ring3::x86 {

namespace msr {
constexpr u32 p5_mc_addr = 0, p5_mc_type = 1, tsc = 0x10, platform_id = 0x17, apic_base = 0x1b,
              smi_count = 0x34, tsc_adjust = 0x3b, spec_ctrl = 0x48, pred_cmd = 0x49, ucode_rev = 0x8b,
              smbase = 0x9e, platform_info = 0xce, mtrr_cap = 0xfe, arch_capabilities = 0x10a,
              flush_cmd = 0x10b, misc_features = 0x140, sysenter_cs = 0x174, sysenter_esp = 0x175,
              sysenter_eip = 0x176, mcg_cap = 0x179, mcg_status = 0x17a, mcg_ctl = 0x17b, misc_enable = 0x1a0,
              power_ctl = 0x1fc, debugctl = 0x1d9, mtrr_phys_base0 = 0x200, mtrr_fix64k = 0x250,
              mtrr_fix16k_80000 = 0x258, mtrr_fix16k_a0000 = 0x259, mtrr_fix4k_c0000 = 0x268, pat = 0x277,
              mtrr_def_type = 0x2ff, mc0_ctl2 = 0x280, mc0_ctl = 0x400, pkrs = 0x6e1, tsc_deadline = 0x6e0,
              x2apic_first = 0x800, x2apic_last = 0x8ff, xss = 0xda0, kvm_wall_clock_old = 0x11,
              kvm_system_time_old = 0x12, kvm_first = 0x4b564d00, kvm_last = 0x4b564d07, efer = 0xc0000080,
              star = 0xc0000081, lstar = 0xc0000082, cstar = 0xc0000083, sfmask = 0xc0000084,
              fs_base = 0xc0000100, gs_base = 0xc0000101, kernel_gs_base = 0xc0000102, tsc_aux = 0xc0000103,
              k7_evntsel0 = 0xc0010000, syscfg = 0xc0010010, hwcr = 0xc0010015, nb_cfg = 0xc001001f,
              de_cfg = 0xc0011029;
} // namespace msr

// IA32_MISC_ENABLE: MONITOR and MWAIT are enabled.
constexpr u64 misc_enable_mwait = bit(18);

// False: no such register for this guest, or the value is not one it takes. Nothing changed.
// `host` accesses come from KVM_GET_MSRS and KVM_SET_MSRS: no CPUID checks, read-only registers writable
// where KVM allows.
bool read_msr(Cpu& cpu, u32 index, u64& value, bool host = false);
bool write_msr(Cpu& cpu, u32 index, u64 value, bool host = false);

// Is it in the table at all, whatever this guest may have of it?
bool msr_exists(u32 index);

// Every index in the table, for KVM_GET_MSR_INDEX_LIST.
std::span<const u32> msr_indices();

// The registers that describe the processor and not its state (KVM_GET_MSR_FEATURE_INDEX_LIST), and what they
// hold; false: not one of them.
std::span<const u32> feature_msr_indices();
bool feature_msr(u32 index, u64& value);

} // namespace ring3::x86
