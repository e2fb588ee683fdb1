// SPDX-License-Identifier: Apache-2.0
// How long a thread was ready to run while the host ran something else: what a guest calls stolen time.
#pragma once

#include "base/types.h"

#include <optional>

namespace ring3::kvm {

struct RunDelay {
  u64 thread = 0; // never the same for two threads of the process, also when one has ended
  u64 ns = 0;     // since the thread started

  bool operator==(const RunDelay&) const = default;
};

// Of the calling thread, from its schedstat file, which stays open for as long as the thread runs: one system
// call. Nothing where the host's kernel keeps no such statistics.
std::optional<RunDelay> thread_run_delay();

} // namespace ring3::kvm
