// SPDX-License-Identifier: Apache-2.0
#include "shim/vm_object.h"

#include "kvm/run_pages.h"
#include "kvm/uapi_6_12.h"
#include "shim/guest_memfd_object.h"
#include "shim/ioctl_lists.h"
#include "shim/ioctl_numbers.h"
#include "shim/real_calls.h"
#include "shim/settings.h"
#include "shim/signals.h"
#include "shim/stats_report.h"
#include "shim/user_memory.h"
#include "shim/vcpu_object.h"
#include "shim/vm_stats_object.h"
#include "x86/api/capabilities.h"

#include <cerrno>
#include <new>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace ring3::shim {

VmObject::VmObject(unsigned long type)
    : vm_(std::make_unique<x86::Vm>(std::make_unique<kvm::HostClock>(), type, settings().engine)) {
  watch_vm(*vm_);
}

VmObject::~VmObject() {
  // In the child of a fork the threads that serve this VM are not there to be joined.
  if (ours()) {
    report_vm(*vm_);
  } else {
    forget_vm(*vm_);
    static_cast<void>(vm_.release());
  }
}

long VmObject::create(unsigned long type) {
  if (type >= 32 || (x86::Vm::supported_types >> type & 1) == 0) return -EINVAL;
  install_fault_handlers();
  return add_descriptor("kvm-vm", 0, std::make_shared<VmObject>(type));
}

long VmObject::create_vcpu(unsigned long id) {
  const u64 ring = vm_->dirty_ring_bytes();
  const int fd = memfd_create("kvm-vcpu", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -errno;
  long result = fix_size(fd, kvm::RunPages::file_size(ring));
  x86::Vcpu* vcpu = nullptr;
  if (result == 0) result = id > 0xffffffff ? -EINVAL : vm_->create_vcpu(static_cast<u32>(id), fd, vcpu);
  if (result == 0) {
    auto object = std::make_shared<VcpuObject>(shared_from_this(), ring);
    object->attach(*vcpu);
    result = adopt_descriptor(fd, std::move(object));
  }
  if (result < 0) real::close(fd);
  return result;
}

long VmObject::get_dirty_log(unsigned long argument) {
  kvm_dirty_log log;
  if (!get_user(log, argument)) return -EFAULT;
  const std::size_t words = vm_->dirty_words(log.slot);
  std::vector<u64> bitmap(words);
  const int result = vm_->get_dirty_log(log.slot, bitmap);
  if (result != 0) return result;
  // What was collected is cleared already: a bitmap that cannot be written loses it, as in KVM.
  return copy_to_user(reinterpret_cast<u64>(log.dirty_bitmap), bitmap.data(), words * sizeof(u64)) ? 0
                                                                                                   : -EFAULT;
}

long VmObject::clear_dirty_log(unsigned long argument) {
  kvm_clear_dirty_log log;
  if (!get_user(log, argument)) return -EFAULT;
  const std::size_t most = vm_->dirty_words(log.slot);
  if (most == 0) return vm_->clear_dirty_log(log, {}); // which says why
  const std::size_t words = (std::size_t{log.num_pages} + 63) / 64;
  if (words > most) return -EINVAL;
  std::vector<u64> bitmap(words);
  if (!copy_from_user(bitmap.data(), reinterpret_cast<u64>(log.dirty_bitmap), words * sizeof(u64)))
    return -EFAULT;
  return vm_->clear_dirty_log(log, bitmap);
}

long VmObject::memory_ioctl(unsigned long request, unsigned long argument) {
  switch (request) {
  case KVM_SET_USER_MEMORY_REGION: {
    kvm_userspace_memory_region region;
    return get_user(region, argument) ? vm_->set_user_memory_region(region) : -EFAULT;
  }
  case kvm::request::set_user_memory_region2: {
    kvm::UserspaceMemoryRegion2 region;
    if (!get_user(region, argument)) return -EFAULT;
    const bool is_private = (region.flags & kvm::mem_guest_memfd) != 0;
    return vm_->set_user_memory_region(region, is_private ? find_guest_memfd(region.guest_memfd)
                                                          : kvm::PrivateMemory{});
  }
  case kvm::request::set_memory_attributes: {
    kvm::MemoryAttributes attributes;
    return get_user(attributes, argument) ? vm_->set_memory_attributes(attributes) : -EFAULT;
  }
  case kvm::request::create_guest_memfd: {
    kvm::CreateGuestMemfd args;
    return get_user(args, argument) ? GuestMemfdObject::create(shared_from_this(), args) : -EFAULT;
  }
  case KVM_GET_DIRTY_LOG: return get_dirty_log(argument);
  case KVM_CLEAR_DIRTY_LOG: return clear_dirty_log(argument);
  case KVM_RESET_DIRTY_RINGS: return vm_->reset_dirty_rings();
  case KVM_SET_TSS_ADDR: return vm_->set_tss_addr(argument);
  case KVM_SET_IDENTITY_MAP_ADDR: {
    u64 address = 0;
    return get_user(address, argument) ? vm_->set_identity_map_addr(address) : -EFAULT;
  }
  case KVM_SET_NR_MMU_PAGES: return vm_->set_nr_mmu_pages(argument);
  case KVM_GET_NR_MMU_PAGES: return -EINVAL; // as KVM's own since 6.3
  default: return irqchip_ioctl(request, argument);
  }
}

long VmObject::get_irqchip(unsigned long argument) {
  kvm_irqchip chip;
  if (!get_user(chip, argument)) return -EFAULT;
  const int result = vm_->get_irqchip(chip);
  if (result != 0) return result;
  return put_user(argument, chip) ? 0 : -EFAULT;
}

long VmObject::irq_line(unsigned long argument, bool status) {
  kvm_irq_level level;
  if (!get_user(level, argument)) return -EFAULT;
  if (vm_->irqchip() == nullptr) return -ENXIO;
  const int result = vm_->irq_line(level.irq, level.level != 0);
  if (!status) return result < -1 ? result : 0;
  level.status = result;
  return put_user(argument, level) ? 0 : -EFAULT;
}

long VmObject::irqchip_ioctl(unsigned long request, unsigned long argument) {
  switch (request) {
  case KVM_CREATE_IRQCHIP: return vm_->create_irqchip();
  case KVM_CREATE_PIT2: {
    kvm_pit_config config;
    return get_user(config, argument) ? vm_->create_pit(config) : -EFAULT;
  }
  case KVM_CREATE_PIT: {
    kvm_pit_config config{};
    config.flags = KVM_PIT_SPEAKER_DUMMY;
    return vm_->create_pit(config);
  }
  case KVM_GET_IRQCHIP: return get_irqchip(argument);
  case KVM_SET_IRQCHIP: {
    kvm_irqchip chip;
    return get_user(chip, argument) ? vm_->set_irqchip(chip) : -EFAULT;
  }
  case KVM_GET_PIT2: {
    kvm_pit_state2 state{};
    const int result = vm_->get_pit(state);
    if (result != 0) return result;
    return put_user(argument, state) ? 0 : -EFAULT;
  }
  case KVM_SET_PIT2: {
    kvm_pit_state2 state;
    return get_user(state, argument) ? vm_->set_pit(state) : -EFAULT;
  }
  case KVM_REINJECT_CONTROL: {
    kvm_reinject_control control;
    return get_user(control, argument) ? vm_->reinject_control(control) : -EFAULT;
  }
  case request::set_gsi_routing: {
    std::vector<kvm_irq_routing_entry> entries;
    const int result = get_routing_list(argument, entries);
    return result < 0 ? result : vm_->set_gsi_routing(entries);
  }
  case KVM_IRQ_LINE: return irq_line(argument, false);
  case KVM_IRQ_LINE_STATUS: return irq_line(argument, true);
  case KVM_SIGNAL_MSI: {
    kvm_msi msi;
    return get_user(msi, argument) ? vm_->signal_msi(msi) : -EFAULT;
  }
  default: return event_ioctl(request, argument);
  }
}

long VmObject::event_ioctl(unsigned long request, unsigned long argument) {
  switch (request) {
  case KVM_REGISTER_COALESCED_MMIO:
  case KVM_UNREGISTER_COALESCED_MMIO: {
    kvm_coalesced_mmio_zone zone;
    if (!get_user(zone, argument)) return -EFAULT;
    return vm_->coalesced_zone(zone, request == KVM_REGISTER_COALESCED_MMIO);
  }
  case KVM_IOEVENTFD: {
    kvm_ioeventfd args;
    return get_user(args, argument) ? vm_->ioeventfd(args) : -EFAULT;
  }
  case KVM_IRQFD: {
    kvm_irqfd args;
    return get_user(args, argument) ? vm_->irqfd(args) : -EFAULT;
  }
  default: return -ENOTTY;
  }
}

long VmObject::ioctl(unsigned long request, unsigned long argument) {
  if (!ours() || vm_->dead()) return -EIO;
  try {
    return vm_ioctl(request, argument);
  } catch (const std::bad_alloc&) {
    return -ENOMEM; // the size of a slot's log is the VMM's choice
  }
}

long VmObject::vm_ioctl(unsigned long request, unsigned long argument) {
  switch (request) {
  case KVM_CHECK_EXTENSION: return x86::check_extension(static_cast<u32>(argument), vm_.get());
  case KVM_CREATE_VCPU: return create_vcpu(argument);
  case KVM_ENABLE_CAP: {
    kvm_enable_cap cap;
    return get_user(cap, argument) ? vm_->enable_capability(cap) : -EFAULT;
  }
  case KVM_GET_CLOCK: {
    kvm_clock_data data{};
    const int result = vm_->get_clock(data);
    if (result != 0) return result;
    return put_user(argument, data) ? 0 : -EFAULT;
  }
  case KVM_SET_CLOCK: {
    kvm_clock_data data;
    return get_user(data, argument) ? vm_->set_clock(data) : -EFAULT;
  }
  case KVM_X86_SET_MSR_FILTER: {
    kvm_msr_filter filter;
    return get_user(filter, argument) ? vm_->set_msr_filter(filter, copy_from_user) : -EFAULT;
  }
  case KVM_GET_STATS_FD: return VmStatsObject::create(shared_from_this());
  case KVM_GET_TSC_KHZ: return static_cast<long>(vm_->tsc_khz());
  case KVM_SET_TSC_KHZ: return vm_->set_tsc_khz(static_cast<u32>(argument));
  case KVM_SET_BOOT_CPU_ID: return vm_->set_boot_cpu_id(argument);
  default: break;
  }
  return memory_ioctl(request, argument);
}

} // namespace ring3::shim
