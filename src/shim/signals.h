// SPDX-License-Identifier: Apache-2.0
// Signals as a program that calls the kernel's KVM sees them: a handler never runs in the middle of KVM_RUN.
// It runs when KVM_RUN has made up its mind and before the call returns, which is then -EINTR.
//
// The program's handlers are called through one of ours. While this thread is in the guest, the signal is put
// off, all others are held, and the vCPU is asked to come back. Faults of the hypervisor's own accesses to
// the program's memory never reach the program.
#pragma once

#include "base/types.h"
#include "x86/api/vcpu.h"

#include <csignal>
#include <mutex>
#include <pthread.h>

namespace ring3::shim {

// While one exists, the program's handlers wait on this thread, as they do for a system call: they may use
// what is locked here. Nests. Costs nothing unless a signal comes; then the destructor calls the handlers,
// and may not return.
class LikeASystemCall {
 public:
  LikeASystemCall();
  ~LikeASystemCall() noexcept(false);
  LikeASystemCall(const LikeASystemCall&) = delete;
  LikeASystemCall& operator=(const LikeASystemCall&) = delete;
};

// Between these two, around a fork(), the program's handlers wait as in LikeASystemCall, and nobody changes
// what is kept here. The child has no other threads, and signals that were put off are the parent's.
void lock_signals_for_fork();
void unlock_signals_after_fork(bool in_child);

// sigaction() for the program: what it sets is kept here, and what it asks for is what it set. 0, or -1 with
// errno.
int set_program_action(int number, const struct sigaction* action, struct sigaction* old);

// pthread_sigmask() for the program. The signals of faults are never blocked.
int set_program_mask(int how, const sigset_t* set, sigset_t* old);

// Makes our handlers for faults. Idempotent; before the first ioctl.
void install_fault_handlers();

// Calls body(argument) on behalf of the vCPU whose thread this is, under its lock, with signals put off and
// the loss of guest memory caught: -EFAULT when memory of the program that the guest's memory is made of is
// not there. `mask`: what KVM_SET_SIGNAL_MASK gave, or null.
int stay_in_guest(x86::Vcpu& vcpu, std::mutex& lock, const sigset_t* mask, int (*body)(void*),
                  void* argument);

// Around KVM_RUN: asynchronous cancellation (pthread_setcanceltype) waits until the call is over. The
// destructor may not return.
class CancellationHeld {
 public:
  CancellationHeld();
  ~CancellationHeld() noexcept(false);
  CancellationHeld(const CancellationHeld&) = delete;
  CancellationHeld& operator=(const CancellationHeld&) = delete;

 private:
  int type_ = 0;
};

// pthread_cancel(): also ends a KVM_RUN of that thread if it asked to be cancelled at any time.
int cancel_thread(pthread_t thread);

} // namespace ring3::shim
