// SPDX-License-Identifier: Apache-2.0
// An eventfd of the VMM that the hypervisor signals or reads (eventfd(2); api.rst 4.59, 4.75).
//
// We hold a duplicate of the VMM's descriptor, as the kernel holds a reference to the eventfd. What differs:
// the kernel lets go of an irqfd when the last descriptor is closed, and our duplicate is one, so an eventfd
// that is closed without KVM_IRQFD_FLAG_DEASSIGN stays assigned until the VM ends. Nobody can signal it then.
#pragma once

#include "base/types.h"

namespace ring3::kvm {

class EventFd {
 public:
  EventFd() = default;
  ~EventFd();
  EventFd(EventFd&& other) noexcept;
  EventFd& operator=(EventFd&& other) noexcept;

  // Takes a duplicate. 0 or -errno: EBADF for what is not open, EINVAL for what is not an eventfd, EMFILE
  // without a free descriptor.
  static int open(int fd, EventFd& out);
  // Which eventfd a descriptor is; duplicates have the same identity. The same errors.
  static int identify(int fd, u64& identity);

  int fd() const { return fd_; }
  u64 identity() const { return identity_; }

  // Adds 1 as eventfd_signal() in the kernel: a counter at its maximum stays there and nobody waits. Any
  // thread. (The wait could happen in one case: the counter is 2^64 - 3, and two signal at that moment. Only
  // a VMM that wrote this value itself gets there.)
  void signal() const;
  // Takes the count (or 1 of it, with EFD_SEMAPHORE); false if there was none. Never waits.
  bool take() const;

 private:
  int fd_ = -1;
  u64 identity_ = 0;
};

} // namespace ring3::kvm
