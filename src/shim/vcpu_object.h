// SPDX-License-Identifier: Apache-2.0
// A vCPU's descriptor: KVM_RUN and the ioctls of a vCPU (api.rst, "Type: vcpu ioctl").
#pragma once

#include "shim/descriptors.h"
#include "shim/vm_object.h"
#include "x86/api/vcpu.h"

#include <csignal>
#include <mutex>

namespace ring3::shim {

class VcpuObject final : public Object {
 public:
  // `vm` stays alive as long as this. The vCPU is given by attach() before the descriptor is.
  VcpuObject(std::shared_ptr<VmObject> vm, u64 dirty_ring_bytes);

  void attach(x86::Vcpu& vcpu) { vcpu_ = &vcpu; }

  long ioctl(unsigned long request, unsigned long argument) override;
  int check_map(u64 offset, u64 size, int protection, int flags) const override;

 private:
  long run();
  long state_ioctl(unsigned long request, unsigned long argument);
  long control_ioctl(unsigned long request, unsigned long argument);
  long device_attribute(unsigned long request, unsigned long argument);
  long set_signal_mask(unsigned long argument);

  const std::shared_ptr<VmObject> vm_;
  const u64 dirty_ring_bytes_;
  x86::Vcpu* vcpu_ = nullptr;
  // KVM lets one ioctl at a time use a vCPU; the others wait, for a KVM_RUN too.
  std::mutex lock_;
  // KVM_SET_SIGNAL_MASK; KVM_RUN reads it before it has the lock.
  struct SignalMask {
    bool set = false;
    u64 signals = 0; // the kernel's sigset_t
  };
  mutable std::mutex mask_lock_;
  SignalMask signal_mask_;
};

} // namespace ring3::shim
