// SPDX-License-Identifier: Apache-2.0
// Handlers run when KVM_RUN has returned, or is about to; a signal that only KVM_RUN lets through ends it and
// stays pending.
#include "guest.h"

#include <atomic>
#include <csignal>
#include <ctime>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <thread>

namespace client {
namespace {

class Signals : public Guest {
 protected:
  static void sleep_ms(long ms) {
    const timespec t{0, ms * 1'000'000};
    nanosleep(&t, nullptr);
  }
  void loop() { code({0xeb, 0xfe}); } // jmp $
};

std::atomic<int> handled{0};
int vcpu_of_handler = -1;
int ioctl_in_handler = -1;
void on_signal(int) {
  kvm_regs r;
  ioctl_in_handler = ioctl(vcpu_of_handler, KVM_GET_REGS, &r);
  ++handled;
}

TEST_F(Signals, HandlerRunsAndTheCallIsInterrupted) {
  loop();
  handled = 0;
  vcpu_of_handler = vcpu_;
  struct sigaction action {};
  action.sa_handler = on_signal;
  ASSERT_EQ(sigaction(SIGUSR1, &action, nullptr), 0);
  struct sigaction now {};
  ASSERT_EQ(sigaction(SIGUSR1, nullptr, &now), 0);
  EXPECT_EQ(now.sa_handler, &on_signal); // what the program set, not what stands in front of it
  const pthread_t vcpu_thread = pthread_self();
  std::thread other([&] {
    sleep_ms(30);
    pthread_kill(vcpu_thread, SIGUSR1);
  });
  EXPECT_EQ(enter(), -1);
  EXPECT_EQ(errno, EINTR);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_INTR));
  other.join();
  EXPECT_EQ(handled, 1);
  EXPECT_EQ(ioctl_in_handler, 0);
  signal(SIGUSR1, SIG_DFL);
}

// How VMMs kick: the signal is blocked, has no handler, and only KVM_RUN lets it in.
TEST_F(Signals, MaskOfKvmRun) {
  loop();
  sigset_t kick;
  sigemptyset(&kick);
  sigaddset(&kick, SIGUSR2);
  sigset_t before;
  ASSERT_EQ(pthread_sigmask(SIG_BLOCK, &kick, &before), 0);
  struct {
    std::uint32_t len = 8;
    std::uint8_t set[8];
  } mask;
  std::memcpy(mask.set, &before, 8);
  ASSERT_EQ(ioctl(vcpu_, set_signal_mask, &mask), 0) << strerror(errno);
  const pthread_t vcpu_thread = pthread_self();
  for (int i = 0; i < 20; ++i) {
    std::thread other([&] {
      sleep_ms(i % 3);
      pthread_kill(vcpu_thread, SIGUSR2);
    });
    EXPECT_EQ(enter(), -1);
    EXPECT_EQ(errno, EINTR);
    other.join();
    sigset_t pending;
    sigpending(&pending);
    EXPECT_EQ(sigismember(&pending, SIGUSR2), 1);
    EXPECT_EQ(enter(), -1); // still pending: at once
    int number = 0;
    EXPECT_EQ(sigwait(&kick, &number), 0);
    EXPECT_EQ(number, SIGUSR2);
  }
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

TEST_F(Signals, StormLeavesTheGuestRight) {
  // mov cx, 0; mov dx, 0x10; again: inc eax; loop again; out dx, al; jmp again
  code({0x31, 0xc0, 0x31, 0xc9, 0xba, 0x10, 0x00, 0x66, 0x40, 0xe2, 0xfc, 0xee, 0xeb, 0xf9});
  handled = 0;
  vcpu_of_handler = vcpu_;
  struct sigaction action {};
  action.sa_handler = on_signal;
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  itimerval timer{{0, 100}, {0, 100}}; // 10 kHz
  ASSERT_EQ(setitimer(ITIMER_REAL, &timer, nullptr), 0);
  int exits = 0;
  int interrupted = 0;
  while (exits < 200) {
    if (enter() == 0) {
      ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
      ++exits;
    } else {
      ASSERT_EQ(errno, EINTR);
      ++interrupted;
    }
  }
  const itimerval off{};
  setitimer(ITIMER_REAL, &off, nullptr);
  signal(SIGALRM, SIG_DFL);
  EXPECT_EQ(regs().rax & 0xffffffff, 200u * 65536u);
  EXPECT_GT(handled, 0);
  EXPECT_GE(handled, interrupted > 0 ? 1 : 0);
}

// Whenever a signal comes, the thread's mask is the program's when the call is over.
TEST_F(Signals, StormLeavesTheMaskRight) {
  code({0xee, 0xeb, 0xfd}); // out dx, al; jmp to it
  handled = 0;
  vcpu_of_handler = vcpu_;
  struct sigaction action {};
  action.sa_handler = on_signal;
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  struct {
    std::uint32_t len = 8;
    std::uint8_t set[8] = {};
  } nothing_blocked;
  ASSERT_EQ(ioctl(vcpu_, set_signal_mask, &nothing_blocked), 0) << strerror(errno);
  sigset_t before;
  pthread_sigmask(SIG_SETMASK, nullptr, &before);
  itimerval timer{{0, 50}, {0, 50}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &timer, nullptr), 0);
  for (int i = 0; i < 100'000; ++i) {
    enter();
    sigset_t now;
    pthread_sigmask(SIG_SETMASK, nullptr, &now);
    ASSERT_EQ(std::memcmp(&now, &before, 8), 0) << "after " << i << " entries";
  }
  const itimerval off{};
  setitimer(ITIMER_REAL, &off, nullptr);
  signal(SIGALRM, SIG_DFL);
  EXPECT_GT(handled, 0);
}

// A VMM may block whatever it likes in its vCPU threads: bad addresses are EFAULT all the same.
TEST_F(Signals, FaultsAreNeverBlocked) {
  sigset_t all;
  sigset_t before;
  sigfillset(&all);
  ASSERT_EQ(pthread_sigmask(SIG_SETMASK, &all, &before), 0);
  EXPECT_EQ(ioctl(vcpu_, KVM_GET_REGS, 8), -1);
  EXPECT_EQ(errno, EFAULT);
  struct {
    std::uint32_t len = 8;
    std::uint8_t set[8];
  } mask;
  std::memset(mask.set, 0xff, 8);
  ASSERT_EQ(ioctl(vcpu_, set_signal_mask, &mask), 0) << strerror(errno);
  loop();
  ASSERT_EQ(mprotect(memory_, memory_size, PROT_NONE), 0);
  EXPECT_EQ(enter(), -1);
  EXPECT_EQ(errno, EFAULT);
  ASSERT_EQ(mprotect(memory_, memory_size, PROT_READ | PROT_WRITE), 0);
  sigset_t now;
  ASSERT_EQ(pthread_sigmask(SIG_SETMASK, &before, &now), 0);
  EXPECT_EQ(sigismember(&now, SIGUSR1), 1);
}

// KVM_PRE_FAULT_MEMORY of very much: what was done until the signal came is kept.
TEST_F(Signals, PreFaultIsInterrupted) {
  constexpr std::uint64_t size = 1UL << 38;
  void* const p = mmap(nullptr, size, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) GTEST_SKIP() << "no address space for " << size;
  kvm_userspace_memory_region slot{};
  slot.slot = 1;
  slot.guest_phys_addr = 1UL << 32;
  slot.memory_size = size;
  slot.userspace_addr = reinterpret_cast<std::uint64_t>(p);
  ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0) << strerror(errno);
  handled = 0;
  vcpu_of_handler = vcpu_;
  struct sigaction action {};
  action.sa_handler = on_signal;
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  const itimerval once{{0, 0}, {0, 20'000}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &once, nullptr), 0);
  std::uint64_t range[8] = {slot.guest_phys_addr, size};
  constexpr unsigned long pre_fault_memory = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0xd5, 64);
  EXPECT_EQ(ioctl(vcpu_, pre_fault_memory, range), 0) << strerror(errno);
  EXPECT_EQ(handled, 1);
  EXPECT_EQ(ioctl_in_handler, 0);
  EXPECT_GT(range[0], slot.guest_phys_addr);
  EXPECT_LT(range[1], size);
  EXPECT_GT(range[1], 0u);
  signal(SIGALRM, SIG_DFL);
  slot.memory_size = 0;
  EXPECT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
  munmap(p, size);
}

// Whoever stops the process and lets it go on again is not noticed by the guest.
TEST_F(Signals, StopAndContinueLeaveTheGuestRight) {
  // xor eax, eax; xor cx, cx; mov dx, 0x10; again: inc eax; loop again; out dx, al; jmp again
  code({0x31, 0xc0, 0x31, 0xc9, 0xba, 0x10, 0x00, 0x66, 0x40, 0xe2, 0xfc, 0xee, 0xeb, 0xf9});
  const pid_t parent = getpid();
  // A process of its own: nobody in a stopped one could let it go on.
  const pid_t other = fork();
  ASSERT_GE(other, 0);
  if (other == 0) {
    for (int i = 0; i < 100; ++i) {
      sleep_ms(2);
      kill(parent, SIGSTOP);
      sleep_ms(1);
      kill(parent, SIGCONT);
    }
    _exit(0);
  }
  unsigned exits = 0;
  int status = 0;
  while (waitpid(other, &status, WNOHANG) == 0) {
    ASSERT_EQ(enter(), 0) << strerror(errno); // SIGCONT has no handler: nothing interrupts the call
    ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    ++exits;
  }
  EXPECT_EQ(status, 0);
  EXPECT_EQ(regs().rax & 0xffffffff, std::uint32_t{exits * 65536U});
}

// A handler that runs while its thread forks may close descriptors, and so may the child.
TEST_F(Signals, StormAroundForks) {
  code({0xf4});
  struct sigaction action {};
  static int spare;
  spare = vm_;
  action.sa_handler = [](int) {
    const int copy = dup(spare);
    close(copy);
    ++handled;
  };
  handled = 0;
  ASSERT_EQ(sigaction(SIGALRM, &action, nullptr), 0);
  itimerval timer{{0, 200}, {0, 200}};
  ASSERT_EQ(setitimer(ITIMER_REAL, &timer, nullptr), 0);
  for (int i = 0; i < 300; ++i) {
    const pid_t child = fork();
    ASSERT_GE(child, 0) << strerror(errno);
    if (child == 0) {
      sigset_t mask;
      pthread_sigmask(SIG_SETMASK, nullptr, &mask);
      close(vcpu_);
      _exit(sigismember(&mask, SIGUSR1)); // nothing may be left blocked
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    ASSERT_EQ(status, 0);
  }
  const itimerval off{};
  setitimer(ITIMER_REAL, &off, nullptr);
  signal(SIGALRM, SIG_DFL);
  EXPECT_GT(handled, 0);
  EXPECT_EQ(enter(), 0);
}

TEST_F(Signals, ThreadInTheGuestCanBeCancelled) {
  loop();
  std::atomic<bool> started{false};
  struct Arguments {
    int vcpu;
    std::atomic<bool>* started;
  } arguments{vcpu_, &started};
  pthread_t thread;
  ASSERT_EQ(pthread_create(
                &thread, nullptr,
                [](void* p) -> void* {
                  auto* a = static_cast<Arguments*>(p);
                  pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, nullptr);
                  *a->started = true;
                  ioctl(a->vcpu, KVM_RUN, 0);
                  return nullptr;
                },
                &arguments),
            0);
  while (!started) sleep_ms(1);
  sleep_ms(20);
  ASSERT_EQ(pthread_cancel(thread), 0);
  void* result = nullptr;
  ASSERT_EQ(pthread_join(thread, &result), 0);
  EXPECT_EQ(result, PTHREAD_CANCELED);
}

} // namespace
} // namespace client
