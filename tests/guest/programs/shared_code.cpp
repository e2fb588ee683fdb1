// SPDX-License-Identifier: Apache-2.0
// Code that is written elsewhere than where it is executed: by another CPU, at another address.
#include "bench/client/engine_cpus.h"
#include "changing_code.h"
#include <algorithm>
#include <atomic>
#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <thread>

namespace changing {

// RDI: a number that another CPU publishes; RSI: the one to wait for; RDX: what to call then. Between the two
// is CPUID, as SDM vol. 3, 9.1.3 asks of the processor that executes what another has written.
asm(R"(
  .pushsection .rodata
wait_and_call_begin:
  pushq %rbx
  movq %rdx, %r8
1:
  pause
  cmpq %rsi, (%rdi)
  jne 1b
  xorl %eax, %eax
  xorl %ecx, %ecx
  cpuid
  call *%r8
  popq %rbx
  ret
wait_and_call_end:
  .popsection
)");
extern "C" const std::uint8_t wait_and_call_begin[], wait_and_call_end[];

namespace {

// What is written in round `i`.
std::uint32_t constant_of(Count i) { return static_cast<std::uint32_t>((i + 1) * 0x9e3779b1); }

// Where the constant of the function at `code` is; aligned, so that it is stored at once.
constexpr std::size_t constant_at = 8;
Function write_function(std::uint8_t* code) {
  Assembler a(code + constant_at - 1);
  a.mov_eax(0);
  a.ret();
  return as_function(code + constant_at - 1);
}
void store_constant(std::uint8_t* code, std::uint32_t value) {
  __atomic_store_n(reinterpret_cast<std::uint32_t*>(code + constant_at), value, __ATOMIC_RELEASE);
}

} // namespace

// The loop that waits is in the page that is written.
double other_cpu(Count count) {
  using WaitAndCall = std::uint64_t (*)(const std::atomic<std::uint64_t>*, std::uint64_t, Function);
  const bench::Cpus here(2);
  const bench::Pages code(page_size, all_rights);
  const Function function = write_function(code.data());
  std::memcpy(code.data() + 64, wait_and_call_begin,
              static_cast<std::size_t>(wait_and_call_end - wait_and_call_begin));
  const auto wait_and_call =
      reinterpret_cast<WaitAndCall>(reinterpret_cast<std::uintptr_t>(code.data() + 64));
  std::atomic<std::uint64_t> written = 0;
  std::atomic<std::uint64_t> executed = 0;
  const std::uint64_t start = bench::now_ns();
  std::thread writer([&] {
    here.pin(1);
    for (Count i = 1; i <= count; ++i) {
      store_constant(code.data(), constant_of(i));
      written.store(i, std::memory_order_release);
      while (executed.load(std::memory_order_acquire) != i) __builtin_ia32_pause();
    }
  });
  here.pin(0);
  for (Count i = 1; i <= count; ++i) {
    expect("the constant", wait_and_call(&written, i, function), constant_of(i));
    if (i % 16 == 0) { // often enough to be worth translating
      for (unsigned k = 0; k < 40; ++k) expect("the constant", function(0), constant_of(i));
    }
    executed.store(i, std::memory_order_release);
  }
  writer.join();
  return each(start, count);
}

namespace {

// Serializes, and is not an interrupt nor an instruction that asks for anything (SDM vol. 3, 9.3).
void return_from_no_interrupt() {
  asm volatile("leaq -128(%%rsp), %%rsp\n\t"
               "movq %%rsp, %%rax\n\t"
               "movl %%ss, %%ecx\n\t"
               "pushq %%rcx\n\t"
               "pushq %%rax\n\t"
               "pushfq\n\t"
               "movl %%cs, %%ecx\n\t"
               "pushq %%rcx\n\t"
               "leaq 1f(%%rip), %%rcx\n\t"
               "pushq %%rcx\n\t"
               "iretq\n"
               "1: leaq 128(%%rsp), %%rsp"
               :
               :
               : "rax", "rcx", "cc", "memory");
}

} // namespace

// The function is called all the time, also while it is written.
double other_cpu_iret(Count count) {
  const bench::Cpus here(2);
  const bench::Pages code(page_size, all_rights);
  const Function function = write_function(code.data());
  std::atomic<std::uint64_t> written = 0;
  std::atomic<std::uint64_t> executed = 0;
  const std::uint64_t start = bench::now_ns();
  std::thread writer([&] {
    here.pin(1);
    for (Count i = 1; i <= count; ++i) {
      store_constant(code.data(), constant_of(i));
      written.store(i, std::memory_order_release);
      while (executed.load(std::memory_order_acquire) != i) __builtin_ia32_pause();
      for (Count k = i % 64; k > 0; --k) asm volatile(""); // so that it is not always at the same moment
    }
  });
  here.pin(0);
  for (Count i = 1; i <= count; ++i) {
    do {
      function(0);
    } while (written.load(std::memory_order_acquire) != i);
    return_from_no_interrupt();
    expect("the constant", function(0), constant_of(i));
    executed.store(i, std::memory_order_release);
  }
  writer.join();
  return each(start, count);
}

// What JIT compilers do: membarrier serializes the other CPU, which then executes what was written before.
double other_cpu_running(Count count) {
  const bench::Cpus here(2);
  const bench::Pages code(page_size, all_rights);
  const Function function = write_function(code.data());
  if (syscall(SYS_membarrier, MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
    bench::fail("membarrier");
  std::atomic<std::uint64_t> calls = 0;
  std::atomic<std::uint64_t> last = 0;
  std::atomic<bool> done = false;
  std::thread executor([&] {
    here.pin(1);
    while (!done.load(std::memory_order_relaxed)) {
      last.store(function(0), std::memory_order_relaxed);
      calls.store(calls.load(std::memory_order_relaxed) + 1, std::memory_order_release);
    }
  });
  here.pin(0);
  const std::uint64_t start = bench::now_ns();
  for (Count i = 0; i < count; ++i) {
    store_constant(code.data(), constant_of(i));
    if (syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED_SYNC_CORE, 0, 0) != 0)
      bench::fail("membarrier");
    // The call that is under way may be the last with what was there before.
    for (const std::uint64_t now = calls.load(); calls.load(std::memory_order_acquire) < now + 2;)
      __builtin_ia32_pause();
    expect("the constant", last.load(std::memory_order_relaxed), constant_of(i));
  }
  const double ns = each(start, count);
  done = true;
  executor.join();
  return ns;
}

double aliases(Count count) {
  constexpr std::size_t addresses = 8192;
  const int file = static_cast<int>(syscall(SYS_memfd_create, "code", 0));
  if (file < 0 || ftruncate(file, page_size) != 0) bench::fail("memfd");
  void* const writable = mmap(nullptr, page_size, read_write, MAP_SHARED, file, 0);
  if (writable == MAP_FAILED) bench::fail("mmap");
  auto* const code = static_cast<std::uint8_t*>(writable);
  const auto offset = static_cast<std::size_t>(reinterpret_cast<std::uint8_t*>(write_function(code)) - code);
  const bench::Pages range(addresses * page_size, PROT_NONE);
  for (std::size_t i = 0; i < addresses; ++i) {
    if (mmap(range.data() + i * page_size, page_size, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_FIXED, file,
             0) == MAP_FAILED)
      bench::fail("mmap");
  }
  bench::Random random;
  std::uint32_t value = constant_of(0);
  store_constant(code, value);
  const std::uint64_t start = bench::now_ns();
  Count next_change = 0;
  for (Count i = 0; i < count; ++i) {
    if (i == next_change) { // after a few calls, or after many at each address
      value = constant_of(i);
      store_constant(code, value);
      const std::uint64_t r = random();
      next_change += r % 4 == 0 ? r / 4 % (40 * addresses) : r / 4 % addresses;
    }
    // One after another, and back and forth.
    const std::size_t at = i / addresses % 2 == 0 ? i % addresses : i * 4099 % addresses;
    expect("the constant", as_function(range.data() + at * page_size + offset)(0), value);
  }
  const double ns = each(start, count);
  munmap(writable, page_size);
  close(file);
  return ns;
}

} // namespace changing
