// SPDX-License-Identifier: Apache-2.0
// Which CPUs the programs of bench/engine run on.
#pragma once

#include "engine_base.h"
#include <sched.h>

namespace bench {

// This thread, and the processes and threads it makes, are on the first `count` of the CPUs it may use, or as
// many as there are, while it lives.
class Cpus {
 public:
  explicit Cpus(unsigned count) {
    if (sched_getaffinity(0, sizeof before_, &before_) != 0) fail("sched_getaffinity");
    cpu_set_t some;
    CPU_ZERO(&some);
    for (unsigned cpu = 0; cpu < CPU_SETSIZE && found_ < count; ++cpu) {
      if (!CPU_ISSET(cpu, &before_)) continue;
      CPU_SET(cpu, &some);
      cpus_[found_++ % 2] = cpu;
    }
    if (sched_setaffinity(0, sizeof some, &some) != 0) fail("sched_setaffinity");
  }
  ~Cpus() { sched_setaffinity(0, sizeof before_, &before_); }
  Cpus(const Cpus&) = delete;
  Cpus& operator=(const Cpus&) = delete;

  unsigned count() const { return found_; }
  // The calling thread to the first or the second of two.
  void pin(unsigned which) const {
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpus_[which], &one);
    if (sched_setaffinity(0, sizeof one, &one) != 0) fail("sched_setaffinity");
  }

 private:
  cpu_set_t before_{};
  unsigned found_ = 0;
  unsigned cpus_[2] = {};
};

inline bool has_two_cpus() {
  cpu_set_t all;
  return sched_getaffinity(0, sizeof all, &all) == 0 && CPU_COUNT(&all) >= 2;
}

} // namespace bench
