// SPDX-License-Identifier: Apache-2.0
// A clock that stands still until a test moves it.
#pragma once

#include "kvm/clock.h"

namespace ring3 {

class FakeClock final : public kvm::Clock {
 public:
  u64 now_ns() const override { return now; }
  u64 wall_ns() const override { return wall; }
  void advance(u64 ns) {
    now += ns;
    wall += ns;
  }
  u64 now = 1'000'000'000;
  u64 wall = 1'700'000'000ULL * 1'000'000'000; // 2023-11-14 22:13:20 UTC, a Tuesday
};

} // namespace ring3
