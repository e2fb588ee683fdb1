// SPDX-License-Identifier: Apache-2.0
// Time is an input: everything in the hypervisor that asks "what time is it" asks one Clock, so that a
// deterministic mode is another Clock and nothing else.
#pragma once

#include "base/types.h"

namespace ring3::kvm {

class Clock {
 public:
  virtual ~Clock() = default;

  // Nanoseconds since an arbitrary fixed point; never goes back. Any thread.
  virtual u64 now_ns() const = 0;

  // Host wall-clock time, nanoseconds since 1970-01-01 UTC.
  virtual u64 wall_ns() const = 0;
};

// CLOCK_MONOTONIC and CLOCK_REALTIME.
class HostClock final : public Clock {
 public:
  u64 now_ns() const override;
  u64 wall_ns() const override;
};

} // namespace ring3::kvm
