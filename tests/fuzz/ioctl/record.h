// SPDX-License-Identifier: Apache-2.0
// What the threads do, in memory that the watching process shares: after a crash or a hang it says what was
// going on.
#pragma once

#include "random.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <ctime>
#include <sys/types.h>

namespace fuzz {

inline u64 now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<u64>(t.tv_sec) * 1'000'000'000 + static_cast<u64>(t.tv_nsec);
}

struct Operation {
  const char* name = nullptr; // a literal: the watcher is forked from this program
  u64 a = 0, b = 0;
  long result = 0;
  int error = 0;
};

// One thread's latest operations. Written by it, read by others when it is dead or stuck.
struct ThreadRecord {
  static constexpr unsigned kept = 24;
  std::atomic<u64> busy_since{0}; // 0: between two operations
  std::atomic<u64> count{0};
  std::atomic<pid_t> thread{0};
  std::array<Operation, kept> latest{};

  void begin(const char* name, u64 a, u64 b) {
    latest[count.load(std::memory_order_relaxed) % kept] = {name, a, b, 0, -1};
    busy_since.store(now_ns(), std::memory_order_release);
  }
  void end(long result) {
    Operation& o = latest[count.load(std::memory_order_relaxed) % kept];
    o.result = result;
    o.error = result < 0 ? errno : 0;
    busy_since.store(0, std::memory_order_release);
    count.fetch_add(1, std::memory_order_release);
  }
};

struct Record {
  static constexpr unsigned max_threads = 16;
  std::array<ThreadRecord, max_threads> threads{};
  std::atomic<u64> run{0}; // the seed's run that is under way
  std::atomic<u64> operations{0};
  std::atomic<u64> refused{0}; // operations that gave an errno
  std::atomic<u64> entries{0}; // KVM_RUN
  std::array<std::atomic<u64>, 64> exits{};
  std::atomic<u64> first_kib{0}, last_kib{0}; // resident memory when warm, and at the end
  std::atomic<u64> first_descriptors{0}, last_descriptors{0};
  char failure[512] = {}; // the reason, of a failure that the program itself has found
};

// Says why and ends the process; the watcher reports.
[[noreturn]] [[gnu::format(printf, 2, 3)]] void fail(Record& record, const char* format, ...);

} // namespace fuzz
