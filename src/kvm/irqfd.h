// SPDX-License-Identifier: Apache-2.0
// KVM_IRQFD (api.rst 4.75): eventfds that raise interrupts of the guest.
//
// A thread of its own waits for all eventfds of a VM. It is made with the first assignment and ends with this
// object. A child process has no such thread: after fork() nothing is served there, and all calls but the
// destructor fail with EIO, as KVM's do in a process that did not create the VM.
//
// Resampling (KVM_IRQFD_FLAG_RESAMPLE) is for level-triggered interrupts: the line stays up until the guest
// has acknowledged the interrupt. All such eventfds of one GSI share one holder of the line. The interrupt
// chips ask watches(), let the line go, and call acknowledged(), which signals the resamplefds; the owner of
// the interrupt asserts it again if it still has work.
//
// One difference from the kernel: the count that an eventfd already has when it is assigned is taken from it,
// not only looked at.
#pragma once

#include "kvm/eventfd.h"
#include "kvm/published.h"

#include <functional>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <pthread.h>
#include <sys/types.h>
#include <unordered_map>
#include <vector>

namespace ring3::kvm {

class IrqFds {
 public:
  enum class Source : u8 {
    edge,      // a pulse: the line goes up and down at once
    resampled, // the line goes up, and down when the guest acknowledges
  };
  // Drives the line of a GSI. Called from the thread, and from control(), with this object's lock held.
  using SetLine = std::function<void(u32 gsi, bool level, Source source)>;
  // The set of GSIs for which watches() is true has changed. Called from control(), like SetLine.
  using WatchesChanged = std::function<void()>;

  IrqFds(SetLine set_line, WatchesChanged watches_changed);
  ~IrqFds();
  IrqFds(const IrqFds&) = delete;
  IrqFds& operator=(const IrqFds&) = delete;

  // 0 or -errno. Assigning: EINVAL for unknown flags or a descriptor that is no eventfd, EBADF, EBUSY for an
  // eventfd that is assigned already, ENOMEM without the means for the thread. Deassigning something that is
  // not assigned succeeds, as in KVM. When a deassignment returns, the eventfd raises no interrupt any more.
  // That the VM has interrupt chips is the caller's to check. Any thread, without locks that SetLine takes.
  int control(const kvm_irqfd& args);

  // What the interrupt chips ask and say. Any thread, no locks: they may hold theirs.
  bool watches(u32 gsi) const;
  void acknowledged(u32 gsi) const;

 private:
  struct Binding {
    u32 gsi;
    bool resampled;
    EventFd event;
  };
  struct Resampler {
    u32 gsi;
    u64 binding;
    std::shared_ptr<const EventFd> event;
  };
  using Resamplers = std::vector<Resampler>; // by GSI

  int assign(const kvm_irqfd& args);
  int deassign(const kvm_irqfd& args);
  void remove_resampler(u64 binding, u32 gsi);
  int start();
  void serve();
  void take_signal(u64 binding);

  const SetLine set_line_;
  const WatchesChanged watches_changed_;
  const pid_t owner_;

  std::mutex lock_;
  std::unordered_map<u64, Binding> bindings_; // by a number that is never used again
  u64 next_binding_ = 1;
  int epoll_ = -1;
  int stop_ = -1; // an eventfd that ends the thread
  pthread_t thread_{};
  bool started_ = false;
  Published<Resamplers> resamplers_;
};

} // namespace ring3::kvm
