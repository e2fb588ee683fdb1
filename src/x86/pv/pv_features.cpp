// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/pv_features.h"

#include "kvm/run_delay.h"

#include <asm/kvm_para.h>
#include <cstring>

namespace ring3::x86 {
namespace {

constexpr char signature[] = KVM_SIGNATURE;
constexpr u32 last_base = 0x40010000; // as far as guests search
constexpr u32 base_step = 0x100;

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> entries, u32 function) {
  for (const kvm_cpuid_entry2& e : entries) {
    if (e.function == function) return &e;
  }
  return nullptr;
}

bool has_signature(const kvm_cpuid_entry2& e) {
  return std::memcmp(&e.ebx, signature, 4) == 0 && std::memcmp(&e.ecx, signature + 4, 4) == 0 &&
         std::memcmp(&e.edx, signature + 8, 4) == 0;
}

} // namespace

std::vector<kvm_cpuid_entry2> kvm_cpuid_leaves() {
  kvm_cpuid_entry2 name{};
  name.function = KVM_CPUID_SIGNATURE;
  name.eax = KVM_CPUID_FEATURES;
  std::memcpy(&name.ebx, signature, 4);
  std::memcpy(&name.ecx, signature + 4, 4);
  std::memcpy(&name.edx, signature + 8, 4);

  kvm_cpuid_entry2 features{};
  features.function = KVM_CPUID_FEATURES;
  for (const unsigned f :
       {KVM_FEATURE_CLOCKSOURCE, KVM_FEATURE_NOP_IO_DELAY, KVM_FEATURE_CLOCKSOURCE2, KVM_FEATURE_ASYNC_PF,
        KVM_FEATURE_ASYNC_PF_INT, KVM_FEATURE_PV_EOI, KVM_FEATURE_PV_UNHALT, KVM_FEATURE_PV_TLB_FLUSH,
        KVM_FEATURE_PV_SEND_IPI, KVM_FEATURE_POLL_CONTROL, KVM_FEATURE_PV_SCHED_YIELD,
        KVM_FEATURE_CLOCKSOURCE_STABLE_BIT}) {
    features.eax |= 1u << f;
  }
  if (kvm::thread_run_delay()) features.eax |= 1u << KVM_FEATURE_STEAL_TIME;
  // EDX, the hints, is the VMM's: only it can promise that a vCPU is never preempted.
  return {name, features};
}

namespace {
const kvm_cpuid_entry2* features_leaf(std::span<const kvm_cpuid_entry2> entries) {
  for (u32 base = KVM_CPUID_SIGNATURE; base <= last_base; base += base_step) {
    const kvm_cpuid_entry2* name = find(entries, base);
    if (name == nullptr || !has_signature(*name)) continue;
    return find(entries, base | KVM_CPUID_FEATURES);
  }
  return nullptr;
}
} // namespace

u32 kvm_features_in(std::span<const kvm_cpuid_entry2> entries) {
  const kvm_cpuid_entry2* features = features_leaf(entries);
  return features == nullptr ? 0 : features->eax;
}

void withhold_unhalt(std::span<kvm_cpuid_entry2> entries) {
  const kvm_cpuid_entry2* features = features_leaf(entries);
  if (features != nullptr)
    entries[static_cast<std::size_t>(features - entries.data())].eax &= ~(1u << KVM_FEATURE_PV_UNHALT);
}

} // namespace ring3::x86
