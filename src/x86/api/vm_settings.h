// SPDX-License-Identifier: Apache-2.0
// What a VMM has chosen for a whole VM (KVM_ENABLE_CAP and the like). Written by any thread, read by all
// vCPUs.
#pragma once

#include "base/types.h"
#include "kvm/published.h"
#include "x86/api/msr_filter.h"

#include <atomic>

namespace ring3::x86 {

struct VmSettings {
  // KVM_X86_QUIRK_* bits that are off: KVM_CAP_DISABLE_QUIRKS2 (api.rst 7.31). All are on at first.
  std::atomic<u64> disabled_quirks{0};
  // KVM_HC_* numbers, as bits, that become KVM_EXIT_HYPERCALL: KVM_CAP_EXIT_HYPERCALL (api.rst 8.34).
  std::atomic<u64> hypercall_exits{0};

  // May guests read MSR_PLATFORM_INFO: KVM_CAP_MSR_PLATFORM_INFO (api.rst 7.15).
  std::atomic<bool> platform_info_readable{true};
  // KVM_CAP_EXIT_ON_EMULATION_FAILURE (api.rst 7.27).
  std::atomic<bool> exit_on_emulation_failure{false};
  // KVM_X86_DISABLE_EXITS_* bits: KVM_CAP_X86_DISABLE_EXITS (api.rst 7.13).
  std::atomic<u64> disabled_exits{0};

  bool exits_disabled(u64 kind) const { return (disabled_exits.load(std::memory_order_relaxed) & kind) != 0; }

  // KVM_CAP_EXCEPTION_PAYLOAD (api.rst 7.17), KVM_CAP_X86_TRIPLE_FAULT_EVENT (7.27): KVM_GET/SET_VCPU_EVENTS
  // has more to say.
  std::atomic<bool> exception_payload{false};
  std::atomic<bool> triple_fault_event{false};
  // KVM_MSR_EXIT_REASON_* that become exits instead of #GP: KVM_CAP_X86_USER_SPACE_MSR (api.rst 7.21).
  std::atomic<u64> msr_exits{0};
  // Nothing before the first KVM_X86_SET_MSR_FILTER: all is allowed.
  kvm::Published<MsrFilter> msr_filter;

  bool msr_allowed(u32 index, bool write) const {
    if (msr_filter.empty()) return true;
    const auto filter = msr_filter.read();
    return filter.get() == nullptr || filter.get()->allows(index, write);
  }
  // kvm::VmApi::keep_memory_private()
  std::atomic<bool> memory_is_private{false};

  bool has_quirk(u64 quirk) const { return (disabled_quirks.load(std::memory_order_relaxed) & quirk) == 0; }
};

} // namespace ring3::x86
