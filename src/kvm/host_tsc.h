// SPDX-License-Identifier: Apache-2.0
// The host's time stamp counter, as far as it can serve as a clock.
#pragma once

#include "base/types.h"

namespace ring3::kvm {

// Ticks a millisecond; 0 if the counter is not a clock here (not invariant, or the kernel does not trust it).
// The first call may take some milliseconds: there is no way to ask, so it is measured.
u64 host_tsc_khz();

} // namespace ring3::kvm
