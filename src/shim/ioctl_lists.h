// SPDX-License-Identifier: Apache-2.0
// Arguments of ioctls that are a count and as many entries: how they are read, checked and written back.
#pragma once

#include "base/types.h"

#include <linux/kvm.h>
#include <span>
#include <vector>

namespace ring3::shim {

// struct kvm_cpuid2. put: -E2BIG if the caller has room for fewer, and the count is corrected.
long put_cpuid_list(u64 argument, std::span<const kvm_cpuid_entry2> entries);
// -E2BIG for more than KVM takes.
int get_cpuid_list(u64 argument, std::vector<kvm_cpuid_entry2>& out);

// struct kvm_msr_list.
long put_index_list(u64 argument, std::span<const u32> indices);

// struct kvm_msrs. put writes the entries back and returns `done`.
int get_msr_list(u64 argument, std::vector<kvm_msr_entry>& out);
long put_msr_list(u64 argument, std::span<const kvm_msr_entry> entries, long done);

// struct kvm_irq_routing.
int get_routing_list(u64 argument, std::vector<kvm_irq_routing_entry>& out);

} // namespace ring3::shim
