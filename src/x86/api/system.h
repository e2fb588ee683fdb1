// SPDX-License-Identifier: Apache-2.0
// Makes virtual machines with this project's own x86-64 CPU.
#pragma once

#include "kvm/api.h"

#include <memory>

namespace ring3::x86 {

std::unique_ptr<kvm::VmApi> create_vm();

} // namespace ring3::x86
