// SPDX-License-Identifier: Apache-2.0
// Makes virtual machines with this project's own x86-64 CPU.
#pragma once

#include "base/error.h"
#include "kvm/api.h"
#include "x86/api/engine.h"

#include <memory>

namespace ring3::x86 {

// Its TSC counts as kvm::HostClock's does.
std::unique_ptr<kvm::VmApi> create_vm(Engine engine = default_engine);

// Has the host's processor what create_vm()'s guests need whatever their CPU model? Everything beyond it is
// left out of the models one by one (cpu/cpuid_features.h).
Result<void> check_host();

} // namespace ring3::x86
