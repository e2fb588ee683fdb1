// SPDX-License-Identifier: Apache-2.0
// The two address spaces of device accesses.
#pragma once

#include "base/types.h"

namespace ring3::kvm {

enum class IoSpace : u8 { mmio, pio };

} // namespace ring3::kvm
