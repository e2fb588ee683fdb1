// SPDX-License-Identifier: Apache-2.0
#include "shim/system_object.h"

#include "kvm/run_pages.h"
#include "shim/ioctl_lists.h"
#include "shim/ioctl_numbers.h"
#include "shim/settings.h"
#include "shim/signals.h"
#include "shim/user_memory.h"
#include "shim/vm_object.h"
#include "x86/api/capabilities.h"
#include "x86/cpu/msr_table.h"

#include <algorithm>
#include <cerrno>

namespace ring3::shim {

namespace {

// KVM_GET_MSRS of the system: as many as are known, and the number of them.
long get_feature_msrs(u64 argument) {
  std::vector<kvm_msr_entry> entries;
  if (const int result = get_msr_list(argument, entries); result < 0) return result;
  long done = 0;
  for (kvm_msr_entry& e : entries) {
    u64 value = 0;
    if (!x86::feature_msr(e.index, value)) break;
    e.data = value;
    ++done;
  }
  return put_msr_list(argument, entries, done);
}

// KVM_HAS_DEVICE_ATTR and KVM_GET_DEVICE_ATTR of the system (KVM_CAP_SYS_ATTRIBUTES).
long device_attribute(unsigned long request, u64 argument) {
  kvm_device_attr attr;
  if (!get_user(attr, argument)) return -EFAULT;
  if (attr.group != 0 || attr.attr != KVM_X86_XCOMP_GUEST_SUPP) return -ENXIO;
  if (request == KVM_HAS_DEVICE_ATTR) return 0;
  return put_user(attr.addr, x86::supported_xcr0(settings().supported_cpuid)) ? 0 : -EFAULT;
}

} // namespace

long SystemObject::ioctl(unsigned long request, unsigned long argument) {
  install_fault_handlers(); // a bad argument is EFAULT before there is a VM, too
  switch (request) {
  case KVM_GET_API_VERSION: return argument == 0 ? KVM_API_VERSION : -EINVAL;
  case KVM_CHECK_EXTENSION: return x86::check_extension(static_cast<u32>(argument), nullptr);
  case KVM_GET_VCPU_MMAP_SIZE: return argument == 0 ? static_cast<long>(kvm::vcpu_mmap_size) : -EINVAL;
  case KVM_CREATE_VM: return VmObject::create(argument);
  case request::get_supported_cpuid: return put_cpuid_list(argument, settings().supported_cpuid);
  case request::get_emulated_cpuid: return put_cpuid_list(argument, {});
  case request::get_msr_index_list: return put_index_list(argument, x86::msr_indices());
  case request::get_msr_feature_index_list: return put_index_list(argument, x86::feature_msr_indices());
  case request::get_msrs: return get_feature_msrs(argument);
  case KVM_HAS_DEVICE_ATTR:
  case KVM_GET_DEVICE_ATTR: return device_attribute(request, argument);
  case KVM_X86_GET_MCE_CAP_SUPPORTED:
    return put_user(argument, x86::supported_mcg_cap(settings().supported_cpuid)) ? 0 : -EFAULT;
  case KVM_TRACE_ENABLE:
  case KVM_TRACE_PAUSE:
  case KVM_TRACE_DISABLE: return -EOPNOTSUPP;
  default: return -EINVAL; // what KVM's system descriptor says to a number it does not know
  }
}

} // namespace ring3::shim
