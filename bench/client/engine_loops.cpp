// SPDX-License-Identifier: Apache-2.0
// The program of bench/engine: prints "NAME NANOSECONDS" for each loop, where NANOSECONDS are those of one
// iteration by CLOCK_MONOTONIC; or "NAME - REASON" where the processor lacks what the loop needs; and "end"
// when all are done.
//
// The environment's NAMES=NAME,NAME chooses some; a guest's kernel makes it from its command line.
//
// Numbers of iterations are fixed: 50 to 150 ms natively, and less where TCG or ring3 would take more than a
// few seconds.
#include "engine_loops.h"
#include "engine_cpus.h"

namespace {

using namespace bench;

struct Loop {
  std::string_view name;
  const char* what; // one iteration
  double (*run)(Count);
  Count count;
  const char* feature = nullptr; // that there must be
  bool (*present)() = nullptr;
  unsigned cpus = 1; // that a guest shall have
};

bool has_avx2() { return __builtin_cpu_supports("avx2") != 0; }
bool has_fma() { return __builtin_cpu_supports("fma") != 0; }

constexpr Loop loops[] = {
    {"integer", "10 integer instructions, registers only", integer, 80'000'000},
    {"load-store", "8 integer instructions, one load, one store", load_store, 120'000'000},
    {"branches", "3 conditional jumps that depend on data", branches, 120'000'000},
    {"sort", "quicksort of 64 Ki 32-bit numbers", sort, 30},
    {"calls", "2 calls, one in the other, and returns", calls, 50'000'000},
    {"indirect", "an indirect jump to one of 4 targets", indirect, 80'000'000},
    {"chase-l1", "a load whose address is the last one's result, in 16 KiB", chase_l1, 100'000'000},
    {"chase-64m", "the same over 64 MiB", chase_64m, 1'000'000},
    {"double", "2 mulsd, 2 addsd", scalar_double, 60'000'000},
    {"sse2-double", "2 mulpd, 2 addpd", sse2_double, 60'000'000},
    {"sse2-integer", "6 packed integer instructions, SSE2", sse2_integer, 60'000'000},
    {"avx2-integer", "6 packed integer instructions, AVX2", avx2_integer, 40'000'000, "avx2", has_avx2},
    {"fma", "2 vfmadd213pd of 256 bits", fma, 40'000'000, "fma", has_fma},
    {"x87", "fmul, fadd, fsub", x87, 10'000'000},
    {"rep-movsb", "4 KiB", rep_movsb, 300'000},
    {"rep-stosq", "4 KiB", rep_stosq, 2'000'000},
    {"lock-xadd", "one", lock_xadd, 20'000'000},
    {"system-call", "getppid", system_call, 1'000'000},
    {"pipe", "a byte to another process and back", ping_pong, 20'000},
    {"fork", "fork, _exit, waitpid", fork_wait, 1'000},
    {"page-fault", "a page of 4 KiB: mmap of 16 MiB, a store to each page, munmap", page_faults, 20'480},
    {"self-modify", "a new constant stored into a function, and called", self_modify, 200'000},
    {"cpuid", "leaf 0", cpuid, 50'000},
    {"rdmsr", "ioctl MTRRIOC_GET_ENTRY of a range that is not in use: a system call and one RDMSR", read_msr,
     100'000, "range that is not in use in /proc/mtrr", has_free_mtrr},
    {"thread-switch", "two threads on one CPU wake each other by futex: there and back", thread_switch,
     20'000},
    {"sleep", "clock_nanosleep of 20 us: the timer's interrupt finds the CPU halted", short_sleep, 1'000},
    {"alarm", "a timer set 5 us ahead, and its signal: the interrupt finds the CPU in a loop", alarm_signal,
     5'000},
    {"ipi-running", "membarrier, which interrupts a thread that runs on the other CPU", ipi_running, 20'000,
     "second CPU", has_two_cpus, 2},
    {"tlb-shootdown", "mprotect of a page while a thread runs on the other CPU", tlb_shootdown, 20'000,
     "second CPU", has_two_cpus, 2},
    {"wake-halted", "threads on two CPUs wake each other by futex: there and back", wake_halted, 5'000,
     "second CPU", has_two_cpus, 2},
};

void measure(const Loop& loop) {
  const int width = static_cast<int>(loop.name.size());
  if (loop.present != nullptr && !loop.present()) {
    std::printf("%.*s - no %s\n", width, loop.name.data(), loop.feature);
  } else {
    std::printf("%.*s %.3f\n", width, loop.name.data(), loop.run(loop.count));
  }
  std::fflush(stdout); // before the next one forks
}

} // namespace

int main(int argc, char** argv) {
  const bool is_init = getpid() == 1;
  if (!is_init && argc > 1) {
    if (argc != 2 || std::string_view(argv[1]) != "--list") {
      std::fprintf(stderr, "Usage: NAMES=NAME,... %s [--list]\n", argv[0]);
      return 2;
    }
    for (const Loop& loop : loops) print_name(loop.name, loop.cpus, loop.what);
    return 0;
  }
  const char* names = std::getenv("NAMES");
  for (const Loop& loop : loops) {
    if (wanted(loop.name, names)) measure(loop);
  }
  return end(is_init);
}
