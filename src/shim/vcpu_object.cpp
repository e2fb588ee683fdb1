// SPDX-License-Identifier: Apache-2.0
#include "shim/vcpu_object.h"

#include "kvm/run_pages.h"
#include "kvm/uapi_6_12.h"
#include "shim/ioctl_lists.h"
#include "shim/ioctl_numbers.h"
#include "shim/signals.h"
#include "shim/user_memory.h"

#include <cerrno>
#include <cstring>
#include <sys/mman.h>
#include <vector>

namespace ring3::shim {

namespace {

// Most ioctls read a structure, write one, or both.
template <class T, class F> long read_one(unsigned long argument, F&& f) {
  T value;
  return get_user(value, argument) ? f(value) : -EFAULT;
}
template <class T, class F> long write_one(unsigned long argument, F&& f) {
  T value{};
  const int result = f(value);
  if (result < 0) return result;
  return put_user(argument, value) ? result : -EFAULT;
}

} // namespace

VcpuObject::VcpuObject(std::shared_ptr<VmObject> vm, u64 dirty_ring_bytes)
    : vm_(std::move(vm)), dirty_ring_bytes_(dirty_ring_bytes) {}

int VcpuObject::check_map(u64 offset, u64 size, int protection, int flags) const {
  constexpr u64 ring = KVM_DIRTY_LOG_PAGE_OFFSET * u64{4096};
  const bool touches_ring = offset < ring + dirty_ring_bytes_ && offset + size > ring;
  if (!touches_ring || dirty_ring_bytes_ == 0) return 0;
  // api.rst 8.29: shared, and never executable.
  return (flags & MAP_TYPE) == MAP_PRIVATE || (protection & PROT_EXEC) != 0 ? -EINVAL : 0;
}

long VcpuObject::run() {
  SignalMask mask;
  {
    const std::scoped_lock guard(mask_lock_);
    mask = signal_mask_;
  }
  sigset_t blocked;
  sigemptyset(&blocked);
  std::memcpy(&blocked, &mask.signals, sizeof mask.signals);
  return stay_in_guest(
      *vcpu_, lock_, mask.set ? &blocked : nullptr,
      [](void* vcpu) { return static_cast<x86::Vcpu*>(vcpu)->run(); }, vcpu_);
}

long VcpuObject::ioctl(unsigned long request, unsigned long argument) {
  if (!ours() || vm_->vm().dead()) return -EIO;
  if (request == KVM_RUN) {
    if (argument != 0) return -EINVAL;
    return run();
  }
  if (_IOC_TYPE(request) != KVMIO) return -EINVAL;
  // State may be read from or written to guest memory, which may be gone.
  struct Call {
    VcpuObject* object;
    unsigned long request, argument;
    long result;
  } call{this, request, argument, 0};
  const int lost = stay_in_guest(
      *vcpu_, lock_, nullptr,
      [](void* p) {
        auto* c = static_cast<Call*>(p);
        c->result = c->object->state_ioctl(c->request, c->argument);
        return 0;
      },
      &call);
  return lost < 0 ? lost : call.result;
}

long VcpuObject::set_signal_mask(unsigned long argument) {
  SignalMask mask;
  if (argument != 0) {
    u32 size = 0;
    if (!get_user(size, argument)) return -EFAULT;
    if (size != sizeof mask.signals) return -EINVAL;
    if (!get_user(mask.signals, argument + sizeof size)) return -EFAULT;
    mask.set = true;
  }
  const std::scoped_lock guard(mask_lock_);
  signal_mask_ = mask;
  return 0;
}

long VcpuObject::state_ioctl(unsigned long request, unsigned long argument) {
  x86::Vcpu& v = *vcpu_;
  switch (request) {
  case KVM_GET_REGS: return write_one<kvm_regs>(argument, [&](auto& x) { return v.get_regs(x); });
  case KVM_SET_REGS: return read_one<kvm_regs>(argument, [&](auto& x) { return v.set_regs(x); });
  case KVM_GET_SREGS: return write_one<kvm_sregs>(argument, [&](auto& x) { return v.get_sregs(x); });
  case KVM_SET_SREGS: return read_one<kvm_sregs>(argument, [&](auto& x) { return v.set_sregs(x); });
  case KVM_GET_SREGS2: return write_one<kvm_sregs2>(argument, [&](auto& x) { return v.get_sregs2(x); });
  case KVM_SET_SREGS2: return read_one<kvm_sregs2>(argument, [&](auto& x) { return v.set_sregs2(x); });
  case KVM_GET_FPU: return write_one<kvm_fpu>(argument, [&](auto& x) { return v.get_fpu(x); });
  case KVM_SET_FPU: return read_one<kvm_fpu>(argument, [&](auto& x) { return v.set_fpu(x); });
  case KVM_GET_XCRS: return write_one<kvm_xcrs>(argument, [&](auto& x) { return v.get_xcrs(x); });
  case KVM_SET_XCRS: return read_one<kvm_xcrs>(argument, [&](auto& x) { return v.set_xcrs(x); });
  case KVM_GET_DEBUGREGS:
    return write_one<kvm_debugregs>(argument, [&](auto& x) { return v.get_debugregs(x); });
  case KVM_SET_DEBUGREGS:
    return read_one<kvm_debugregs>(argument, [&](auto& x) { return v.set_debugregs(x); });
  case KVM_GET_VCPU_EVENTS:
    return write_one<kvm_vcpu_events>(argument, [&](auto& x) { return v.get_vcpu_events(x); });
  case KVM_SET_VCPU_EVENTS:
    return read_one<kvm_vcpu_events>(argument, [&](auto& x) { return v.set_vcpu_events(x); });
  case KVM_GET_LAPIC: return write_one<kvm_lapic_state>(argument, [&](auto& x) { return v.get_lapic(x); });
  case KVM_SET_LAPIC: return read_one<kvm_lapic_state>(argument, [&](auto& x) { return v.set_lapic(x); });
  case KVM_GET_MP_STATE: return write_one<kvm_mp_state>(argument, [&](auto& x) { return v.get_mp_state(x); });
  case KVM_SET_MP_STATE: return read_one<kvm_mp_state>(argument, [&](auto& x) { return v.set_mp_state(x); });
  case KVM_TRANSLATE:
    return read_one<kvm_translation>(argument, [&](auto& x) -> long {
      const int result = v.translate(x);
      return result == 0 && !put_user(argument, x) ? -EFAULT : result;
    });
  case request::get_xsave:
  case request::get_xsave2: {
    std::vector<std::byte> area(request == request::get_xsave ? 4096 : v.xsave_size());
    const int result = v.get_xsave(area);
    return result == 0 && !copy_to_user(argument, area.data(), area.size()) ? -EFAULT : result;
  }
  case request::set_xsave: {
    std::vector<std::byte> area(v.xsave_size());
    return copy_from_user(area.data(), argument, area.size()) ? v.set_xsave(area) : -EFAULT;
  }
  case request::get_msrs:
  case request::set_msrs: {
    std::vector<kvm_msr_entry> entries;
    if (const int result = get_msr_list(argument, entries); result < 0) return result;
    if (request == request::set_msrs) return v.set_msrs(entries);
    const int done = v.get_msrs(entries);
    return put_msr_list(argument, entries, done);
  }
  case request::set_cpuid2: {
    std::vector<kvm_cpuid_entry2> entries;
    const int result = get_cpuid_list(argument, entries);
    return result < 0 ? result : v.set_cpuid(entries);
  }
  case request::get_cpuid2: return put_cpuid_list(argument, v.cpuid_entries());
  case kvm::request::pre_fault_memory: {
    kvm::PreFaultMemory range;
    if (!get_user(range, argument)) return -EFAULT;
    const int result = v.pre_fault_memory(range);
    return put_user(argument, range) ? result : -EFAULT;
  }
  default: return control_ioctl(request, argument);
  }
}

long VcpuObject::device_attribute(unsigned long request, unsigned long argument) {
  kvm_device_attr attr;
  if (!get_user(attr, argument)) return -EFAULT;
  if (attr.group != KVM_VCPU_TSC_CTRL || attr.attr != KVM_VCPU_TSC_OFFSET) return -ENXIO;
  if (request == KVM_HAS_DEVICE_ATTR) return 0;
  if (request == KVM_GET_DEVICE_ATTR) return put_user(attr.addr, vcpu_->tsc_offset()) ? 0 : -EFAULT;
  u64 offset = 0;
  if (!get_user(offset, attr.addr)) return -EFAULT;
  vcpu_->set_tsc_offset(offset);
  return 0;
}

long VcpuObject::control_ioctl(unsigned long request, unsigned long argument) {
  x86::Vcpu& v = *vcpu_;
  switch (request) {
  case request::set_signal_mask: return set_signal_mask(argument);
  case KVM_INTERRUPT: return read_one<kvm_interrupt>(argument, [&](auto& x) { return v.interrupt(x.irq); });
  case KVM_X86_SETUP_MCE: return read_one<u64>(argument, [&](auto& x) { return v.setup_mce(x); });
  case KVM_X86_SET_MCE: return read_one<kvm_x86_mce>(argument, [&](auto& x) { return v.set_mce(x); });
  case KVM_SET_GUEST_DEBUG:
    return read_one<kvm_guest_debug>(argument, [&](auto& x) { return v.set_guest_debug(x); });
  case KVM_NMI: return v.nmi();
  case KVM_SMI: return v.smi();
  case KVM_TPR_ACCESS_REPORTING:
    return read_one<kvm_tpr_access_ctl>(argument, [&](auto& x) -> long {
      const int result = v.tpr_access_reporting(x);
      return result == 0 && !put_user(argument, x) ? -EFAULT : result;
    });
  case KVM_SET_VAPIC_ADDR:
    return read_one<kvm_vapic_addr>(argument, [&](auto& x) { return v.set_vapic_addr(x.vapic_addr); });
  case KVM_GET_TSC_KHZ: return static_cast<long>(v.tsc_khz());
  case KVM_SET_TSC_KHZ: return v.set_tsc_khz(static_cast<u32>(argument));
  case KVM_HAS_DEVICE_ATTR:
  case KVM_GET_DEVICE_ATTR:
  case KVM_SET_DEVICE_ATTR: return device_attribute(request, argument);
  case KVM_KVMCLOCK_CTRL: return v.kvmclock_ctrl();
  case KVM_GET_STATS_FD: return v.generic().open_stats();
  case KVM_ENABLE_CAP:
    return read_one<kvm_enable_cap>(argument, [&](auto& x) { return v.enable_capability(x); });
  default: return -EINVAL;
  }
}

} // namespace ring3::shim
