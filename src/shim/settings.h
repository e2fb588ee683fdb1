// SPDX-License-Identifier: Apache-2.0
// What `ring3 exec` tells this library, by environment variables.
#pragma once

#include "x86/api/engine.h"
#include "x86/cpu/cpuid_model.h"

#include <vector>

namespace ring3::shim {

struct Settings {
  x86::CpuModelSelection cpu;
  std::vector<kvm_cpuid_entry2> supported_cpuid;
  x86::Engine engine = x86::default_engine;
};

// RING3_CPU (a model as `ring3 features` lists them, with adjustments) and RING3_ENGINE (find_engine()). Read
// once.
const Settings& settings();

} // namespace ring3::shim
