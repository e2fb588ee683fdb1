// SPDX-License-Identifier: Apache-2.0
#include "x86/interp/host_code.h"

#include "x86/interp/vector_emitter.h"

#include <atomic>
#include <cpuid.h>
#include <csignal>
#include <cstring>
#include <mutex>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

namespace ring3::x86::host {

namespace {

constexpr u64 chunk_size = 256 * 1024;
// Bounds what a guest that keeps inventing encodings can make us allocate; no real one comes near.
constexpr unsigned max_chunks = 1024;
constexpr u64 stub_alignment = 64;

// The signal handler reads these without locks: an address is published before the code in it can run.
std::atomic<u64> chunk_address[max_chunks];
std::atomic<unsigned> chunk_count{0};
std::atomic<u64> fault_exit{0};
std::atomic<bool> caller_handles{false};
struct sigaction previous_action;

bool in_generated_code(u64 rip) {
  const unsigned n = chunk_count.load(std::memory_order_acquire);
  for (unsigned i = 0; i < n; ++i) {
    if (rip - chunk_address[i].load(std::memory_order_relaxed) < chunk_size) return true;
  }
  return false;
}

void on_sigfpe(int number, siginfo_t* info, void* context) {
  auto* uc = static_cast<ucontext_t*>(context);
  auto rip = static_cast<u64>(uc->uc_mcontext.gregs[REG_RIP]);
  if (exception_resume(rip)) {
    uc->uc_mcontext.gregs[REG_RIP] = static_cast<greg_t>(rip);
    return;
  }
  if ((previous_action.sa_flags & SA_SIGINFO) != 0) {
    previous_action.sa_sigaction(number, info, context);
  } else if (previous_action.sa_handler == SIG_IGN || previous_action.sa_handler == SIG_DFL) {
    signal(number, SIG_DFL); // the instruction repeats and ends the process, as it would have without us
  } else {
    previous_action.sa_handler(number);
  }
}

class CodeMemory {
 public:
  const void* publish(std::span<const u8> code) {
    const std::scoped_lock guard(lock_);
    if (!ready_) {
      ready_ = true;
      install();
    }
    if (fault_exit.load(std::memory_order_relaxed) == 0) return nullptr;
    return place(code);
  }

 private:
  void install() {
    Emitter e;
    e.bytes({0x0f, 0xae, 0x9f}); // stmxcsr [rdi + mxcsr]
    e.u32_(static_cast<u32>(mxcsr_offset));
    e.bytes({0x0f, 0xae, 0x15, 0x0e, 0, 0, 0}); // ldmxcsr [rip + 14]: the default below
    e.bytes({0x0f, 0x77});                      // emms
    if (has_avx()) {
      e.bytes({0xc5, 0xf8, 0x77}); // vzeroupper
    } else {
      e.bytes({0x90, 0x90, 0x90});
    }
    e.bytes({0xb8, 1, 0, 0, 0, 0xc3}); // mov eax, 1; ret
    e.bytes({0x90, 0x90, 0x90});
    e.u32_(default_mxcsr);
    const void* at = place(e.span());
    if (at == nullptr) return;
    if (!caller_handles.load()) {
      struct sigaction action {};
      action.sa_sigaction = on_sigfpe;
      action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
      sigemptyset(&action.sa_mask);
      if (sigaction(SIGFPE, &action, &previous_action) != 0) return;
    }
    fault_exit.store(reinterpret_cast<u64>(at), std::memory_order_relaxed);
  }

  const void* place(std::span<const u8> code) {
    const u64 size = (code.size() + stub_alignment - 1) & ~(stub_alignment - 1);
    if (used_ + size > chunk_size && !grow()) return nullptr;
    std::memcpy(writable_ + used_, code.data(), code.size());
    const void* at = executable_ + used_;
    used_ += size;
    return at;
  }

  bool grow() {
    const unsigned n = chunk_count.load(std::memory_order_relaxed);
    if (n == max_chunks) return false;
    const int fd = memfd_create("ring3-code", MFD_CLOEXEC);
    if (fd < 0) return false;
    void* rw = MAP_FAILED;
    void* rx = MAP_FAILED;
    if (ftruncate(fd, chunk_size) == 0) {
      rw = mmap(nullptr, chunk_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
      rx = mmap(nullptr, chunk_size, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
    }
    close(fd);
    if (rw == MAP_FAILED || rx == MAP_FAILED) {
      if (rw != MAP_FAILED) munmap(rw, chunk_size);
      if (rx != MAP_FAILED) munmap(rx, chunk_size);
      return false;
    }
    if (writable_ != nullptr) munmap(writable_, chunk_size); // the full chunk needs no writer any more
    writable_ = static_cast<u8*>(rw);
    executable_ = static_cast<const u8*>(rx);
    used_ = 0;
    chunk_address[n].store(reinterpret_cast<u64>(rx), std::memory_order_relaxed);
    chunk_count.store(n + 1, std::memory_order_release);
    return true;
  }

  std::mutex lock_;
  bool ready_ = false;
  u8* writable_ = nullptr;
  const u8* executable_ = nullptr;
  u64 used_ = chunk_size;
};

CodeMemory& code_memory() {
  static CodeMemory m;
  return m;
}

u64 host_xcr0() {
  static const u64 value = [] {
    u32 a, b, c, d;
    __cpuid(1, a, b, c, d);
    if ((c & (1U << 27)) == 0) return u64{0};
    u32 lo, hi;
    asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
    return u64{lo} | u64{hi} << 32;
  }();
  return value;
}

} // namespace

const void* publish_code(std::span<const u8> code) { return code_memory().publish(code); }

bool has_feature(Feature f) {
  if (f == feature::always) return true;
  u32 r[4];
  __cpuid(f.leaf & 0x80000000, r[0], r[1], r[2], r[3]);
  if (r[0] < f.leaf) return false;
  __cpuid_count(f.leaf, u32{f.subleaf}, r[0], r[1], r[2], r[3]);
  return (r[static_cast<unsigned>(f.reg)] >> f.bit & 1) != 0;
}

bool has_avx() {
  static const bool yes = (host_xcr0() & 6) == 6 && has_feature(feature::avx);
  return yes;
}
bool has_avx512() {
  static const bool yes = (host_xcr0() & 0xe6) == 0xe6 && has_feature(feature::avx512f);
  return yes;
}
bool has_avx512bw() {
  static const bool yes = has_avx512() && has_feature(feature::avx512bw);
  return yes;
}

void leave_exceptions_to_caller() { caller_handles.store(true); }

bool exception_resume(u64& rip) {
  if (!in_generated_code(rip)) return false;
  // Every stub keeps RDI and RSP as at entry until its instruction has executed, so one exit serves them all.
  rip = fault_exit.load(std::memory_order_relaxed);
  return true;
}

void install_exception_handler() {
  const u8 ret = 0xc3;
  publish_code({&ret, 1});
}

} // namespace ring3::x86::host
