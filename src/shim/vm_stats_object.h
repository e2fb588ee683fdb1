// SPDX-License-Identifier: Apache-2.0
// The descriptor of a VM's statistics (KVM_GET_STATS_FD): a file that can only be read, whose page counters
// are made when somebody reads them. Who reads by a way that the library does not stand before sees those of
// the last time, and who reads when the VM is gone, the last numbers. KVM's keeps the VM. This one could not:
// the VM has the same file open, and that descriptor is one of these as soon as the client calls it so.
#pragma once

#include "shim/descriptors.h"
#include "shim/vm_object.h"

namespace ring3::shim {

class VmStatsObject final : public Object {
 public:
  explicit VmStatsObject(std::weak_ptr<VmObject> vm) : vm_(std::move(vm)) {}

  // KVM_GET_STATS_FD: a descriptor or -errno.
  static long create(const std::shared_ptr<VmObject>& vm);

  long ioctl(unsigned long request, unsigned long argument) override;
  s64 seek(int fd) const override;
  int before_read(u64 offset, u64 size) override;

 private:
  const std::weak_ptr<VmObject> vm_;
};

} // namespace ring3::shim
