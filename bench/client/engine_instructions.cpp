// SPDX-License-Identifier: Apache-2.0
// Loops of instructions. They are assembly, so that the same instructions run whatever the compiler is.
#include "engine_loops.h"
#include <cstring>
#include <memory>

namespace bench {

// --- integer instructions ---

double integer(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("1: leaq 7(%%rax,%%rcx,4), %%rax\n\t"
                 "xorq %%rdx, %%rax\n\t"
                 "rolq $5, %%rcx\n\t"
                 "imulq %%rax, %%rdx\n\t"
                 "subq %%rcx, %%rsi\n\t"
                 "shrq $3, %%rdi\n\t"
                 "addq %%rsi, %%rdi\n\t"
                 "andq %%rax, %%rsi\n\t"
                 "orq $1, %%rdx\n\t"
                 "addq %%rdi, %%rcx\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 :
                 : "rax", "rcx", "rdx", "rsi", "rdi", "cc");
  });
}

double load_store(Count count) {
  alignas(4096) static std::uint64_t memory[512];
  return fastest(count, [](Count n) {
    asm volatile("xorl %%edx, %%edx\n"
                 "1: movq (%1,%%rdx,8), %%rax\n\t"
                 "leaq 5(%%rax,%%rcx), %%rax\n\t"
                 "xorq %%rax, %%rcx\n\t"
                 "addq $3, %%rsi\n\t"
                 "subq %%rsi, %%rcx\n\t"
                 "movq %%rax, 8(%1,%%rdx,8)\n\t"
                 "incl %%edx\n\t"
                 "andl $255, %%edx\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(memory)
                 : "rax", "rcx", "rdx", "rsi", "cc", "memory");
  });
}

// Which way the branches go depends on bits that repeat after 64 iterations, which processors learn.
double branches(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movabsq $0x9e3779b97f4a7c15, %%rax\n\t"
                 "movabsq $0xd1b54a32d192ed03, %%rdx\n"
                 "1: rorq $1, %%rax\n\t"
                 "jc 2f\n\t"
                 "addl $3, %%ecx\n"
                 "2: rorq $1, %%rdx\n\t"
                 "testb $3, %%dl\n\t"
                 "jz 3f\n\t"
                 "subl $1, %%ecx\n"
                 "3: cmpq %%rdx, %%rax\n\t"
                 "ja 4f\n\t"
                 "xorl $5, %%ecx\n"
                 "4: decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 :
                 : "rax", "rcx", "rdx", "cc");
  });
}

// Two levels of calls an iteration. The red zone of the function around it is skipped.
double calls(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("leaq -128(%%rsp), %%rsp\n"
                 "1: call 2f\n\t"
                 "decq %0\n\t"
                 "jnz 1b\n\t"
                 "jmp 4f\n"
                 "2: addq $1, %%rax\n\t"
                 "call 3f\n\t"
                 "ret\n"
                 "3: addq $2, %%rax\n\t"
                 "ret\n"
                 "4: leaq 128(%%rsp), %%rsp"
                 : "+r"(n)
                 :
                 : "rax", "cc", "memory");
  });
}

double indirect(Count count) {
  return fastest(count, [](Count n) {
    asm volatile(".pushsection .data.rel.ro, \"aw\"\n\t"
                 ".balign 8\n"
                 "8: .quad 2f, 3f, 4f, 5f\n\t"
                 ".popsection\n\t"
                 "leaq 8b(%%rip), %%rsi\n\t"
                 "movabsq $0x9e3779b97f4a7c15, %%rax\n"
                 "1: rolq $2, %%rax\n\t"
                 "movl %%eax, %%edx\n\t"
                 "andl $3, %%edx\n\t"
                 "jmp *(%%rsi,%%rdx,8)\n"
                 "2: addl $1, %%ecx\n\t"
                 "jmp 6f\n"
                 "3: subl $3, %%ecx\n\t"
                 "jmp 6f\n"
                 "4: xorl $5, %%ecx\n\t"
                 "jmp 6f\n"
                 "5: leal 7(%%rcx), %%ecx\n"
                 "6: decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 :
                 : "rax", "rcx", "rdx", "rsi", "cc");
  });
}

// --- memory ---

// Follows pointers through all cache lines of `size` bytes, in one random circle.
double chase(Count count, std::size_t size) {
  constexpr std::size_t line = 64;
  const std::size_t lines = size / line;
  const Pages pages(size);
  {
    // Sattolo's algorithm: a permutation that is one cycle.
    const std::unique_ptr<std::uint32_t[]> next = std::make_unique<std::uint32_t[]>(lines);
    for (std::size_t i = 0; i < lines; ++i) next[i] = static_cast<std::uint32_t>(i);
    Random random;
    for (std::size_t i = lines - 1; i > 0; --i) std::swap(next[i], next[random() % i]);
    for (std::size_t i = 0; i < lines; ++i) {
      const void* target = pages.data() + next[i] * line;
      std::memcpy(pages.data() + i * line, &target, sizeof target);
    }
  }
  const void* at = pages.data();
  return fastest(count, [&](Count n) {
    asm volatile("1: movq (%1), %1\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n), "+r"(at)
                 :
                 : "cc", "memory");
  });
}
double chase_l1(Count count) { return chase(count, 16 << 10); }
double chase_64m(Count count) { return chase(count, 64 << 20); }

alignas(4096) std::uint8_t source[4096];
alignas(4096) std::uint8_t destination[4096];

double rep_movsb(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("1: movq %1, %%rsi\n\t"
                 "movq %2, %%rdi\n\t"
                 "movl $4096, %%ecx\n\t"
                 "rep movsb\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(source), "r"(destination)
                 : "rcx", "rsi", "rdi", "cc", "memory");
  });
}

double rep_stosq(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("1: movq %1, %%rdi\n\t"
                 "movl $512, %%ecx\n\t"
                 "rep stosq\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(destination), "a"(std::uint64_t{0x0123456789abcdef})
                 : "rcx", "rdi", "cc", "memory");
  });
}

double lock_xadd(Count count) {
  alignas(64) static std::uint64_t counter;
  return fastest(count, [](Count n) {
    asm volatile("1: movl $1, %%eax\n\t"
                 "lock xaddq %%rax, (%1)\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(&counter)
                 : "rax", "cc", "memory");
  });
}

// --- floating point and vectors: all values stay normal numbers ---

constexpr double factors[4] = {0.75, 0.5, 0.75, 0.5};
constexpr double addends[4] = {1.5, 2.25, 1.5, 2.25};

double scalar_double(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movsd (%1), %%xmm2\n\t"
                 "movsd (%2), %%xmm3\n\t"
                 "movsd (%2), %%xmm0\n\t"
                 "movsd (%2), %%xmm1\n"
                 "1: mulsd %%xmm2, %%xmm0\n\t"
                 "mulsd %%xmm2, %%xmm1\n\t"
                 "addsd %%xmm3, %%xmm0\n\t"
                 "addsd %%xmm3, %%xmm1\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(factors), "r"(addends)
                 : "xmm0", "xmm1", "xmm2", "xmm3", "cc");
  });
}

double sse2_double(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movupd (%1), %%xmm2\n\t"
                 "movupd (%2), %%xmm3\n\t"
                 "movupd (%2), %%xmm0\n\t"
                 "movupd (%2), %%xmm1\n"
                 "1: mulpd %%xmm2, %%xmm0\n\t"
                 "mulpd %%xmm2, %%xmm1\n\t"
                 "addpd %%xmm3, %%xmm0\n\t"
                 "addpd %%xmm3, %%xmm1\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(factors), "r"(addends)
                 : "xmm0", "xmm1", "xmm2", "xmm3", "cc");
  });
}

double sse2_integer(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("movdqu (%1), %%xmm0\n\t"
                 "movdqu (%2), %%xmm1\n\t"
                 "movdqa %%xmm0, %%xmm2\n"
                 "1: paddd %%xmm1, %%xmm0\n\t"
                 "pxor %%xmm0, %%xmm1\n\t"
                 "pshufd $0x39, %%xmm0, %%xmm3\n\t"
                 "pmuludq %%xmm1, %%xmm2\n\t"
                 "punpcklbw %%xmm3, %%xmm2\n\t"
                 "psubw %%xmm3, %%xmm1\n\t"
                 "decq %0\n\t"
                 "jnz 1b"
                 : "+r"(n)
                 : "r"(factors), "r"(addends)
                 : "xmm0", "xmm1", "xmm2", "xmm3", "cc");
  });
}

[[gnu::target("avx2")]] void avx2_body(Count n) {
  asm volatile("vmovdqu (%1), %%ymm0\n\t"
               "vmovdqu (%2), %%ymm1\n\t"
               "vmovdqa %%ymm0, %%ymm2\n"
               "1: vpaddd %%ymm1, %%ymm0, %%ymm0\n\t"
               "vpxor %%ymm0, %%ymm1, %%ymm1\n\t"
               "vpshufd $0x39, %%ymm0, %%ymm3\n\t"
               "vpmuludq %%ymm1, %%ymm2, %%ymm2\n\t"
               "vpunpcklbw %%ymm3, %%ymm2, %%ymm2\n\t"
               "vpsubw %%ymm3, %%ymm1, %%ymm1\n\t"
               "decq %0\n\t"
               "jnz 1b\n\t"
               "vzeroupper"
               : "+r"(n)
               : "r"(factors), "r"(addends)
               : "xmm0", "xmm1", "xmm2", "xmm3", "cc");
}
double avx2_integer(Count count) { return fastest(count, avx2_body); }

[[gnu::target("fma")]] void fma_body(Count n) {
  asm volatile("vmovupd (%1), %%ymm2\n\t"
               "vmovupd (%2), %%ymm3\n\t"
               "vmovapd %%ymm3, %%ymm0\n\t"
               "vmovapd %%ymm3, %%ymm1\n"
               "1: vfmadd213pd %%ymm3, %%ymm2, %%ymm0\n\t"
               "vfmadd213pd %%ymm3, %%ymm2, %%ymm1\n\t"
               "decq %0\n\t"
               "jnz 1b\n\t"
               "vzeroupper"
               : "+r"(n)
               : "r"(factors), "r"(addends)
               : "xmm0", "xmm1", "xmm2", "xmm3", "cc");
}
double fma(Count count) { return fastest(count, fma_body); }

double x87(Count count) {
  return fastest(count, [](Count n) {
    asm volatile("fldl (%1)\n\t"
                 "fldl (%2)\n\t"
                 "fldl (%2)\n"
                 "1: fmul %%st(2), %%st\n\t"
                 "fadd %%st(1), %%st\n\t"
                 "fsubl (%1)\n\t"
                 "decq %0\n\t"
                 "jnz 1b\n\t"
                 "fstp %%st(0)\n\t"
                 "fstp %%st(0)\n\t"
                 "fstp %%st(0)"
                 : "+r"(n)
                 : "r"(factors), "r"(addends)
                 : "st", "st(1)", "st(2)", "st(3)", "st(4)", "st(5)", "st(6)", "st(7)", "cc", "memory");
  });
}

} // namespace bench
