// SPDX-License-Identifier: Apache-2.0
#include "shim/fork.h"

#include "shim/descriptors.h"
#include "shim/signals.h"

#include <pthread.h>

namespace ring3::shim {

void watch_forks() {
  // A handler that runs in the middle may close a descriptor, which every handler may.
  static const int registered = pthread_atfork(
      [] {
        lock_signals_for_fork();
        lock_descriptors_for_fork();
      },
      [] {
        unlock_descriptors_after_fork(false);
        unlock_signals_after_fork(false);
      },
      [] {
        unlock_descriptors_after_fork(true);
        unlock_signals_after_fork(true);
      });
  static_cast<void>(registered);
}

} // namespace ring3::shim
