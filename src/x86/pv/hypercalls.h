// SPDX-License-Identifier: Apache-2.0
// KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst). Results as KVM's: 0 or more, or a negated
// KVM_E* value.
#pragma once

#include "base/types.h"
#include "kvm/clock.h"
#include "x86/irqchip/vcpu_events.h"
#include "x86/mmu/mmu.h"
#include "x86/pv/pv_features.h"

#include <array>
#include <optional>

namespace ring3::x86 {

class IrqChip;

struct Hypercall {
  u64 number = 0;
  std::array<u64, 4> arguments{};
  bool long_mode = false; // 64-bit arguments; otherwise they have 32 bits
};

// Whom and what a hypercall may reach.
struct HypercallContext {
  IrqChip* irqchip = nullptr; // null without the in-kernel irqchip
  Mmu& mmu;
  const PvFeatures& features;
  const kvm::Clock& clock;
  const GuestTsc& tsc; // the caller's
  u64 exits = 0;       // VmSettings::hypercall_exits
  u32 caller = 0;      // the calling vCPU's APIC ID
};

// On the calling vCPU's thread. Nothing: user space has to answer it (KVM_EXIT_HYPERCALL).
std::optional<s64> kvm_hypercall(const HypercallContext& context, const Hypercall& call);

} // namespace ring3::x86
