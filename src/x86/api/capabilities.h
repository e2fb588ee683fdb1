// SPDX-License-Identifier: Apache-2.0
// What /dev/kvm itself answers: capabilities, and the CPUID that guests may have (api.rst 4.4, 4.46).
#pragma once

#include "x86/cpu/cpuid_model.h"

#include <linux/kvm.h>
#include <span>
#include <vector>

namespace ring3::x86 {

class Vm;

// KVM_CHECK_EXTENSION: 0 for what is not built. `vm` is null when /dev/kvm is asked.
int check_extension(u32 capability, const Vm* vm);

// KVM_GET_SUPPORTED_CPUID: all that the model has, with KVM's own leaves.
std::vector<kvm_cpuid_entry2> supported_cpuid(const CpuModelSelection& model);

// KVM_X86_XCOMP_GUEST_SUPP: what guests with this CPUID may set in XCR0.
u64 supported_xcr0(std::span<const kvm_cpuid_entry2> cpuid);

// KVM_X86_GET_MCE_CAP_SUPPORTED, for the vendor that this CPUID names.
u64 supported_mcg_cap(std::span<const kvm_cpuid_entry2> cpuid);

} // namespace ring3::x86
