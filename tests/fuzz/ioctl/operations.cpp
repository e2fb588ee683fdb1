// SPDX-License-Identifier: Apache-2.0
#include "operations.h"

#include "guests.h"

#include <algorithm>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <xmmintrin.h>

namespace fuzz {

namespace {

// A call that comes back must leave the processor as it found it.
void check_processor(Record& record, const char* name) {
  u64 flags;
  u16 control;
  asm volatile("pushfq; popq %0" : "=r"(flags));
  asm volatile("fnstcw %0" : "=m"(control));
  constexpr u64 direction = 1 << 10, alignment = 1 << 18;
  if ((flags & (direction | alignment)) != 0)
    fail(record, "%s returned with RFLAGS %llx", name, flags + 0ULL);
  if ((_mm_getcsr() & ~0x3fU) != 0x1f80) fail(record, "%s returned with MXCSR %x", name, _mm_getcsr());
  if (control != 0x37f) fail(record, "%s returned with x87 control word %x", name, control);
}

// Part of the file that a vCPU shares with its VMM, for a moment. Empty: this descriptor has none.
class SharedView {
 public:
  SharedView(int fd, u64 offset, std::size_t size) : size_(size) {
    if (fd < 0) return;
    void* const p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, fd, static_cast<off_t>(offset));
    if (p == MAP_FAILED) return;
    start_ = static_cast<std::byte*>(p);
    // The number may have become another file's since, a shorter one: that would be SIGBUS, and our own
    // fault.
    constexpr int populate_write = 23; // MADV_POPULATE_WRITE, Linux 5.14
    if (madvise(start_, size_, populate_write) == 0) return;
    munmap(start_, size_);
    start_ = nullptr;
  }
  ~SharedView() {
    if (start_ != nullptr) munmap(start_, size_);
  }
  SharedView(const SharedView&) = delete;
  SharedView& operator=(const SharedView&) = delete;
  explicit operator bool() const { return start_ != nullptr; }
  kvm_run* run() const { return reinterpret_cast<kvm_run*>(start_); }
  std::span<std::byte> bytes() const { return {start_, size_}; }

 private:
  std::size_t size_;
  std::byte* start_ = nullptr;
};

// Garbage in kvm_run, the data of port accesses and the rings, while KVM_RUN may use them on another thread.
// The descriptor is that of a vCPU or of nothing that has these pages.
void scribble(Thread& t) {
  Random& r = t.random;
  const int fd = r.among(t.world.vcpu).get();
  const SharedView view(fd, 0, t.world.run_size);
  t.record.begin("scribble", static_cast<u64>(fd), 0);
  if (view) {
    for (u64 n = r.below(20); n != 0; --n) {
      switch (r.below(6)) {
      case 0: r.damage(view.bytes().first(256)); break;
      case 1: r.damage(view.bytes().subspan(4096, 4096)); break;
      case 2: r.damage(view.bytes().subspan(8192, 64)); break;
      case 3:
        view.run()->kvm_valid_regs = r.one_in(4) ? r.odd_number() : r.below(8);
        view.run()->kvm_dirty_regs = r.one_in(4) ? r.odd_number() : r.below(8);
        break;
      case 4: view.run()->request_interrupt_window = r.one_in(2); break;
      default: r.damage(view.bytes().first(4096)); break;
      }
    }
    view.run()->immediate_exit = r.one_in(16);
    if (r.one_in(2)) view.run()->kvm_valid_regs = view.run()->kvm_dirty_regs = 0;
    if (r.one_in(2)) view.run()->cr8 = r.below(16);
  }
  t.record.end(0);
}

// The dirty ring lies behind a gap in the same file. Whatever is marked as collected there is taken back.
void scribble_ring(Thread& t) {
  Random& r = t.random;
  const int fd = r.among(t.world.vcpu).get();
  t.record.begin("scribble on the dirty ring", static_cast<u64>(fd), 0);
  if (const SharedView view(fd, KVM_DIRTY_LOG_PAGE_OFFSET * u64{4096}, 16384); view) {
    const std::span entries(reinterpret_cast<kvm_dirty_gfn*>(view.bytes().data()),
                            view.bytes().size() / sizeof(kvm_dirty_gfn));
    for (kvm_dirty_gfn& e : entries) {
      if (!r.one_in(3)) e.flags |= KVM_DIRTY_GFN_F_RESET;
      if (r.one_in(40)) r.damage_object(e);
    }
  }
  t.record.end(0);
}

// KVM's objects are the parent's. What a sanitizer's allocator does after a fork of several threads is not
// our business: the child has little to do with it, and an alarm ends it.
void fork_operation(Thread& t) {
  t.record.begin("fork", 0, 0);
  const pid_t child = fork();
  if (child == 0) {
    signal(SIGALRM, SIG_DFL);
    alarm(10);
    kvm_regs regs;
    for (const Descriptor& v : t.world.vcpu) {
      if (v.get() >= 0 && ioctl(v.get(), KVM_GET_REGS, &regs) == 0) _exit(2); // EIO, or not one any more
      if (v.get() >= 0 && ioctl(v.get(), KVM_RUN, 0) == 0) _exit(2);
    }
    for (const Descriptor& v : t.world.vm) {
      if (v.get() >= 0 && ioctl(v.get(), KVM_CREATE_VCPU, 77) >= 0) _exit(2);
    }
    for (Descriptor& v : t.world.vcpu) v.reset();
    for (Descriptor& v : t.world.vm) v.reset();
    _exit(0);
  }
  int status = 0;
  while (child > 0 && waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  t.record.end(0);
  if (child < 0) return;
#ifdef __SANITIZE_ADDRESS__
  if (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM) return;
#endif
  if (status != 0)
    fail(t.world.record, "a child of fork() ended with status %x", static_cast<unsigned>(status));
}

} // namespace

long call(Thread& t, const char* name, int fd, unsigned long request, u64 argument) {
  t.record.begin(name, static_cast<u64>(fd), argument);
  const long result = ioctl(fd, request, argument);
  const int error = errno;
  check_processor(t.world.record, name);
  errno = error;
  t.record.end(result);
  t.world.record.operations.fetch_add(1, std::memory_order_relaxed);
  if (result < 0) t.world.record.refused.fetch_add(1, std::memory_order_relaxed);
  if (result < -1 || (result == -1 && (error <= 0 || error > 133)))
    fail(t.world.record, "%s gave %ld with errno %d", name, result, error);
  return result;
}

long enter(Thread& t, int vcpu) {
  const long result = call(t, "KVM_RUN", vcpu, KVM_RUN, u64{0});
  const int error = errno;
  t.world.record.entries.fetch_add(1, std::memory_order_relaxed);
  constexpr int possible[] = {EINTR, EFAULT, EINVAL, EIO, EBADF, ENOTTY, EAGAIN, ENOMEM};
  if (result < 0 && std::ranges::find(possible, error) == std::end(possible))
    fail(t.world.record, "KVM_RUN gave errno %d", error);
  if (result == 0 && t.random.one_in(4)) {
    const SharedView view(vcpu, 0, t.world.run_size);
    auto& exits = t.world.record.exits;
    if (view)
      exits[std::min<std::size_t>(view.run()->exit_reason, exits.size() - 1)].fetch_add(
          1, std::memory_order_relaxed);
  }
  return result;
}

void operate(Thread& t) {
  Random& r = t.random;
  const u64 kind = r.below(1000);
  if (kind < 450) {
    const int vcpu = t.vcpu();
    if (r.one_in(3)) boot(t, vcpu);
    for (u64 n = 1 + r.below(6); n != 0 && enter(t, vcpu) == 0; --n) {
    }
  } else if (kind < 650) {
    state_operation(t);
  } else if (kind < 760) {
    vm_operation(t);
  } else if (kind < 860) {
    memory_operation(t);
  } else if (kind < 930) {
    scribble(t);
  } else if (kind < 950) {
    scribble_ring(t);
  } else if (kind < 998 || !r.one_in(4)) {
    file_operation(t);
  } else {
    fork_operation(t);
  }
}

} // namespace fuzz
