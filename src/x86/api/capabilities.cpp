// SPDX-License-Identifier: Apache-2.0
#include "x86/api/capabilities.h"

#include "kvm/dirty_ring.h"
#include "kvm/irq_routing.h"
#include "kvm/memory_slots.h"
#include "kvm/uapi_6_12.h"
#include "x86/api/vm.h"
#include "x86/cpu/cpuid.h"
#include "x86/cpu/features.h"
#include "x86/cpu/state.h"
#include "x86/cpu/xsave_layout.h"
#include "x86/pv/pv_features.h"

#include <algorithm>
#include <thread>

namespace ring3::x86 {

int check_extension(u32 capability, const Vm* vm) {
  switch (capability) {
  case KVM_CAP_IRQCHIP:
  case KVM_CAP_HLT:
  case KVM_CAP_USER_MEMORY:
  case KVM_CAP_DESTROY_MEMORY_REGION_WORKS:
  case KVM_CAP_JOIN_MEMORY_REGIONS_WORKS:
  case KVM_CAP_SET_TSS_ADDR:
  case KVM_CAP_SET_IDENTITY_MAP_ADDR:
  case KVM_CAP_EXT_CPUID:
  case KVM_CAP_MP_STATE:
  case KVM_CAP_PIT2:
  case KVM_CAP_PIT_STATE2:
  case KVM_CAP_REINJECT_CONTROL:
  case KVM_CAP_IRQ_INJECT_STATUS:
  case KVM_CAP_SIGNAL_MSI:
  case KVM_CAP_SYNC_MMU:
  case KVM_CAP_NOP_IO_DELAY:
  case KVM_CAP_USER_NMI:
  case KVM_CAP_READONLY_MEM:
  case KVM_CAP_INTERNAL_ERROR_DATA:
  case KVM_CAP_IMMEDIATE_EXIT:
  case KVM_CAP_VCPU_EVENTS:
  case KVM_CAP_DEBUGREGS:
  case KVM_CAP_XSAVE:
  case KVM_CAP_XCRS:
  case KVM_CAP_GET_MSR_FEATURES:
  case KVM_CAP_TSC_DEADLINE_TIMER:
  case KVM_CAP_SREGS2:
  case KVM_CAP_X86_SMM:
  case KVM_CAP_MSR_PLATFORM_INFO:
  case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
  case KVM_CAP_SMALLER_MAXPHYADDR:
  case KVM_CAP_IRQFD:
  case KVM_CAP_IRQFD_RESAMPLE:
  case KVM_CAP_IOEVENTFD:
  case KVM_CAP_IOEVENTFD_NO_LENGTH:
  case KVM_CAP_IOEVENTFD_ANY_LENGTH:
  case KVM_CAP_COALESCED_PIO:
  case KVM_CAP_BINARY_STATS_FD:
  case KVM_CAP_SET_BOOT_CPU_ID:
  case KVM_CAP_VAPIC:
  case KVM_CAP_CLOCKSOURCE:
  case KVM_CAP_KVMCLOCK_CTRL:
  case KVM_CAP_STEAL_TIME:
  case KVM_CAP_ASYNC_PF:
  case KVM_CAP_ASYNC_PF_INT:
  case KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
  case KVM_CAP_DISABLE_QUIRKS:
  case KVM_CAP_X86_USER_SPACE_MSR:
  case KVM_CAP_SET_GUEST_DEBUG:
  case KVM_CAP_VCPU_ATTRIBUTES:
  case KVM_CAP_SYS_ATTRIBUTES:
  case KVM_CAP_SPLIT_IRQCHIP:
  case KVM_CAP_EXCEPTION_PAYLOAD:
  case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
  case KVM_CAP_X86_MSR_FILTER:
  case KVM_CAP_GET_TSC_KHZ:
  case KVM_CAP_TSC_CONTROL:
  case KVM_CAP_VM_TSC_CONTROL:
  case KVM_CAP_ENABLE_CAP:
  case kvm::cap_user_memory2:
  case kvm::cap_memory_fault_info:
  case kvm::cap_pre_fault_memory:
  case KVM_CAP_CHECK_EXTENSION_VM:
  case KVM_CAP_ENABLE_CAP_VM: return 1;
  case KVM_CAP_NR_VCPUS:
    return static_cast<int>(std::clamp(std::thread::hardware_concurrency(), 1U, Vm::max_vcpus));
  case KVM_CAP_MULTI_ADDRESS_SPACE:
    return static_cast<int>(vm != nullptr ? vm->slots().address_spaces() : kvm::max_address_spaces);
  case KVM_CAP_X86_DISABLE_EXITS: return static_cast<int>(Vm::supported_disable_exits);
  case kvm::cap_x86_apic_bus_cycles_ns: return static_cast<int>(ApicTimer::default_bus_cycle_ns);
  case kvm::cap_vm_types: return Vm::supported_types;
  case kvm::cap_guest_memfd: return vm == nullptr || vm->slots().has_private_memory() ? 1 : 0;
  case kvm::cap_memory_attributes:
    return static_cast<int>(vm != nullptr ? vm->slots().supported_attributes()
                                          : kvm::memory_attribute_private);
  case KVM_CAP_EXIT_HYPERCALL: return static_cast<int>(Vm::supported_hypercall_exits);
  case KVM_CAP_MAX_VCPUS: return Vm::max_vcpus;
  case KVM_CAP_MAX_VCPU_ID: return Vm::max_vcpu_ids;
  case KVM_CAP_NR_MEMSLOTS: return kvm::max_memory_slots;
  case KVM_CAP_IRQ_ROUTING: return kvm::max_irq_routes;
  case KVM_CAP_COALESCED_MMIO: return KVM_COALESCED_MMIO_PAGE_OFFSET;
  case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
    return KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;
  case KVM_CAP_DIRTY_LOG_RING:
  case KVM_CAP_DIRTY_LOG_RING_ACQ_REL: return kvm::DirtyRing::max_entries * sizeof(kvm_dirty_gfn);
  case KVM_CAP_ADJUST_CLOCK: return KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
  case KVM_CAP_MCE: return max_mc_banks;
  case KVM_CAP_SYNC_REGS: return KVM_SYNC_X86_VALID_FIELDS;
  case KVM_CAP_SET_GUEST_DEBUG2:
    return KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_USE_SW_BP |
           KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ;
  case KVM_CAP_DISABLE_QUIRKS2: return Vm::supported_quirks;
  case KVM_CAP_XSAVE2: return static_cast<int>(std::max<u32>(xsave::standard_size(~u64{0}), 4096));
  case KVM_CAP_X2APIC_API: return KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
  default: return 0;
  }
}

u64 supported_xcr0(std::span<const kvm_cpuid_entry2> cpuid) {
  CpuidTable table;
  table.set(cpuid);
  return table.xcr0_allowed();
}

std::vector<kvm_cpuid_entry2> supported_cpuid(const CpuModelSelection& model) {
  std::vector<kvm_cpuid_entry2> entries = cpuid_entries(model, 0, 1);
  // What depends on the VM's TSC frequency is the VMM's to fill in, and KVM's leaves come below.
  std::erase_if(entries, [](const kvm_cpuid_entry2& e) {
    return e.function == 0x15 || e.function == 0x16 || e.function >> 28 == 4;
  });
  for (kvm_cpuid_entry2& e : entries) {
    // Depends on where the local APIC is: user space sets it by KVM_CAP_TSC_DEADLINE_TIMER.
    if (e.function == feature::tsc_deadline.leaf) e.ecx &= ~(1U << feature::tsc_deadline.bit);
  }
  const auto kvm_leaves = kvm_cpuid_leaves();
  entries.insert(entries.end(), kvm_leaves.begin(), kvm_leaves.end());
  return entries;
}

} // namespace ring3::x86
