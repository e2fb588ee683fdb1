// SPDX-License-Identifier: Apache-2.0
#include "shim/signals.h"

#include "shim/real_calls.h"
#include "shim/user_memory.h"
#include "x86/interp/host_code.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <mutex>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <vector>
#include <xmmintrin.h>

namespace ring3::shim {

namespace {

constexpr int signal_count = 65;
constexpr int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE};

bool is_fault_signal(int number) {
  return std::ranges::find(fault_signals, number) != std::end(fault_signals);
}

// What the program set with sigaction(), read by handlers without locks: a version that is odd while the
// record changes. Writers hold all signals, so a handler never waits for its own thread.
class ProgramAction {
 public:
  struct sigaction get() const {
    for (;;) {
      const u32 before = version_.load(std::memory_order_acquire);
      struct sigaction copy = action_;
      std::atomic_thread_fence(std::memory_order_acquire);
      if ((before & 1) == 0 && version_.load(std::memory_order_relaxed) == before) return copy;
    }
  }
  void set(const struct sigaction& a) {
    known = true;
    version_.fetch_add(1, std::memory_order_acq_rel);
    action_ = a;
    version_.fetch_add(1, std::memory_order_acq_rel);
  }

  bool known = false; // false: what the process was started with; under actions_lock

 private:
  std::atomic<u32> version_{0};
  struct sigaction action_ {};
};
ProgramAction actions[signal_count];
std::mutex actions_lock;

class AllSignalsHeld {
 public:
  AllSignalsHeld() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllSignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllSignalsHeld(const AllSignalsHeld&) = delete;
  AllSignalsHeld& operator=(const AllSignalsHeld&) = delete;

 private:
  sigset_t before_;
};

// This thread's stay in the hypervisor.
struct Stay {
  x86::Vcpu* vcpu = nullptr;
  volatile std::sig_atomic_t in_guest = 0;
  sigjmp_buf recovery;
  static constexpr unsigned max_deferred = signal_count;
  volatile unsigned deferred = 0;
  siginfo_t info[max_deferred];
  sigset_t mask_before; // of the first one that was put off
  bool cancel_at_any_time = false;
};

class ThreadRecord {
 public:
  ThreadRecord();
  ~ThreadRecord();
  Stay stay;
  const pthread_t thread = pthread_self();
};
std::mutex threads_lock;
std::vector<ThreadRecord*>& threads() {
  static auto* const all = std::make_unique<std::vector<ThreadRecord*>>().release(); // outlives every thread
  return *all;
}
ThreadRecord::ThreadRecord() {
  const AllSignalsHeld held;
  const std::scoped_lock guard(threads_lock);
  threads().push_back(this);
}
thread_local Stay* current = nullptr; // for handlers: plain, without a constructor to run
ThreadRecord::~ThreadRecord() {
  current = nullptr;
  const AllSignalsHeld held;
  const std::scoped_lock guard(threads_lock);
  std::erase(threads(), this);
}
Stay& this_thread() {
  thread_local ThreadRecord record;
  current = &record.stay;
  return record.stay;
}

// Held while a signal is put off: everything but what an instruction itself raises, and what the C library
// needs (SIGCANCEL, SIGSETXID).
void hold_all(sigset_t& mask) {
  sigfillset(&mask);
  for (const int n : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP}) sigdelset(&mask, n);
  // glibc's sigdelset refuses these two.
  auto* words = reinterpret_cast<u64*>(&mask);
  words[0] &= ~(u64{3} << 31);
}

void call_program(int number, siginfo_t* info, void* context) {
  const struct sigaction a = actions[number].get();
  if ((a.sa_flags & SA_RESETHAND) != 0) {
    struct sigaction none {};
    none.sa_handler = SIG_DFL;
    set_program_action(number, &none, nullptr);
  }
  if ((a.sa_flags & SA_SIGINFO) != 0) {
    a.sa_sigaction(number, info, context);
  } else if (a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN) {
    a.sa_handler(number);
  }
}

void on_signal(int number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  Stay* s = current;
  if (s != nullptr && s->in_guest != 0 && s->deferred < Stay::max_deferred) {
    auto* uc = static_cast<ucontext_t*>(context);
    if (s->deferred == 0) std::memcpy(&s->mask_before, &uc->uc_sigmask, sizeof s->mask_before);
    s->info[s->deferred] = *info;
    s->deferred = s->deferred + 1;
    sigset_t mask;
    hold_all(mask);
    std::memcpy(&uc->uc_sigmask, &mask, sizeof(u64));
    s->vcpu->kick();
  } else {
    call_program(number, info, context);
  }
  errno = saved_errno;
}

void on_fault(int number, siginfo_t* info, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  auto rip = static_cast<u64>(uc->uc_mcontext.gregs[REG_RIP]);
  const bool raised_here = info->si_code > 0;
  if (raised_here) {
    const bool ours = number == SIGFPE ? x86::host::exception_resume(rip) : copy_fault(rip);
    if (ours) {
      uc->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(rip);
      return;
    }
    Stay* s = current;
    if (number != SIGFPE && s != nullptr && s->in_guest != 0 && s->vcpu->is_guest_memory(info->si_addr)) {
      siglongjmp(s->recovery, 1);
    }
  }
  const struct sigaction a = actions[number].get();
  const bool handled = (a.sa_flags & SA_SIGINFO) != 0 || (a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN);
  if (!handled) {
    if (!raised_here && a.sa_handler == SIG_IGN) return;
    // The instruction repeats, and then it ends the process as it would have without us.
    struct sigaction none {};
    none.sa_handler = SIG_DFL;
    real::sigaction(number, &none, nullptr);
    if (!raised_here) raise(number);
    return;
  }
  if (!raised_here) return on_signal(number, info, context);
  sigset_t mask = a.sa_mask;
  if ((a.sa_flags & SA_NODEFER) == 0) sigaddset(&mask, number);
  pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  call_program(number, info, context);
}

// Gives back what was put off: queued to this thread again with all it carried, then let through.
void release_deferred(Stay& s, const sigset_t& mask) {
  const unsigned n = s.deferred;
  s.deferred = 0;
  for (unsigned i = 0; i < n; ++i) {
    const int number = s.info[i].si_signo;
    if (syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), number, &s.info[i]) != 0) {
      syscall(SYS_tgkill, getpid(), gettid(), number); // the queue is full: without its data
    }
  }
  pthread_sigmask(SIG_SETMASK, &mask, nullptr);
}

} // namespace

int set_program_action(int number, const struct sigaction* action, struct sigaction* old) {
  if (number < 1 || number >= signal_count) return real::sigaction(number, action, old);
  const AllSignalsHeld held;
  const std::scoped_lock guard(actions_lock);
  if (!actions[number].known) {
    struct sigaction inherited {};
    if (real::sigaction(number, nullptr, &inherited) != 0) return -1;
    actions[number].set(inherited);
  }
  const struct sigaction before = actions[number].get();
  if (action != nullptr && !is_fault_signal(number)) {
    struct sigaction installed = *action;
    const bool handler = (action->sa_flags & SA_SIGINFO) != 0 ||
                         (action->sa_handler != SIG_DFL && action->sa_handler != SIG_IGN);
    if (handler) {
      installed.sa_sigaction = on_signal;
      installed.sa_flags = (installed.sa_flags | SA_SIGINFO) & ~static_cast<int>(SA_RESETHAND);
    }
    // The record first: the handler may be called at once on another thread.
    actions[number].set(*action);
    if (real::sigaction(number, &installed, nullptr) != 0) {
      actions[number].set(before);
      return -1;
    }
  } else if (action != nullptr) {
    actions[number].set(*action);
  }
  if (old != nullptr) *old = before;
  return 0;
}

void install_fault_handlers() {
  static const bool done = [] {
    x86::host::leave_exceptions_to_caller();
    for (const int number : fault_signals) {
      struct sigaction ours {};
      struct sigaction before {};
      ours.sa_sigaction = on_fault;
      ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
      sigemptyset(&ours.sa_mask);
      real::sigaction(number, &ours, &before);
      if (!actions[number].known) actions[number].set(before);
    }
    return true;
  }();
  static_cast<void>(done);
}

int stay_in_guest(x86::Vcpu& vcpu, const sigset_t* mask, int (*body)(void*), void* argument) {
  Stay& s = this_thread();
  sigset_t program_mask;
  s.vcpu = &vcpu;
  s.deferred = 0;
  s.in_guest = 1;
  if (mask != nullptr) pthread_sigmask(SIG_SETMASK, mask, &program_mask);
  int result;
  if (sigsetjmp(s.recovery, 0) == 0) {
    result = body(argument);
  } else {
    // Interpreter frames hold nothing that must be given back, but the processor's own state is as the
    // guest's instruction had it.
    asm volatile("fninit");
    _mm_setcsr(0x1f80);
    vcpu.guest_memory_lost();
    result = -EFAULT;
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
  s.in_guest = 0;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (s.deferred != 0) {
    vcpu.forget_kick();
    release_deferred(s, mask != nullptr ? program_mask : s.mask_before);
  } else if (mask != nullptr) {
    pthread_sigmask(SIG_SETMASK, &program_mask, nullptr);
  }
  return result;
}

CancellationHeld::CancellationHeld() {
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type_);
  this_thread().cancel_at_any_time = type_ == PTHREAD_CANCEL_ASYNCHRONOUS;
}

CancellationHeld::~CancellationHeld() noexcept(false) { pthread_setcanceltype(type_, nullptr); }

int cancel_thread(pthread_t thread) {
  const int result = real::pthread_cancel(thread);
  const AllSignalsHeld held;
  const std::scoped_lock guard(threads_lock);
  for (ThreadRecord* r : threads()) {
    if (r->thread == thread && r->stay.in_guest != 0 && r->stay.cancel_at_any_time) r->stay.vcpu->kick();
  }
  return result;
}

} // namespace ring3::shim
