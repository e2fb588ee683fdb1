// SPDX-License-Identifier: Apache-2.0
// What a VMM tunes about a VM: KVM_ENABLE_CAP, KVM_SET_TSS_ADDR and its like (api.rst 4.37, 4.41, 7).
#include "x86/api/vm.h"

#include "base/address.h"
#include "x86/api/vcpu.h"

#include <cerrno>

namespace ring3::x86 {

// Where Intel's processors without unrestricted guests need three pages; ours need none, so only the check
// remains.
int Vm::set_tss_addr(u64 address) { return address > 0xffffffff - 3 * page_size ? -EINVAL : 0; }

int Vm::set_identity_map_addr(u64) {
  const std::scoped_lock guard(lock_);
  return vcpus_.empty() ? 0 : -EINVAL;
}

int Vm::set_nr_mmu_pages(u64 pages) {
  constexpr u64 least = 64; // KVM_MIN_ALLOC_MMU_PAGES; there are no shadow pages to bound
  return pages < least ? -EINVAL : 0;
}

int Vm::set_tsc_khz(u64 khz) {
  const std::scoped_lock guard(lock_);
  if (khz > max_tsc_khz || !vcpus_.empty()) return -EINVAL;
  tsc_khz_.store(khz == 0 ? clock_->tsc_khz() : khz);
  return 0;
}

int Vm::set_boot_cpu_id(u64 id) {
  const std::scoped_lock guard(lock_);
  if (!vcpus_.empty()) return -EBUSY;
  if (id > max_vcpu_ids || (vcpu_id_limit_ != 0 && id > vcpu_id_limit_)) return -EINVAL;
  boot_cpu_id_ = static_cast<u32>(id);
  return 0;
}

int Vm::reinject_control(const kvm_reinject_control& control) {
  return irqchip_ ? irqchip_->set_pit_reinject(control.pit_reinject != 0) : -ENXIO;
}

int Vm::set_msr_filter(const kvm_msr_filter& filter, MsrFilter::CopyIn copy) {
  auto made = MsrFilter::make(filter, copy);
  if (!made) return made.error();
  const std::scoped_lock guard(lock_);
  settings_.msr_filter.publish(std::move(*made));
  return 0;
}

int Vm::limit_vcpu_ids(u64 count) {
  const std::scoped_lock guard(lock_);
  if (count > max_vcpu_ids || boot_cpu_id_ > count) return -EINVAL;
  // KVM's: once; the same value again is no mistake, and 0 leaves it open.
  if (vcpu_id_limit_ == count) return 0;
  if (vcpu_id_limit_ != 0) return -EINVAL;
  vcpu_id_limit_ = static_cast<u32>(count);
  return 0;
}

int Vm::set_apic_bus_cycle(u64 ns) {
  // The longest time to count, all ones at the largest divisor, must have its nanoseconds in 64 bits.
  constexpr u64 longest_count = u64{0xffffffff} * 128;
  if (ns == 0 || ns > ~u64{0} / longest_count) return -EINVAL;
  const std::scoped_lock guard(lock_);
  if (!irqchip_) return -ENXIO;
  if (!vcpus_.empty()) return -EINVAL;
  apic_bus_cycle_ns_ = ns;
  return 0;
}

int Vm::enable_capability(const kvm_enable_cap& cap) {
  if (cap.flags != 0) return -EINVAL;
  const u64 argument = cap.args[0];
  switch (cap.cap) {
  case KVM_CAP_DISABLE_QUIRKS2:
    if ((argument & ~u64{supported_quirks}) != 0) return -EINVAL;
    [[fallthrough]];
  // A quirk that is not named comes back, as in KVM before 6.15: the selftest monitor_mwait_test of 6.1
  // and 6.12 switches them off and on. Newer kernels, and late stable releases of 6.12, only ever add to what
  // is off; that test fails there.
  case KVM_CAP_DISABLE_QUIRKS: settings_.disabled_quirks.store(argument & supported_quirks); return 0;
  case KVM_CAP_X2APIC_API: {
    constexpr u64 known = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
    if ((argument & ~known) != 0) return -EINVAL;
    if (!irqchip_) return argument == 0 ? 0 : -EINVAL;
    irqchip_->set_x2apic_api((argument & KVM_X2APIC_API_USE_32BIT_IDS) != 0,
                             (argument & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) != 0);
    return 0;
  }
  case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: return set_manual_dirty_protect(argument);
  case KVM_CAP_DIRTY_LOG_RING:
  case KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
    return argument > 0xffffffff ? -E2BIG : enable_dirty_ring(static_cast<u32>(argument));
  case KVM_CAP_EXIT_HYPERCALL:
    if ((argument & ~supported_hypercall_exits) != 0) return -EINVAL;
    settings_.hypercall_exits.store(argument, std::memory_order_relaxed);
    return 0;
  case KVM_CAP_MSR_PLATFORM_INFO: settings_.platform_info_readable.store(argument != 0); return 0;
  case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
    if (argument > 1) return -EINVAL;
    settings_.exit_on_emulation_failure.store(argument != 0);
    return 0;
  case KVM_CAP_X86_DISABLE_EXITS:
    // As KVM: all that has a name is taken, what is not supported without effect.
    if ((argument & ~u64{KVM_X86_DISABLE_VALID_EXITS}) != 0) return -EINVAL;
    settings_.disabled_exits.fetch_or(argument & supported_disable_exits);
    return 0;
  case kvm::cap_x86_apic_bus_cycles_ns: return set_apic_bus_cycle(argument);
  case KVM_CAP_EXCEPTION_PAYLOAD: settings_.exception_payload.store(argument != 0); return 0;
  case KVM_CAP_X86_TRIPLE_FAULT_EVENT: settings_.triple_fault_event.store(argument != 0); return 0;
  case KVM_CAP_SPLIT_IRQCHIP: return create_split_irqchip(argument);
  case KVM_CAP_X86_USER_SPACE_MSR: {
    constexpr u64 known =
        KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER;
    if ((argument & ~known) != 0) return -EINVAL;
    settings_.msr_exits.store(argument);
    return 0;
  }
  case KVM_CAP_MAX_VCPU_ID: return limit_vcpu_ids(argument);
  default: return -EINVAL;
  }
}

} // namespace ring3::x86
