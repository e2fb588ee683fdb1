// SPDX-License-Identifier: Apache-2.0
#include "kvm/host_tsc.h"

#include <cmath>
#include <cpuid.h>
#include <ctime>
#include <fstream>
#include <string>
#include <x86intrin.h>

namespace ring3::kvm {

namespace {

struct Sample {
  u64 tsc = 0;
  u64 ns = 0;
};

u64 raw_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC_RAW, &t); // not slewed: it goes exactly like the counter
  return static_cast<u64>(t.tv_sec) * 1'000'000'000 + static_cast<u64>(t.tv_nsec);
}

// The pair read closest together of a few.
Sample take_sample() {
  Sample best;
  u64 least = ~u64{0};
  for (unsigned i = 0; i < 16; ++i) {
    const u64 before = __rdtsc();
    const u64 ns = raw_ns();
    const u64 after = __rdtsc();
    if (after - before >= least) continue;
    least = after - before;
    best = {before + least / 2, ns};
  }
  return best;
}

// At load: by the time somebody asks, some of the interval has passed.
const Sample process_start = take_sample();

bool usable() {
  unsigned a, b, c, d = 0;
  constexpr unsigned invariant = 1u << 8;
  if (__get_cpuid(0x80000007, &a, &b, &c, &d) == 0 || (d & invariant) == 0) return false;
  std::ifstream in("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  std::string source;
  // In a container the file may be missing; the processor's word is taken then.
  return !(in >> source) || source == "tsc" || source.starts_with("kvm-clock") ||
         source.starts_with("hyperv");
}

// The kernel's own figure, which it gives away as a processor's frequency where that is constant.
double kernel_khz() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    const std::size_t colon = line.find(':');
    if (line.starts_with("cpu MHz") && colon != std::string::npos) {
      return std::strtod(line.c_str() + colon + 1, nullptr) * 1000;
    }
  }
  return 0;
}

u64 measure() {
  if (!usable()) return 0;
  constexpr u64 interval_ns = 5'000'000; // with readings good to 30 ns: 6 parts in a million
  const u64 passed = raw_ns() - process_start.ns;
  if (passed < interval_ns) {
    const timespec rest{0, static_cast<long>(interval_ns - passed)};
    nanosleep(&rest, nullptr);
  }
  const Sample now = take_sample();
  const double khz =
      static_cast<double>(now.tsc - process_start.tsc) * 1e6 / static_cast<double>(now.ns - process_start.ns);
  const double kernel = kernel_khz();
  constexpr double agreement = 50e-6;
  return static_cast<u64>(std::llround(std::abs(kernel / khz - 1) < agreement ? kernel : khz));
}

} // namespace

u64 host_tsc_khz() {
  static const u64 khz = measure();
  return khz;
}

} // namespace ring3::kvm
