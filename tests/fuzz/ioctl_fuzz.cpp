// SPDX-License-Identifier: Apache-2.0
// A hostile client of /dev/kvm. By system calls only, on several threads: garbage for every ioctl, slots that
// overlap and lose their memory, descriptors closed and pages unmapped under KVM_RUN, forks, storms of
// signals, SIGSTOP; and guests in all modes that then run with what was set. Nothing here knows what is
// behind the device: it runs under `ring3 exec` (and runs on a kernel's KVM, if one wants to).
//
// What it demands: no crash, no call that does not come back (KVM_RUN is kicked by signals all the time), no
// errno that is none, the processor's control words as they were, memory and descriptors that do not grow,
// and that a well-behaved guest beside all this counts right.
//
// The calls and their arguments depend on the seed only; how the threads' calls interleave does not.
//
// With AddressSanitizer both this and the preloaded library have to be built with it, and its runtime is then
// not the first library: ASAN_OPTIONS=verify_asan_link_order=0. Nothing else is needed for the library's
// handlers of SIGSEGV and SIGBUS: they stand before the sanitizer's, which get what is not theirs
// (allow_user_segv_handler=1 is the default). quarantine_size_mb=16 keeps the freed memory that the sanitizer
// holds back from looking like a leak.
#include "ioctl/guests.h"
#include "ioctl/operations.h"
#include "ioctl/watcher.h"

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <dirent.h>
#include <fcntl.h>
#include <memory>
#include <new>
#include <string_view>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace {

using namespace fuzz;

struct Options {
  u64 seed = 1, first_run = 0, runs = ~u64{0}, seconds = 10, threads = 3, calls = 200;
  Limits limits;
  bool verbose = false;
};

constexpr char usage[] =
    R"(Usage: ring3 exec -- ioctl_fuzz [OPTIONS]
Calls /dev/kvm in all wrong ways, and looks for crashes, hangs and leaks. Exit code 0: none; 1: one was found, and
what led to it is on standard error.

  --seconds N    how long (default 10; 0: until --runs are done)
  --runs N       how many runs; each has VMs of its own
  --seed N       default 1
  --first-run N  begin with this run of the seed
  --threads N    1 to 14 threads that call at a time (default 3)
  --calls N      operations of each thread in a run (default 200)
  --limit N      seconds after which a call is said to hang (default 30)
  --no-stop      without SIGSTOP and SIGCONT
)";

std::atomic<u64> signals{0};
std::atomic<int> vcpu_for_handler{-1};

// Handlers may use the vCPU: KVM_RUN is over when they run.
void on_signal(int) {
  const int error = errno;
  if (signals.fetch_add(1, std::memory_order_relaxed) % 8 == 0) {
    kvm_regs regs;
    ioctl(vcpu_for_handler.load(), KVM_GET_REGS, &regs);
  }
  errno = error;
}

u64 resident_kib() {
  u64 pages = 0;
  if (FILE* const f = fopen("/proc/self/statm", "r")) {
    unsigned long long size = 0;
    unsigned long long resident = 0;
    if (fscanf(f, "%llu %llu", &size, &resident) == 2) pages = resident;
    fclose(f);
  }
  return pages * 4;
}

u64 open_descriptors() {
  u64 n = 0;
  if (DIR* const d = opendir("/proc/self/fd")) {
    while (readdir(d) != nullptr) ++n;
    closedir(d);
  }
  return n;
}

// Ends every KVM_RUN after a while: a signal to whoever is in a call for some time.
void kick(Record& record, const std::atomic<bool>& stop) {
  Random random(now_ns());
  while (!stop) {
    const timespec t{0, 200'000};
    nanosleep(&t, nullptr);
    const u64 patience = random.one_in(8) ? 3'000'000 : random.below(500'000);
    for (const ThreadRecord& r : record.threads) {
      const u64 since = r.busy_since.load();
      if (since != 0 && now_ns() - since > patience) syscall(SYS_tgkill, getpid(), r.thread.load(), SIGUSR1);
    }
  }
}

// A guest that does as it should, in the same process and at the same time: adds 1 to 1000 again and again,
// and says what it got. Made before the others begin: they may use numbers of descriptors that are closed by
// then, and so not one of these.
class GoodGuest {
 public:
  explicit GoodGuest(const World& world) : run_size_(world.run_size) {
    kvm_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    vm_ = ioctl(kvm_, KVM_CREATE_VM, 0);
    memory_ = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    kvm_userspace_memory_region slot{0, 0, 0, size, reinterpret_cast<u64>(memory_)};
    ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot);
    vcpu_ = ioctl(vm_, KVM_CREATE_VCPU, 0);
    page_ = mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0);
    if (memory_ == MAP_FAILED || page_ == MAP_FAILED) fail(world.record, "no good guest: errno %d", errno);
    // again: xor eax, eax; mov cx, 1000; add: add ax, cx; add dword [0x4000], 1; loop add; out 0x10, eax;
    // jmp again
    constexpr u8 code[] = {0x66, 0x31, 0xc0, 0xb9, 0xe8, 0x03, 0x01, 0xc8, 0x66, 0x83, 0x06,
                           0x00, 0x40, 0x01, 0xe2, 0xf6, 0x66, 0xe7, 0x10, 0xeb, 0xeb};
    std::memcpy(static_cast<u8*>(memory_) + 0x1000, code, sizeof code);
    kvm_sregs s;
    ioctl(vcpu_, KVM_GET_SREGS, &s);
    s.cs.base = s.cs.selector = 0;
    ioctl(vcpu_, KVM_SET_SREGS, &s);
    kvm_regs regs{};
    regs.rip = 0x1000;
    regs.rflags = 2;
    ioctl(vcpu_, KVM_SET_REGS, &regs);
  }
  ~GoodGuest() {
    munmap(page_, run_size_);
    munmap(memory_, size);
    for (const int fd : {vcpu_, vm_, kvm_}) close(fd);
  }
  GoodGuest(const GoodGuest&) = delete;
  GoodGuest& operator=(const GoodGuest&) = delete;

  // Some rounds more.
  void check(Thread& t, u32 rounds) {
    const auto* const run = static_cast<const kvm_run*>(page_);
    for (const u32 end = round_ + rounds; round_ < end;) {
      if (enter(t, vcpu_) != 0) {
        if (errno != EINTR) fail(t.world.record, "the good guest's KVM_RUN gave errno %d", errno);
        continue;
      }
      ++round_;
      u32 said;
      u32 counted;
      std::memcpy(&said, static_cast<u8*>(page_) + run->io.data_offset, sizeof said);
      std::memcpy(&counted, static_cast<u8*>(memory_) + 0x4000, sizeof counted);
      constexpr u32 sum = 1000 * 1001 / 2 & 0xffff;
      if (run->exit_reason != KVM_EXIT_IO || said != sum || counted != round_ * 1000)
        fail(t.world.record, "the good guest left with reason %u, said %u (not %u) and counted %u (not %u)",
             run->exit_reason, said, sum, counted, round_ * 1000);
    }
  }

 private:
  static constexpr std::size_t size = 65536;
  const std::size_t run_size_;
  int kvm_, vm_, vcpu_;
  void* memory_;
  void* page_;
  u32 round_ = 0;
};

void one_run(Record& record, const Options& options, u64 number) {
  record.run.store(number);
  Random random(options.seed * 0x100000001b3 + number);
  record.threads[0].thread.store(gettid());
  const auto world = std::make_unique<World>(record, random.next());
  GoodGuest good(*world);
  vcpu_for_handler.store(world->vcpu[0].get());
  const bool storm = random.one_in(4);
  if (storm) {
    const itimerval every{{0, 100}, {0, 100}}; // 10 kHz
    setitimer(ITIMER_REAL, &every, nullptr);
  }
  std::vector<std::jthread> threads;
  for (unsigned i = 0; i < options.threads; ++i) {
    threads.emplace_back([&, i, seed = random.next()] {
      sigset_t none;
      sigemptyset(&none);
      pthread_sigmask(SIG_SETMASK, &none, nullptr);
      Thread t{*world, record.threads[i + 1], Random(seed), i};
      t.record.thread.store(gettid());
      for (u64 n = 0; n < options.calls; ++n) {
        operate(t);
        if (i == 0 && n % 16 == 0) good.check(t, 1);
      }
    });
  }
  threads.clear();
  if (storm) {
    const itimerval off{};
    setitimer(ITIMER_REAL, &off, nullptr);
  }
  vcpu_for_handler.store(-1);
}

int child(Record& record, const Options& options) {
  struct sigaction action {};
  action.sa_handler = on_signal;
  sigaction(SIGUSR1, &action, nullptr);
  sigaction(SIGALRM, &action, nullptr);
  // For the threads that call: what a handler does may have to wait for a KVM_RUN that only the kicks end.
  sigset_t ours;
  sigemptyset(&ours);
  sigaddset(&ours, SIGUSR1);
  sigaddset(&ours, SIGALRM);
  pthread_sigmask(SIG_BLOCK, &ours, nullptr);
  std::atomic<bool> stop{false};
  const u64 end = options.seconds == 0 ? ~u64{0} : now_ns() + options.seconds * 1'000'000'000;
  {
    std::jthread kicker([&] { kick(record, stop); });
    u64 n = 0;
    // Memory is compared with what it was after a tenth of the time, but not in the first runs.
    const u64 warm = options.seconds == 0 ? now_ns() : now_ns() + options.seconds * 100'000'000;
    bool measured = false;
    for (; n < options.runs && now_ns() < end; ++n) {
      one_run(record, options, options.first_run + n);
      if (!measured && n >= 20 && now_ns() > warm) {
        measured = true;
        record.first_kib.store(resident_kib());
        record.first_descriptors.store(open_descriptors());
      }
    }
    if (measured) {
      record.last_kib.store(resident_kib());
      record.last_descriptors.store(open_descriptors());
    }
    stop = true;
    std::printf("%llu runs, ", n + 0ULL);
  }
  std::printf("%llu calls (%llu refused), %llu times KVM_RUN, %llu signals; %llu to %llu KiB, %llu to %llu "
              "descriptors\n",
              record.operations.load() + 0ULL, record.refused.load() + 0ULL, record.entries.load() + 0ULL,
              signals.load() + 0ULL, record.first_kib.load() + 0ULL, record.last_kib.load() + 0ULL,
              record.first_descriptors.load() + 0ULL, record.last_descriptors.load() + 0ULL);
  std::printf("exits by reason:");
  for (std::size_t i = 0; i < record.exits.size(); ++i) {
    if (record.exits[i] != 0) std::printf(" %zu: %llu", i, record.exits[i].load() + 0ULL);
  }
  std::printf("\n");
  return 0;
}

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    if (a == "--no-stop") {
      o.limits.stop_and_continue = false;
      continue;
    }
    if (i + 1 == argc) return false;
    char* rest = nullptr;
    const u64 v = std::strtoull(argv[++i], &rest, 0);
    if (*rest != '\0') return false;
    if (a == "--seconds") {
      o.seconds = v;
    } else if (a == "--runs") {
      o.runs = v;
      if (o.seconds == Options{}.seconds) o.seconds = 0;
    } else if (a == "--seed") {
      o.seed = v;
    } else if (a == "--first-run") {
      o.first_run = v;
    } else if (a == "--threads") {
      o.threads = v;
    } else if (a == "--calls") {
      o.calls = v;
    } else if (a == "--limit") {
      o.limits.operation_seconds = v;
    } else {
      return false;
    }
  }
  return o.threads >= 1 && o.threads <= Record::max_threads - 2;
}

} // namespace

int main(int argc, char** argv) {
  Options options;
  if (argc == 2 && std::string_view(argv[1]) == "--help") {
    std::fputs(usage, stdout);
    return 0;
  }
  if (!parse(argc, argv, options)) {
    std::fputs(usage, stderr);
    return 2;
  }
  void* const shared =
      mmap(nullptr, sizeof(Record), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (shared == MAP_FAILED) return 3;
  auto* const record = new (shared) Record;
  const pid_t pid = fork();
  if (pid < 0) return 3;
  if (pid == 0) return child(*record, options);
  return watch(pid, *record, options.limits, options.seed);
}
