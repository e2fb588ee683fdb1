// SPDX-License-Identifier: Apache-2.0
// Finds the processes whose vCPUs are ring3's, and reads what these have done so far (kvm/record_reader.h).
// The processes notice nothing of it.
#pragma once

#include "base/error.h"
#include "kvm/record_reader.h"

#include <string>
#include <sys/types.h>
#include <vector>

namespace ring3::vmm {

struct ProcessStats {
  pid_t pid = 0;
  std::string command; // the kernel's short name of the program, printable
  kvm::SeenProcess seen;
};

// One process. An error: there is none of this number, it may not be looked at, or it has no such vCPUs.
Result<ProcessStats> process_stats(pid_t pid);

// All that may be looked at, by their numbers.
struct AllProcessStats {
  std::vector<ProcessStats> processes;
  std::vector<Error> unreadable; // of processes that have statistics, but not such as can be read
};
AllProcessStats all_process_stats();

} // namespace ring3::vmm
