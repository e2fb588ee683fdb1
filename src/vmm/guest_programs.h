// SPDX-License-Identifier: Apache-2.0
// The one program of ours that runs inside the guest. User machines have no compiler, so it is assembled here
// by hand.
#pragma once

#include "base/types.h"

#include <cstddef>
#include <vector>

namespace ring3::vmm {

// A static ELF64 executable: `report-result CODE` waits until the terminals at its file descriptors 2 and 1
// have sent everything, writes CODE (decimal) to port 0x5f0, and powers the machine off.
std::vector<std::byte> report_result_program();

} // namespace ring3::vmm
