// SPDX-License-Identifier: Apache-2.0
// Copies from and to memory that the VMM may take away, for a process whose handler of SIGSEGV and SIGBUS is
// ours (shim/signals). Any thread.
#pragma once

#include "base/types.h"

#include <cstddef>

namespace ring3::kvm {

// memcpy. False: some of it cannot be read or written, and what comes before it may have been copied. A fault
// ends the process unless copy_faults_are_caught().
bool copy_recoverably(void* to, const void* from, std::size_t size);

// For the handler: if the fault at `rip` is one of these copies, where to go on.
bool copy_fault(u64& rip);

// Is there such a handler? Whoever installs it says so, once for ever.
bool copy_faults_are_caught();
void catch_copy_faults();

} // namespace ring3::kvm
