// SPDX-License-Identifier: Apache-2.0
// CPU models as data: what a guest's CPUID says, chosen by name and adjusted feature by feature.
#pragma once

#include "base/error.h"
#include "base/types.h"

#include <linux/kvm.h>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ring3::x86 {

struct CpuModelSelection {
  std::string name;
  std::vector<std::string> features; // after the adjustments
};

// Parses "MODEL[,+feature,-feature...]". Unknown models and features, and features that are not built, are
// errors.
Result<CpuModelSelection> select_cpu_model(std::string_view spec);

// The CPUID entries that one vCPU of `vcpu_count` gets. `tsc_khz`: what its TSC counts in a millisecond.
std::vector<kvm_cpuid_entry2> cpuid_entries(const CpuModelSelection& selection, u32 vcpu_index,
                                            u32 vcpu_count, u64 tsc_khz = 1'000'000);

struct ModelInfo {
  std::string_view name, vendor, description;
};
std::span<const ModelInfo> cpu_models();

// The names of the features a model has by default; empty for an unknown one.
std::vector<std::string_view> model_features(std::string_view name);

} // namespace ring3::x86
