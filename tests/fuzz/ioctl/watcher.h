// SPDX-License-Identifier: Apache-2.0
// The process that watches the one with the VMs: it notices crashes, hangs and leaks, and stops and continues
// it.
#pragma once

#include "record.h"

#include <sys/types.h>

namespace fuzz {

struct Limits {
  u64 operation_seconds = 30; // none takes longer, KVM_RUN included: it is kicked all the time
  u64 growth_kib = 65536;     // of resident memory, from when it was warm
  bool stop_and_continue = true;
};

// Until `child` ends. 0, or 1 after having said on standard error what went wrong.
int watch(pid_t child, Record& record, const Limits& limits, u64 seed);

// The latest operations of all threads, oldest first.
void print_operations(const Record& record);

} // namespace fuzz
