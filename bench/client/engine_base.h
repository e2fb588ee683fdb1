// SPDX-License-Identifier: Apache-2.0
// What the programs of bench/engine have in common. Natively they are ordinary programs, in a Linux guest
// /init (process 1), which powers off at the end.
#pragma once

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string_view>
#include <sys/reboot.h>
#include <termios.h>
#include <unistd.h>

namespace bench {

inline std::uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}

[[noreturn]] inline void fail(const char* what) {
  std::perror(what);
  std::exit(3);
}

// Pseudo-random numbers that are the same in each run (xorshift64).
struct Random {
  std::uint64_t state = 0x9e3779b97f4a7c15;
  std::uint64_t operator()() {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state;
  }
};

// Whether `list` has it, NAME,NAME,..., or there is no list.
inline bool wanted(std::string_view name, const char* list) {
  if (list == nullptr || *list == 0) return true;
  for (std::string_view rest = list; !rest.empty();) {
    const std::size_t comma = rest.find(',');
    if (rest.substr(0, comma) == name) return true;
    rest.remove_prefix(comma == std::string_view::npos ? rest.size() : comma + 1);
  }
  return false;
}

// A line of --list.
inline void print_name(std::string_view name, unsigned cpus, const char* what) {
  std::printf("%-14.*s %u  %s\n", static_cast<int>(name.size()), name.data(), cpus, what);
}

// The last line, which says that nothing is missing.
inline int end(bool is_init) {
  std::puts("end");
  std::fflush(stdout);
  if (!is_init) return 0;
  tcdrain(STDOUT_FILENO);
  reboot(RB_POWER_OFF);
  fail("reboot");
}

} // namespace bench
