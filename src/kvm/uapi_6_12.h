// SPDX-License-Identifier: Apache-2.0
// KVM's user interface as of Linux 6.12 where Debian 12's headers (6.1) do not have it yet: numbers and
// layouts of Documentation/virt/kvm/api.rst.
#pragma once

#include "base/types.h"

#include <linux/kvm.h>

namespace ring3::kvm {

constexpr u32 cap_user_memory2 = 231, cap_memory_fault_info = 232, cap_memory_attributes = 233,
              cap_guest_memfd = 234, cap_vm_types = 235, cap_pre_fault_memory = 236,
              cap_x86_apic_bus_cycles_ns = 237, cap_x86_guest_mode = 238;

// KVM_CREATE_VM's argument, and the bits of KVM_CAP_VM_TYPES.
constexpr u64 vm_type_default = 0, vm_type_sw_protected = 1;

// KVM_CAP_DISABLE_QUIRKS2, api.rst 7.31.
constexpr u64 quirk_slot_zap_all = u64{1} << 7;

// api.rst 4.140, KVM_SET_USER_MEMORY_REGION2.
struct UserspaceMemoryRegion2 {
  u32 slot;
  u32 flags;
  u64 guest_phys_addr;
  u64 memory_size;
  u64 userspace_addr;
  u64 guest_memfd_offset;
  u32 guest_memfd;
  u32 pad1;
  u64 pad2[14];
};
static_assert(sizeof(UserspaceMemoryRegion2) == 160);
constexpr u32 mem_guest_memfd = 1u << 2; // KVM_MEM_GUEST_MEMFD

// api.rst 4.141, KVM_SET_MEMORY_ATTRIBUTES.
struct MemoryAttributes {
  u64 address;
  u64 size;
  u64 attributes;
  u64 flags;
};
constexpr u64 memory_attribute_private = u64{1} << 3;

// api.rst 4.142, KVM_CREATE_GUEST_MEMFD.
struct CreateGuestMemfd {
  u64 size;
  u64 flags;
  u64 reserved[6];
};

// api.rst 4.143, KVM_PRE_FAULT_MEMORY.
struct PreFaultMemory {
  u64 gpa;
  u64 size;
  u64 flags;
  u64 padding[5];
};

// KVM_EXIT_MEMORY_FAULT: lies where kvm_run has its exit's data.
struct MemoryFault {
  u64 flags;
  u64 gpa;
  u64 size;
};
constexpr u32 exit_memory_fault = 39;
constexpr u64 memory_exit_flag_private = u64{1} << 3;

namespace request {
constexpr unsigned long set_user_memory_region2 = _IOW(KVMIO, 0x49, UserspaceMemoryRegion2);
constexpr unsigned long set_memory_attributes = _IOW(KVMIO, 0xd2, MemoryAttributes);
constexpr unsigned long create_guest_memfd = _IOWR(KVMIO, 0xd4, CreateGuestMemfd);
constexpr unsigned long pre_fault_memory = _IOWR(KVMIO, 0xd5, PreFaultMemory);
} // namespace request

} // namespace ring3::kvm
