// SPDX-License-Identifier: Apache-2.0
// What the loops of bench/engine have in common. Each of the functions at the end runs its loop `count` times
// and returns the nanoseconds of one iteration.
#pragma once

#include "engine_pages.h"
#include <algorithm>
#include <cstddef>

namespace bench {

using Count = std::uint64_t;

// Nanoseconds of one iteration: `body(n)` runs n of them. It is done in parts, of which the fastest counts:
// what else runs on the machine only makes them slower. One part runs before, so that caches are warm and
// code translated.
template <class F> double fastest(Count count, F&& body, Count parts = 5) {
  const Count n = std::max<Count>(count / parts, 1);
  body(std::max<Count>(n / 4, 1));
  std::uint64_t best = UINT64_MAX;
  for (Count i = 0; i < parts; ++i) {
    const std::uint64_t start = now_ns();
    body(n);
    best = std::min(best, now_ns() - start);
  }
  return static_cast<double>(best) / static_cast<double>(n);
}

// engine_instructions.cpp
double integer(Count count);
double load_store(Count count);
double branches(Count count);
double calls(Count count);
double indirect(Count count);
double chase_l1(Count count);
double chase_64m(Count count);
double rep_movsb(Count count);
double rep_stosq(Count count);
double lock_xadd(Count count);
double scalar_double(Count count);
double sse2_double(Count count);
double sse2_integer(Count count);
double avx2_integer(Count count);
double fma(Count count);
double x87(Count count);

// engine_system.cpp
double sort(Count count);
double system_call(Count count);
double ping_pong(Count count);
double fork_wait(Count count);
double page_faults(Count count);
double self_modify(Count count);
double cpuid(Count count);

// engine_scheduling.cpp
double thread_switch(Count count);
double short_sleep(Count count);
double alarm_signal(Count count);
double read_msr(Count count);
double ipi_running(Count count);
double tlb_shootdown(Count count);
double wake_halted(Count count);
bool has_free_mtrr();

} // namespace bench
