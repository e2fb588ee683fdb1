// SPDX-License-Identifier: Apache-2.0
#include "watcher.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/wait.h>
#include <unistd.h>

namespace fuzz {

namespace {

void sleep_ms(long ms) {
  const timespec t{ms / 1000, ms % 1000 * 1'000'000};
  nanosleep(&t, nullptr);
}

void print_seed(const Record& record, u64 seed) {
  std::fprintf(stderr,
               "ioctl_fuzz: with --seed %llu in run %llu (--first-run %llu --runs 1 has the same calls)\n",
               seed + 0ULL, record.run.load() + 0ULL, record.run.load() + 0ULL);
}

const ThreadRecord* stuck(const Record& record, u64 seconds) {
  const u64 now = now_ns();
  for (const ThreadRecord& t : record.threads) {
    const u64 since = t.busy_since.load(std::memory_order_acquire);
    if (since != 0 && now > since && now - since > seconds * 1'000'000'000) return &t;
  }
  return nullptr;
}

// A signal by which the child asks for nothing and is told nothing: guests must not notice.
void stop_and_continue(pid_t child, Random& random) {
  kill(child, SIGSTOP);
  sleep_ms(static_cast<long>(1 + random.below(4)));
  kill(child, SIGCONT);
}

int verdict(const Record& record, const Limits& limits, int status, u64 seed) {
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) {
    const u64 grown = record.last_kib.load() > record.first_kib.load()
                          ? record.last_kib.load() - record.first_kib.load()
                          : 0;
    const bool descriptors = record.last_descriptors.load() > record.first_descriptors.load();
    if (grown <= limits.growth_kib && !descriptors) return 0;
    std::fprintf(stderr,
                 "ioctl_fuzz: a leak: resident memory from %llu to %llu KiB, descriptors from %llu to %llu\n",
                 record.first_kib.load() + 0ULL, record.last_kib.load() + 0ULL,
                 record.first_descriptors.load() + 0ULL, record.last_descriptors.load() + 0ULL);
    print_seed(record, seed);
    return 1;
  }
  if (record.failure[0] != '\0') std::fprintf(stderr, "ioctl_fuzz: %s\n", record.failure);
  if (WIFSIGNALED(status)) {
    std::fprintf(stderr, "ioctl_fuzz: ended by signal %d (%s)\n", WTERMSIG(status),
                 strsignal(WTERMSIG(status)));
  } else if (record.failure[0] == '\0') {
    std::fprintf(stderr, "ioctl_fuzz: ended with exit code %d\n", WEXITSTATUS(status));
  }
  print_seed(record, seed);
  print_operations(record);
  return 1;
}

} // namespace

void print_operations(const Record& record) {
  for (const ThreadRecord& t : record.threads) {
    const u64 n = t.count.load(std::memory_order_acquire);
    const u64 since = t.busy_since.load();
    if (n == 0 && since == 0) continue;
    std::fprintf(stderr, "thread %d, after %llu operations:\n", t.thread.load(), n + 0ULL);
    const u64 past = since != 0 ? n + 1 : n;
    for (u64 i = past > ThreadRecord::kept ? past - ThreadRecord::kept : 0; i < past; ++i) {
      const Operation& o = t.latest[i % ThreadRecord::kept];
      std::fprintf(stderr, "  %s(%lld, %#llx)", o.name == nullptr ? "?" : o.name, static_cast<long long>(o.a),
                   o.b + 0ULL);
      if (i == n) {
        std::fprintf(stderr, " under way\n");
      } else if (o.result < 0) {
        std::fprintf(stderr, " = -1, %s\n", strerrorname_np(o.error));
      } else {
        std::fprintf(stderr, " = %ld\n", o.result);
      }
    }
  }
}

int watch(pid_t child, Record& record, const Limits& limits, u64 seed) {
  Random random(seed);
  u64 seen = 0;
  u64 seen_at = now_ns();
  for (;;) {
    int status = 0;
    const pid_t ended = waitpid(child, &status, WNOHANG);
    if (ended == child) return verdict(record, limits, status, seed);
    if (ended < 0) return 1;
    sleep_ms(20);
    if (record.operations.load() != seen) {
      seen = record.operations.load();
      seen_at = now_ns();
    }
    const ThreadRecord* const t = stuck(record, limits.operation_seconds);
    // Or between the operations: when a VM ends, say.
    const bool idle = now_ns() - seen_at > limits.operation_seconds * 1'000'000'000;
    if (t != nullptr || idle) {
      std::fprintf(stderr, "ioctl_fuzz: thread %d does not come back\n",
                   t != nullptr ? t->thread.load() : child);
      print_seed(record, seed);
      print_operations(record);
      if (std::getenv("RING3_FUZZ_KEEP") != nullptr) pause(); // for a debugger
      kill(child, SIGABRT);
      sleep_ms(2000);
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      return 1;
    }
    if (limits.stop_and_continue && random.one_in(8)) stop_and_continue(child, random);
  }
}

} // namespace fuzz
