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

  // The counter that guests' time stamp counters are derived from, and its frequency, which never changes.
  // Unless a clock says otherwise: its own nanoseconds.
  virtual u64 tsc() const { return now_ns(); }
  virtual u64 tsc_khz() const { return 1'000'000; }
  // tsc() is what the host's RDTSC reads.
  virtual bool tsc_is_host() const { return false; }
};

// CLOCK_MONOTONIC and CLOCK_REALTIME; and the host's time stamp counter where that is a clock.
class HostClock final : public Clock {
 public:
  HostClock();
  u64 now_ns() const override;
  u64 wall_ns() const override;
  u64 tsc() const override;
  u64 tsc_khz() const override { return tsc_khz_; }
  bool tsc_is_host() const override { return host_tsc_; }

 private:
  bool host_tsc_;
  u64 tsc_khz_;
};

} // namespace ring3::kvm
