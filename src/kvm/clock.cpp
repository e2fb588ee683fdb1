// SPDX-License-Identifier: Apache-2.0
#include "kvm/clock.h"

#include "kvm/host_tsc.h"

#include <ctime>
#include <x86intrin.h>

namespace ring3::kvm {
namespace {

u64 read_clock(clockid_t id) {
  timespec t{};
  ::clock_gettime(id, &t);
  return static_cast<u64>(t.tv_sec) * 1'000'000'000u + static_cast<u64>(t.tv_nsec);
}

} // namespace

HostClock::HostClock() : host_tsc_(host_tsc_khz() != 0), tsc_khz_(host_tsc_ ? host_tsc_khz() : 1'000'000) {}

u64 HostClock::tsc() const { return host_tsc_ ? __rdtsc() : now_ns(); }
u64 HostClock::now_ns() const { return read_clock(CLOCK_MONOTONIC); }
u64 HostClock::wall_ns() const { return read_clock(CLOCK_REALTIME); }

} // namespace ring3::kvm
