// SPDX-License-Identifier: Apache-2.0
#include "shim/signals.h"

#include "kvm/recoverable_copy.h"
#include "shim/cpuid_patch.h"
#include "shim/real_calls.h"
#include "x86/interp/host_code.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <mutex>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

namespace ring3::shim {

namespace {

constexpr int signal_count = 65;
constexpr int fault_signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

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
      // Not a plain load: it must not come before the copy. (A fence would do, but ThreadSanitizer knows
      // none.)
      if ((before & 1) == 0 && version_.fetch_add(0, std::memory_order_acq_rel) == before) return copy;
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
  mutable std::atomic<u32> version_{0};
  struct sigaction action_ {};
};
ProgramAction actions[signal_count];
std::mutex actions_lock;

bool has_handler(const struct sigaction& a) {
  return (a.sa_flags & SA_SIGINFO) != 0 || (a.sa_handler != SIG_DFL && a.sa_handler != SIG_IGN);
}

// Signals without a handler of the program that have one of ours (catch_default_actions()), a bit each.
std::atomic<u64> caught_by_default{0};
constexpr u64 bit_of(int number) { return u64{1} << (number - 1); }

// A fault whose signal is blocked ends the process, whoever blocked it: so they never really are. A program
// that blocks everything in its vCPU threads must not die of what the hypervisor's own accesses raise.
void never_block_faults(sigset_t& mask) {
  for (const int n : fault_signals) sigdelset(&mask, n);
}

class AllSignalsHeld {
 public:
  AllSignalsHeld() {
    sigset_t all;
    sigfillset(&all);
    real::pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~AllSignalsHeld() { real::pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  AllSignalsHeld(const AllSignalsHeld&) = delete;
  AllSignalsHeld& operator=(const AllSignalsHeld&) = delete;

 private:
  sigset_t before_;
};

// This thread's stay in this library.
struct Stay {
  volatile std::sig_atomic_t depth; // of LikeASystemCall
  volatile std::sig_atomic_t owns_vcpu;
  x86::Vcpu* vcpu;
  sigjmp_buf recovery;
  const void* volatile lost; // what was missing
  static constexpr unsigned max_deferred = signal_count;
  volatile unsigned deferred;
  siginfo_t info[max_deferred];
  sigset_t mask_before; // of the first one that was put off
  bool cancel_at_any_time;
  // The list of threads; under threads_lock.
  pthread_t thread;
  Stay* next;
  Stay* previous;
};
constinit thread_local Stay stay{}; // handlers use it: nothing to construct

// Threads in KVM_RUN that may be cancelled at any time: whoever cancels one ends it. Their Stays are the
// list, so that no memory is needed: the call may be one of a handler that has interrupted malloc().
std::mutex threads_lock;
Stay* threads = nullptr;

void add_thread(Stay& s) {
  const std::scoped_lock guard(threads_lock);
  s.thread = pthread_self();
  s.previous = nullptr;
  s.next = threads;
  if (threads != nullptr) threads->previous = &s;
  threads = &s;
}

void remove_thread(Stay& s) {
  const std::scoped_lock guard(threads_lock);
  (s.previous != nullptr ? s.previous->next : threads) = s.next;
  if (s.next != nullptr) s.next->previous = s.previous;
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
  } else if (has_handler(a)) {
    a.sa_handler(number);
  } else if (a.sa_handler == SIG_DFL && (caught_by_default.load() & bit_of(number)) != 0) {
    // The default action of those is the end of the process. It comes when this handler returns.
    struct sigaction none {};
    real::sigaction(number, &none, nullptr);
    raise(number);
  }
}

void on_signal(int number, siginfo_t* info, void* context) {
  const int saved_errno = errno;
  Stay& s = stay;
  if (s.depth != 0 && s.deferred < Stay::max_deferred) {
    auto* uc = static_cast<ucontext_t*>(context);
    if (s.deferred == 0) std::memcpy(&s.mask_before, &uc->uc_sigmask, sizeof s.mask_before);
    s.info[s.deferred] = *info;
    s.deferred = s.deferred + 1;
    sigset_t mask;
    hold_all(mask);
    std::memcpy(&uc->uc_sigmask, &mask, sizeof(u64));
    if (s.owns_vcpu != 0) s.vcpu->kick();
  } else {
    call_program(number, info, context);
  }
  errno = saved_errno;
}

x86::HostRegisters host_registers(const ucontext_t& uc) {
  constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  x86::HostRegisters out{};
  for (unsigned i = 0; i < std::size(order); ++i)
    out.gpr[i] = static_cast<u64>(uc.uc_mcontext.gregs[order[i]]);
  out.rip = static_cast<u64>(uc.uc_mcontext.gregs[REG_RIP]);
  out.vectors = uc.uc_mcontext.fpregs;
  return out;
}

void on_fault(int number, siginfo_t* info, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  auto rip = static_cast<u64>(uc->uc_mcontext.gregs[REG_RIP]);
  const bool raised_here = info->si_code > 0;
  if (raised_here && number == SIGILL) {
    if (emulate_cpuid(*uc)) return;
  } else if (raised_here) {
    const bool ours = number == SIGFPE ? x86::host::exception_resume(rip) : kvm::copy_fault(rip);
    if (ours) {
      uc->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(rip);
      return;
    }
    if (number != SIGFPE && stay.owns_vcpu != 0 && stay.vcpu->is_guest_memory(info->si_addr)) {
      stay.lost = info->si_addr;
      stay.vcpu->recover_registers(host_registers(*uc));
      siglongjmp(stay.recovery, 1);
    }
  }
  const struct sigaction a = actions[number].get();
  if (!has_handler(a)) {
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
  real::pthread_sigmask(SIG_BLOCK, &mask, nullptr);
  call_program(number, info, context);
}

// Signals that KVM_SET_SIGNAL_MASK lets through and the program otherwise blocks end KVM_RUN and stay
// pending, whatever their action is: VMMs kick their vCPUs with one that has no handler. Ours is what sees
// it.
void catch_default_actions(const sigset_t& program_mask, const sigset_t& run_mask) {
  // Their default is to be ignored, or to stop the process.
  constexpr u64 never = bit_of(SIGKILL) | bit_of(SIGSTOP) | bit_of(SIGCHLD) | bit_of(SIGURG) |
                        bit_of(SIGWINCH) | bit_of(SIGCONT) | bit_of(SIGTSTP) | bit_of(SIGTTIN) |
                        bit_of(SIGTTOU) | bit_of(32) | bit_of(33) | bit_of(SIGSEGV) | bit_of(SIGBUS) |
                        bit_of(SIGFPE) | bit_of(SIGILL) | bit_of(SIGTRAP);
  u64 blocked;
  u64 run_blocked;
  std::memcpy(&blocked, &program_mask, sizeof blocked);
  std::memcpy(&run_blocked, &run_mask, sizeof run_blocked);
  u64 candidates = blocked & ~run_blocked & ~never & ~caught_by_default.load(std::memory_order_relaxed);
  for (; candidates != 0; candidates &= candidates - 1) {
    const AllSignalsHeld held;
    const int number = std::countr_zero(candidates) + 1;
    const std::scoped_lock guard(actions_lock);
    struct sigaction now {};
    if (real::sigaction(number, nullptr, &now) != 0 || has_handler(now) || now.sa_handler == SIG_IGN)
      continue;
    actions[number].set(now);
    struct sigaction ours {};
    ours.sa_sigaction = on_signal;
    ours.sa_flags = SA_SIGINFO | SA_RESTART;
    caught_by_default.fetch_or(bit_of(number));
    real::sigaction(number, &ours, nullptr);
  }
}

// Gives back what was put off: queued to this thread again with all it carried, then let through.
void release_deferred(Stay& s) {
  const sigset_t mask = s.mask_before; // a handler may come here again
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

namespace {
void begin_stay() {
  stay.depth = stay.depth + 1;
  std::atomic_signal_fence(std::memory_order_seq_cst);
}
void end_stay() {
  std::atomic_signal_fence(std::memory_order_seq_cst);
  stay.depth = stay.depth - 1;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (stay.depth == 0 && stay.deferred != 0) release_deferred(stay);
}
} // namespace

LikeASystemCall::LikeASystemCall() { begin_stay(); }
LikeASystemCall::~LikeASystemCall() noexcept(false) { end_stay(); }

void lock_signals_for_fork() {
  begin_stay();
  threads_lock.lock();
  actions_lock.lock();
}

void unlock_signals_after_fork(bool in_child) {
  actions_lock.unlock();
  if (in_child) threads = nullptr; // the others are not here, and this one is in fork()
  threads_lock.unlock();
  if (in_child && stay.deferred != 0) {
    stay.deferred = 0;
    const sigset_t mask = stay.mask_before;
    pthread_sigmask(SIG_SETMASK, &mask, nullptr);
  }
  end_stay();
}

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
    caught_by_default.fetch_and(~bit_of(number));
    never_block_faults(installed.sa_mask);
    if (has_handler(*action)) {
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

int set_program_mask(int how, const sigset_t* set, sigset_t* old) {
  if (set == nullptr || how == SIG_UNBLOCK) return real::pthread_sigmask(how, set, old);
  sigset_t mask = *set;
  never_block_faults(mask);
  return real::pthread_sigmask(how, &mask, old);
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
    kvm::catch_copy_faults();
    return true;
  }();
  static_cast<void>(done);
}

int stay_in_guest(x86::Vcpu& vcpu, std::mutex& lock, const sigset_t* mask, int (*body)(void*),
                  void* argument) {
  const LikeASystemCall held;
  Stay& s = stay;
  sigset_t program_mask;
  s.vcpu = &vcpu;
  if (mask != nullptr) {
    pthread_sigmask(SIG_SETMASK, nullptr, &program_mask);
    // A signal that was put off already has changed the mask.
    if (s.deferred != 0) program_mask = s.mask_before;
    catch_default_actions(program_mask, *mask);
  }
  if (mask != nullptr) set_program_mask(SIG_SETMASK, mask, nullptr);
  const bool cancelled_at_any_time = s.cancel_at_any_time;
  if (cancelled_at_any_time) add_thread(s);
  lock.lock();
  s.owns_vcpu = 1;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (s.deferred != 0) vcpu.kick();
  int result;
  if (sigsetjmp(s.recovery, 0) == 0) {
    result = body(argument);
  } else {
    // Interpreter frames hold nothing that must be given back, but the processor's own state is as the
    // guest's instruction had it.
    asm volatile("fninit");
    _mm_setcsr(0x1f80);
    vcpu.guest_memory_lost(s.lost);
    result = -EFAULT;
  }
  std::atomic_signal_fence(std::memory_order_seq_cst);
  s.owns_vcpu = 0;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  if (s.deferred != 0) vcpu.forget_kick();
  lock.unlock(); // before handlers run: they may use the vCPU
  if (cancelled_at_any_time) remove_thread(s);
  if (mask != nullptr) {
    if (s.deferred == 0) pthread_sigmask(SIG_SETMASK, &program_mask, nullptr);
    // With a signal put off, all are held until it is let go, with the program's mask.
    if (s.deferred != 0) s.mask_before = program_mask;
  }
  return result;
}

CancellationHeld::CancellationHeld() {
  pthread_setcanceltype(PTHREAD_CANCEL_DEFERRED, &type_);
  stay.cancel_at_any_time = type_ == PTHREAD_CANCEL_ASYNCHRONOUS;
}

CancellationHeld::~CancellationHeld() noexcept(false) {
  stay.cancel_at_any_time = false; // other calls are over soon
  pthread_setcanceltype(type_, nullptr);
}

int cancel_thread(pthread_t thread) {
  const int result = real::pthread_cancel(thread);
  const AllSignalsHeld held;
  const std::scoped_lock guard(threads_lock);
  for (const Stay* s = threads; s != nullptr; s = s->next) {
    if (s->thread == thread && s->owns_vcpu != 0) s->vcpu->kick();
  }
  return result;
}

} // namespace ring3::shim
