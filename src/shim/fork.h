// SPDX-License-Identifier: Apache-2.0
// fork() and what this library keeps: the child gets everything whole, and handlers of signals never run
// while the locks are held for it.
#pragma once

namespace ring3::shim {

// Registers with the C library (pthread_atfork). Once; as early as possible, so that it is the last before a
// fork and the first after it.
void watch_forks();

} // namespace ring3::shim
