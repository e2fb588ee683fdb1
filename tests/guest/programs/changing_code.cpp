// SPDX-License-Identifier: Apache-2.0
// The program of tests/guest/changing_code.sh: does each of these in a process of its own and prints
// "NAME ok NANOSECONDS", or "NAME wrong: WHY"; and "end" when all are done. The right answers are any
// processor's, so it runs natively too.
//
// The environment's NAMES=NAME,NAME chooses some; a guest's kernel makes it from its command line.
#include "changing_code.h"
#include <sys/wait.h>

namespace {

using namespace changing;

struct Check {
  std::string_view name;
  const char* what; // one of `count`
  double (*run)(Count);
  Count count;
  unsigned cpus = 1;
};

constexpr Check checks[] = {
    {"rewrite-constant", "a constant stored into a function, which is called", rewrite_constant, 300'000},
    {"rewrite-body", "a function replaced by one of another shape, and called 1 or 40 times", rewrite_body,
     60'000},
    {"store-beside", "a store into the page of the loop that stores; one in 30 into the loop itself",
     store_beside, 2'000'000},
    {"map-call-unmap", "mmap, 1 to 4 pages of functions written, mprotect, calls of each, munmap",
     map_call_unmap, 8'000},
    {"other-cpu", "a function rewritten by the other CPU, and called behind CPUID", other_cpu, 20'000, 2},
    {"other-cpu-iret", "a function rewritten while the other CPU calls it, and called behind IRET",
     other_cpu_iret, 20'000, 2},
    {"other-cpu-running", "a function rewritten while the other CPU calls it, and membarrier",
     other_cpu_running, 10'000, 2},
    {"aliases", "a call of one page at the next of 8192 addresses; rewritten now and then", aliases,
     2'000'000},
    {"endless", "a new function of 660 bytes written into 64 MiB, and called 20 times", endless, 430'000},
};

const char* current = "";

void run(const Check& check) {
  current = check.name.data();
  const pid_t child = fork();
  if (child < 0) bench::fail("fork");
  if (child == 0) {
    const double ns = check.run(check.count);
    std::printf("%s ok %.1f\n", current, ns);
    std::fflush(stdout);
    _exit(0);
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) bench::fail("waitpid");
  if (WIFSIGNALED(status)) std::printf("%s wrong: signal %d\n", current, WTERMSIG(status));
  std::fflush(stdout);
}

} // namespace

void changing::wrong(const char* what, std::uint64_t value, std::uint64_t expected) {
  std::printf("%s wrong: %s is %#llx, not %#llx\n", current, what, static_cast<unsigned long long>(value),
              static_cast<unsigned long long>(expected));
  std::fflush(stdout);
  _exit(4);
}

int main(int argc, char** argv) {
  const bool is_init = getpid() == 1;
  if (!is_init && argc > 1) {
    if (argc != 2 || std::string_view(argv[1]) != "--list") {
      std::fprintf(stderr, "Usage: NAMES=NAME,... %s [--list]\n", argv[0]);
      return 2;
    }
    for (const Check& check : checks) bench::print_name(check.name, check.cpus, check.what);
    return 0;
  }
  const char* names = std::getenv("NAMES");
  for (const Check& check : checks) {
    if (bench::wanted(check.name, names)) run(check);
  }
  return bench::end(is_init);
}
