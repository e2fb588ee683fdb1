// SPDX-License-Identifier: Apache-2.0
// Loops about what comes between a program's instructions: switches, timers, interrupts of other CPUs, MSRs.
#include "engine_cpus.h"
#include "engine_loops.h"
#include <asm/mtrr.h>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <linux/futex.h>
#include <linux/membarrier.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <thread>

namespace bench {

namespace {

// --- threads that wait for each other ---

// A number that one thread waits for and another one sets.
class Turn {
 public:
  static constexpr int over = -1;

  int wait_while(int old) {
    int now = old;
    while ((now = word_.load()) == old)
      syscall(SYS_futex, &word_, FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    return now;
  }
  void set(int value) {
    word_.store(value);
    syscall(SYS_futex, &word_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }

 private:
  std::atomic<int> word_{0};
};

// This thread and another one sleep and wake each other; `start` is what the other does first.
template <class F> double wake_in_turn(Count count, F&& start) {
  Turn there;
  Turn back;
  std::thread other([&] {
    start();
    for (int seen = 0; (seen = there.wait_while(seen)) != Turn::over;) back.set(seen);
  });
  int number = 0;
  const double ns = fastest(count, [&](Count n) {
    for (Count i = 0; i < n; ++i) {
      const int before = number++;
      there.set(number);
      back.wait_while(before);
    }
  });
  there.set(Turn::over);
  other.join();
  return ns;
}

// A thread that runs on the second of two CPUs, in user space, while it lives. The other stays on the first.
class Runner {
 public:
  Runner() {
    cpus_.pin(0);
    thread_ = std::thread([this] {
      cpus_.pin(1);
      started_ = true;
      while (!over_.load(std::memory_order_relaxed))
        turns_.store(turns_.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
    });
    while (!started_) sched_yield();
  }
  ~Runner() {
    over_ = true;
    thread_.join();
  }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  // Returns when it has been seen to run: while something else has its CPU, there is nothing to interrupt.
  void meet() const {
    const Count before = turns_.load(std::memory_order_relaxed);
    while (turns_.load(std::memory_order_relaxed) == before) {
    }
  }

 private:
  Cpus cpus_{2};
  std::atomic<bool> started_{false};
  std::atomic<bool> over_{false};
  std::atomic<Count> turns_{0};
  std::thread thread_;
};

} // namespace

double thread_switch(Count count) {
  const Cpus here(1);
  return wake_in_turn(count, [] {});
}

double wake_halted(Count count) {
  const Cpus two(2);
  two.pin(0);
  return wake_in_turn(count, [&] { two.pin(1); });
}

// --- timers ---

double short_sleep(Count count) {
  const Cpus here(1);
  prctl(PR_SET_TIMERSLACK, 1); // ns, of which the default would be 50000
  return fastest(count, [](Count n) {
    constexpr timespec time{0, 20'000};
    for (Count i = 0; i < n; ++i) {
      if (clock_nanosleep(CLOCK_MONOTONIC, 0, &time, nullptr) != 0) fail("clock_nanosleep");
    }
  });
}

volatile std::sig_atomic_t alarms;

double alarm_signal(Count count) {
  const Cpus here(1);
  struct sigaction action {};
  action.sa_handler = [](int) { alarms = 1; };
  if (sigaction(SIGALRM, &action, nullptr) != 0) fail("sigaction");
  timer_t timer{};
  if (timer_create(CLOCK_MONOTONIC, nullptr, &timer) != 0) fail("timer_create"); // which sends SIGALRM
  const double ns = fastest(count, [&](Count n) {
    constexpr itimerspec ahead{{0, 0}, {0, 5'000}};
    for (Count i = 0; i < n; ++i) {
      alarms = 0;
      if (timer_settime(timer, 0, &ahead, nullptr) != 0) fail("timer_settime");
      while (alarms == 0) {
      }
    }
  });
  timer_delete(timer);
  std::signal(SIGALRM, SIG_DFL);
  return ns;
}

// --- interrupts of the other CPU ---

// Short, because a part is only good while nothing else has the other CPU.
constexpr Count short_parts = 100;

double ipi_running(Count count) {
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED, 0, 0) != 0) fail("membarrier");
  const Runner other;
  return fastest(
      count,
      [&](Count n) {
        for (Count i = 0; i < n; ++i) {
          if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) != 0) fail("membarrier");
          other.meet();
        }
      },
      short_parts);
}

// An iteration takes the right to store away, gives it back and uses it, so that there is an entry to flush.
double tlb_shootdown(Count count) {
  const Runner other;
  const Pages page(4096);
  return fastest(
      count,
      [&](Count n) {
        for (Count i = 0; i < n; ++i) {
          *static_cast<volatile std::uint8_t*>(page.data()) = 1;
          if (mprotect(page.data(), 4096, PROT_READ) != 0) fail("mprotect");
          if (mprotect(page.data(), 4096, PROT_READ | PROT_WRITE) != 0) fail("mprotect");
          other.meet();
        }
      },
      short_parts);
}

// --- MSRs ---

namespace {

constexpr const char* mtrr_file = "/proc/mtrr";

int open_mtrr_file() {
  if (getpid() == 1) { // a guest's /proc is yet to be mounted
    mkdir("/proc", 0755);
    mount("proc", "/proc", "proc", 0, nullptr);
  }
  return open(mtrr_file, O_RDONLY | O_CLOEXEC);
}

// The kernel reads the mask of a variable range, and the base only if the range is in use.
bool read_mtrr(int fd, unsigned range, bool& used) {
  mtrr_gentry entry{};
  entry.regnum = range;
  const bool there = ioctl(fd, MTRRIOC_GET_ENTRY, &entry) == 0;
  used = entry.size != 0;
  return there;
}

// The last one that is not in use, or -1.
int free_mtrr(int fd) {
  int found = -1;
  bool used = false;
  for (unsigned i = 0; fd >= 0 && read_mtrr(fd, i, used); ++i) {
    if (!used) found = static_cast<int>(i);
  }
  return found;
}

} // namespace

bool has_free_mtrr() {
  const int fd = open_mtrr_file();
  const bool found = free_mtrr(fd) >= 0;
  if (fd >= 0) close(fd);
  return found;
}

double read_msr(Count count) {
  const Cpus here(1);
  const int fd = open_mtrr_file();
  const auto range = static_cast<unsigned>(free_mtrr(fd));
  const double ns = fastest(count, [&](Count n) {
    for (Count i = 0; i < n; ++i) {
      bool used = false;
      if (!read_mtrr(fd, range, used) || used) fail(mtrr_file);
    }
  });
  close(fd);
  return ns;
}

} // namespace bench
