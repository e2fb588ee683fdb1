// SPDX-License-Identifier: Apache-2.0
// Reads the counters that another process keeps of its vCPUs (record_format.h), while it goes on counting.
// The other process may be any: nothing in its file is believed unchecked.
#pragma once

#include "base/error.h"
#include "kvm/record_format.h"

#include <memory>
#include <vector>

namespace ring3::kvm {

struct SeenVcpu {
  u32 vm = 0, vcpu = 0;
  u64 executor = 0;                                    // what record->executor holds; 0: nothing
  std::unique_ptr<const record_format::Record> record; // a copy
};

struct SeenProcess {
  u32 process = 0;             // as it calls itself: the innermost PID namespace's number
  u32 unplaced = 0;            // vCPUs that it has beyond these
  std::vector<SeenVcpu> vcpus; // by VM and vCPU
};

// `fd` is open for reading; its position is not used. A file that is being made has no process yet. The
// error is about "its statistics".
Result<SeenProcess> read_vcpu_records(int fd);

// What is said of counters that this build does not know.
std::unexpected<Error> another_build();

} // namespace ring3::kvm
