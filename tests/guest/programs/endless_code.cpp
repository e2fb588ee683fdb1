// SPDX-License-Identifier: Apache-2.0
// Code without end: functions that are all different, in memory that is used again and again.
#include "changing_code.h"
#include <bit>

namespace changing {

namespace {

constexpr std::size_t memory = std::size_t{64} << 20;
constexpr unsigned words = 16; // that functions read; as many behind them are written
constexpr std::size_t most_bytes = 10 + 95 * 13 + 8 + 1;

// Writes a function of RDI, which points to 2 * `words` words: 660 bytes on average. Returns what it returns.
std::uint64_t write_function(Assembler& a, bench::Random& random, const std::uint64_t* data) {
  std::uint64_t r = random();
  std::uint64_t result = r;
  a.bytes({0x48, 0xb8}); // mov rax, r
  a.number(r);
  for (std::uint64_t i = 32 + r % 64; i > 0; --i) {
    r = random();
    const auto constant = static_cast<std::int32_t>(r >> 32);
    const unsigned word = r / 8 % words;
    switch (r % 8) {
    case 0: // add rax, constant
      a.bytes({0x48, 0x05});
      a.number(constant);
      result += static_cast<std::uint64_t>(std::int64_t{constant});
      break;
    case 1: // imul rax, rax, constant | 1
      a.bytes({0x48, 0x69, 0xc0});
      a.number(constant | 1);
      result *= static_cast<std::uint64_t>(std::int64_t{constant | 1});
      break;
    case 2: // rol rax, word; add rax, [rdi + 8 * word]
      a.bytes({0x48, 0xc1, 0xc0, word, 0x48, 0x03, 0x47, 8 * word});
      result = std::rotl(result, static_cast<int>(word)) + data[word];
      break;
    case 3: // mov [rdi + 8 * (words + word)], rax: where nobody reads
      a.bytes({0x48, 0x89, 0x87});
      a.number(std::uint32_t{8 * (words + word)});
      break;
    default: // mov rcx, r; xor rax, rcx
      a.bytes({0x48, 0xb9});
      a.number(r);
      a.bytes({0x48, 0x31, 0xc8});
      result ^= r;
      break;
    }
  }
  // A jump that is taken or not: test al, al; jns over an add rax, 1
  a.bytes({0x84, 0xc0, 0x79, 0x04, 0x48, 0x83, 0xc0, 0x01});
  if ((result & 0x80) != 0) ++result;
  a.ret();
  return result;
}

} // namespace

double endless(Count count) {
  const bench::Pages code(memory, all_rights);
  bench::Random random;
  std::uint64_t data[2 * words];
  for (std::uint64_t& d : data) d = random();
  Assembler a(code.data());
  const std::uint64_t start = bench::now_ns();
  for (Count i = 0; i < count; ++i) {
    if (a.at() + most_bytes > code.data() + memory) a = Assembler(code.data());
    const Function function = as_function(a.at());
    const std::uint64_t result = write_function(a, random, data);
    for (unsigned k = 0; k < 20; ++k)
      expect("the result", function(reinterpret_cast<std::uint64_t>(data)), result);
  }
  return each(start, count);
}

} // namespace changing
