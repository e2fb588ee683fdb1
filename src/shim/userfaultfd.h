// SPDX-License-Identifier: Apache-2.0
// The program's own calls of userfaultfd(2), of which the guest's asynchronous page faults need to know.
#pragma once

namespace ring3::shim {

// ioctl(..., request, argument) of a descriptor that is not ours has succeeded. `request` may be any.
void note_userfaultfd(unsigned long request, unsigned long argument);

} // namespace ring3::shim
