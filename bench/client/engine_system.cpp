// SPDX-License-Identifier: Apache-2.0
// Loops that need more than a few instructions: a sort, system calls, page faults, code that changes.
#include "engine_cpus.h"
#include "engine_loops.h"
#include <cstring>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

namespace bench {

// --- a program as compilers make it ---

[[gnu::noinline]] void quicksort(std::uint32_t* first, std::uint32_t* last) {
  while (last - first > 16) {
    const std::uint32_t pivot = first[(last - first) / 2];
    std::uint32_t* i = first;
    std::uint32_t* j = last - 1;
    while (i <= j) {
      while (*i < pivot) ++i;
      while (*j > pivot) --j;
      if (i <= j) std::swap(*i++, *j--);
    }
    quicksort(first, j + 1);
    first = i;
  }
  for (std::uint32_t* i = first; i < last; ++i) {
    const std::uint32_t value = *i;
    std::uint32_t* j = i;
    for (; j > first && j[-1] > value; --j) *j = j[-1];
    *j = value;
  }
}

double sort(Count count) {
  constexpr std::size_t size = 65536;
  static std::uint32_t input[size];
  static std::uint32_t work[size];
  Random random;
  for (std::uint32_t& x : input) x = static_cast<std::uint32_t>(random());
  const double ns = fastest(count, [](Count n) {
    for (Count k = 0; k < n; ++k) {
      std::memcpy(work, input, sizeof work);
      quicksort(work, work + size);
    }
  });
  if (!std::is_sorted(work, work + size)) {
    std::fputs("sort: the result is not sorted\n", stderr);
    std::exit(3);
  }
  return ns;
}

// --- the kernel ---

double system_call(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movq %0, %%rbx\n"
                 "1: movl %1, %%eax\n\t"
                 "syscall\n\t"
                 "decq %%rbx\n\t"
                 "jnz 1b"
                 :
                 : "r"(n), "i"(SYS_getppid)
                 : "rax", "rbx", "rcx", "r11", "cc", "memory");
  });
}

double ping_pong(Count count) {
  const Cpus here(1);
  int there[2];
  int back[2];
  if (pipe(there) != 0 || pipe(back) != 0) fail("pipe");
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    close(there[1]);
    close(back[0]);
    char c;
    while (read(there[0], &c, 1) == 1) {
      if (write(back[1], &c, 1) != 1) break;
    }
    _exit(0);
  }
  close(there[0]);
  close(back[1]);
  const double ns = fastest(count, [&](Count n) {
    char c = 'x';
    for (Count i = 0; i < n; ++i) {
      if (write(there[1], &c, 1) != 1 || read(back[0], &c, 1) != 1) fail("pipe");
    }
  });
  close(there[1]);
  close(back[0]);
  waitpid(child, nullptr, 0);
  return ns;
}

double fork_wait(Count count) {
  const Cpus here(1);
  return fastest(count, [](Count n) {
    for (Count i = 0; i < n; ++i) {
      const pid_t child = fork();
      if (child < 0) fail("fork");
      if (child == 0) _exit(0);
      if (waitpid(child, nullptr, 0) != child) fail("waitpid");
    }
  });
}

// An iteration is one page: its part of mmap() and munmap(), and the fault.
double page_faults(Count count) {
  static constexpr std::size_t size = 16 << 20;
  return fastest(count, [](Count n) {
    for (Count done = 0; done < n; done += size / 4096) {
      const Pages pages(size);
      volatile std::uint8_t* p = pages.data();
      const std::size_t end = std::min<std::size_t>(size, (n - done) * 4096);
      for (std::size_t i = 0; i < end; i += 4096) p[i] = 1;
    }
  });
}

// --- what makes translators throw code away, or leave it ---

double self_modify(Count count) {
  constexpr std::uint8_t function[] = {0xb8, 0, 0, 0, 0, 0xc3}; // mov eax, 0; ret
  const Pages code(4096, PROT_READ | PROT_WRITE | PROT_EXEC);
  std::memcpy(code.data(), function, sizeof function);
  return fastest(count, [&](Count n) {
    Count wrong = 0;
    asm volatile("leaq -128(%%rsp), %%rsp\n"
                 "1: movl %k0, 1(%2)\n\t"
                 "call *%2\n\t"
                 "cmpl %k0, %%eax\n\t"
                 "setne %%al\n\t"
                 "movzbl %%al, %%eax\n\t"
                 "addq %%rax, %1\n\t"
                 "decq %0\n\t"
                 "jnz 1b\n\t"
                 "leaq 128(%%rsp), %%rsp"
                 : "+&r"(n), "+&r"(wrong)
                 : "r"(code.data())
                 : "rax", "cc", "memory");
    if (wrong != 0) {
      std::fputs("self-modify: an old constant was returned\n", stderr);
      std::exit(3);
    }
  });
}

double cpuid(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movq %0, %%rsi\n"
                 "1: xorl %%eax, %%eax\n\t"
                 "xorl %%ecx, %%ecx\n\t"
                 "cpuid\n\t"
                 "decq %%rsi\n\t"
                 "jnz 1b"
                 :
                 : "r"(n)
                 : "rax", "rbx", "rcx", "rdx", "rsi", "cc");
  });
}

} // namespace bench
