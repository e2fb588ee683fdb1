// SPDX-License-Identifier: Apache-2.0
// For threads of the hypervisor's own.
#pragma once

#include <csignal>

namespace ring3::kvm {

// All signals are the VMM's: none shall be handled on a thread that it does not know. A thread made while one
// of these exists has them all blocked, but for those that its own instructions raise.
class SignalsBlocked {
 public:
  SignalsBlocked() {
    sigset_t all;
    ::sigfillset(&all);
    for (const int own : {SIGSEGV, SIGBUS, SIGFPE, SIGILL}) ::sigdelset(&all, own);
    ::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~SignalsBlocked() { ::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  sigset_t before_;
};

} // namespace ring3::kvm
