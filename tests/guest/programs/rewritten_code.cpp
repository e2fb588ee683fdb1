// SPDX-License-Identifier: Apache-2.0
// Code that its own thread rewrites: the next call executes what was written, without any more ado (SDM vol.
// 3, 11.6).
#include "changing_code.h"

namespace changing {

double rewrite_constant(Count count) {
  const bench::Pages code(page_size, all_rights);
  Assembler a(code.data());
  a.mov_eax(0);
  a.ret();
  const Function function = as_function(code.data());
  const std::uint64_t start = bench::now_ns();
  for (Count i = 0; i < count; ++i) {
    const auto value = static_cast<std::uint32_t>(i * 0x9e3779b9);
    std::memcpy(code.data() + 1, &value, sizeof value);
    expect("the constant", function(0), value);
  }
  return each(start, count);
}

namespace {

// One of several functions of one argument, at `at`. Returns what it makes of `x`.
std::uint64_t write_body(std::uint8_t* at, unsigned shape, std::uint32_t constant, std::uint64_t x) {
  Assembler a(at);
  switch (shape) {
  case 0: // mov eax, constant
    a.mov_eax(constant);
    a.ret();
    return constant;
  case 1: // lea rax, [rdi + 8 bits]; nop of 5 bytes
    a.bytes({0x48, 0x8d, 0x47, constant & 0x7f, 0x0f, 0x1f, 0x44, 0x00, 0x00});
    a.ret();
    return x + (constant & 0x7f);
  case 2: // mov eax, constant; jmp over one byte that is no instruction; add rax, rdi
    a.mov_eax(constant);
    a.bytes({0xeb, 0x01, 0x06, 0x48, 0x01, 0xf8});
    a.ret();
    return constant + x;
  case 3: { // a loop: mov ecx, 1 to 8; mov eax, constant; again: add rax, rdi; dec ecx; jnz again
    const unsigned times = 1 + constant % 8;
    a.bytes({0xb9, times, 0, 0, 0});
    a.mov_eax(constant);
    a.bytes({0x48, 0x01, 0xf8, 0xff, 0xc9, 0x75, 0xf9});
    a.ret();
    return constant + times * x;
  }
  default: // a call of what follows: mov eax, constant; call; ret; xor rax, rdi; ret
    a.mov_eax(constant);
    a.bytes({0xe8, 1, 0, 0, 0});
    a.ret();
    a.bytes({0x48, 0x31, 0xf8});
    a.ret();
    return constant ^ x;
  }
}

} // namespace

double rewrite_body(Count count) {
  const bench::Pages code(page_size, all_rights);
  bench::Random random;
  const std::uint64_t start = bench::now_ns();
  for (Count i = 0; i < count; ++i) {
    const std::uint64_t r = random();
    const std::uint64_t x = r >> 40;
    const std::uint64_t result = write_body(code.data() + 16 * (i % 3), static_cast<unsigned>(r % 5),
                                            static_cast<std::uint32_t>(r >> 8), x);
    const Function function = as_function(code.data() + 16 * (i % 3));
    for (unsigned calls = r % 8 == 0 ? 40 : 1; calls > 0; --calls) expect("the result", function(x), result);
  }
  return each(start, count);
}

// RDI: the page it is in; RSI: stores; RDX: a pseudo-random number; R8 and R9: offsets of its begin and end
// there. A byte goes to a pseudo-random offset; if that would be in this code, four go into the constant of
// the instruction that comes soon. Returns the sum of these constants, of each round one.
asm(R"(
  .pushsection .rodata
store_beside_begin:
  movq %rcx, %r9
  xorl %eax, %eax
1:
  movq %rdx, %rcx
  shlq $13, %rcx
  xorq %rcx, %rdx
  movq %rdx, %rcx
  shrq $7, %rcx
  xorq %rcx, %rdx
  movq %rdx, %rcx
  shlq $17, %rcx
  xorq %rcx, %rdx
  movl %edx, %ecx
  andl $4095, %ecx
  cmpq %r9, %rcx
  jb 2f
  cmpq %r8, %rcx
  jae 2f
  movl %edx, 3f+2(%rip)
  jmp 3f
2:
  movb %dl, (%rdi,%rcx)
3:
  movl $0x11223344, %r10d
  addq %r10, %rax
  decq %rsi
  jnz 1b
  ret
store_beside_end:
  .popsection
)");
extern "C" const std::uint8_t store_beside_begin[], store_beside_end[];

double store_beside(Count count) {
  using StoreBeside =
      std::uint64_t (*)(std::uint8_t*, Count, std::uint64_t, std::uint64_t begin, std::uint64_t end);
  const auto size = static_cast<std::size_t>(store_beside_end - store_beside_begin);
  const bench::Pages code(page_size, all_rights);
  static std::uint8_t model[page_size];
  bench::Random random;
  std::uint64_t ns = 0;
  const std::size_t places[] = {0, 100, 128, 2001, page_size - size};
  for (const std::size_t begin : places) {
    std::memset(code.data(), 0xcc, page_size);
    std::memcpy(code.data() + begin, store_beside_begin, size);
    std::memcpy(model, code.data(), page_size);
    const Count rounds = count / std::size(places);
    const std::uint64_t seed = random.state;
    std::uint64_t sum = 0;
    std::uint32_t constant = 0x11223344;
    for (Count i = 0; i < rounds; ++i) {
      const std::uint64_t r = random();
      const std::size_t offset = r % page_size;
      if (offset >= begin && offset < begin + size) {
        constant = static_cast<std::uint32_t>(r);
      } else {
        model[offset] = static_cast<std::uint8_t>(r);
      }
      sum += constant;
    }
    const auto function =
        reinterpret_cast<StoreBeside>(reinterpret_cast<std::uintptr_t>(code.data() + begin));
    const std::uint64_t start = bench::now_ns();
    const std::uint64_t result = function(code.data(), rounds, seed, begin, begin + size);
    ns += bench::now_ns() - start;
    expect("the sum", result, sum);
    for (std::size_t i = 0; i < page_size; ++i) {
      if (i < begin || i >= begin + size) expect("a byte", code.data()[i], model[i]);
    }
  }
  return static_cast<double>(ns) / static_cast<double>(count);
}

double map_call_unmap(Count count) {
  constexpr unsigned functions_a_page = 4;
  bench::Random random;
  const std::uint64_t start = bench::now_ns();
  for (Count i = 0; i < count; ++i) {
    const std::size_t pages = 1 + i % 4;
    const bench::Pages code(pages * page_size, read_write);
    const std::uint64_t r = random();
    std::uint64_t sum = 0;
    for (unsigned f = 0; f < pages * functions_a_page; ++f) {
      const auto constant = static_cast<std::uint32_t>(r + f);
      sum += write_body(code.data() + f * (page_size / functions_a_page), static_cast<unsigned>((f + r) % 5),
                        constant, f);
    }
    if (mprotect(code.data(), pages * page_size, PROT_READ | PROT_EXEC) != 0) bench::fail("mprotect");
    for (unsigned calls = r % 8 == 0 ? 40 : 1; calls > 0; --calls) {
      std::uint64_t result = 0;
      for (unsigned f = 0; f < pages * functions_a_page; ++f)
        result += as_function(code.data() + f * (page_size / functions_a_page))(f);
      expect("the sum of the results", result, sum);
    }
  }
  return each(start, count);
}

} // namespace changing
