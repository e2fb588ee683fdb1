// SPDX-License-Identifier: Apache-2.0
// KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst). Results as KVM's: 0 or more, or a negated
// KVM_E* value.
#pragma once

#include "base/types.h"

#include <array>

namespace ring3::x86 {

class IrqChip;

// `irqchip` may be null. Any vCPU's thread.
s64 kvm_hypercall(IrqChip* irqchip, u64 number, const std::array<u64, 4>& arguments);

} // namespace ring3::x86
