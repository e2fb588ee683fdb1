// SPDX-License-Identifier: Apache-2.0
// What `ring3 exec --stats FILE` asks for: when a VM ends, or the process does, a line of JSON with what its
// counters (kvm/stats.h) say is appended to the file.
#pragma once

#include "x86/api/vm.h"

namespace ring3::shim {

// Nothing happens unless RING3_STATS names a file. Any thread; the VM may not end before forget_vm().
void watch_vm(x86::Vm& vm);
// The VM is about to end: reports it.
void report_vm(x86::Vm& vm);
// The end of a VM that is not this process's: a parent's, from before fork().
void forget_vm(x86::Vm& vm);

} // namespace ring3::shim
