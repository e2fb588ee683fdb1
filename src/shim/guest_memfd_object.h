// SPDX-License-Identifier: Apache-2.0
// The descriptor of a guest_memfd: it can be asked for its size, and pages can be allocated and freed; it is
// neither read, written nor mapped (api.rst 4.142). It keeps its VM, as KVM's does.
#pragma once

#include "kvm/guest_memfd.h"
#include "shim/descriptors.h"
#include "shim/vm_object.h"

#include <cerrno>

namespace ring3::shim {

class GuestMemfdObject final : public Object {
 public:
  GuestMemfdObject(std::shared_ptr<VmObject> vm, std::shared_ptr<kvm::GuestMemfd> memory);
  ~GuestMemfdObject() override;

  // KVM_CREATE_GUEST_MEMFD: a descriptor or -errno.
  static long create(std::shared_ptr<VmObject> vm, const kvm::CreateGuestMemfd& args);

  long ioctl(unsigned long request, unsigned long argument) override;
  int fallocate(int fd, int mode, s64 offset, s64 length) override;
  s64 seek(int) const override { return -ESPIPE; }

  const std::shared_ptr<kvm::GuestMemfd>& memory() const { return memory_; }

 private:
  const std::shared_ptr<VmObject> vm_;
  const std::shared_ptr<kvm::GuestMemfd> memory_;
};

// What a descriptor in KVM_SET_USER_MEMORY_REGION2 is.
kvm::PrivateMemory find_guest_memfd(u32 fd);

} // namespace ring3::shim
