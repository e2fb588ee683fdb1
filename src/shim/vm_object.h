// SPDX-License-Identifier: Apache-2.0
// A VM's descriptor: the ioctls of a VM (api.rst, "Type: vm ioctl").
#pragma once

#include "shim/descriptors.h"
#include "x86/api/vm.h"

namespace ring3::shim {

class VmObject final : public Object, public std::enable_shared_from_this<VmObject> {
 public:
  // KVM_X86_*_VM, one that is supported.
  explicit VmObject(unsigned long type = kvm::vm_type_default);
  ~VmObject() override;

  // KVM_CREATE_VM: a descriptor or -errno.
  static long create(unsigned long type);

  long ioctl(unsigned long request, unsigned long argument) override;

  x86::Vm& vm() { return *vm_; }

 private:
  long vm_ioctl(unsigned long request, unsigned long argument);
  long create_vcpu(unsigned long id);
  long memory_ioctl(unsigned long request, unsigned long argument);
  long irqchip_ioctl(unsigned long request, unsigned long argument);
  long event_ioctl(unsigned long request, unsigned long argument);
  long get_dirty_log(unsigned long argument);
  long clear_dirty_log(unsigned long argument);
  long get_irqchip(unsigned long argument);
  long irq_line(unsigned long argument, bool status);

  std::unique_ptr<x86::Vm> vm_;
};

} // namespace ring3::shim
