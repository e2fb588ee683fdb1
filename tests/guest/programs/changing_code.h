// SPDX-License-Identifier: Apache-2.0
// Programs that make translators throw code away: what they have in common. Each of the functions at the end
// does something `count` times, looks at every result, and returns the nanoseconds of one.
#pragma once

#include "bench/client/engine_base.h"
#include "bench/client/engine_pages.h"
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>

namespace changing {

using Count = std::uint64_t;
using Function = std::uint64_t (*)(std::uint64_t);

constexpr std::size_t page_size = 4096;
constexpr int read_write = PROT_READ | PROT_WRITE;
constexpr int all_rights = PROT_READ | PROT_WRITE | PROT_EXEC;

// Ends the check.
[[noreturn]] void wrong(const char* what, std::uint64_t value, std::uint64_t expected);

inline void expect(const char* what, std::uint64_t value, std::uint64_t expected) {
  if (value != expected) [[unlikely]]
    wrong(what, value, expected);
}

inline Function as_function(const void* code) { return reinterpret_cast<Function>(const_cast<void*>(code)); }

// Nanoseconds of each of `count` since `start`.
inline double each(std::uint64_t start, Count count) {
  return static_cast<double>(bench::now_ns() - start) / static_cast<double>(count);
}

// Writes instructions one after another.
class Assembler {
 public:
  explicit Assembler(std::uint8_t* at) : at_(at) {}
  void bytes(std::initializer_list<unsigned> list) {
    for (const unsigned b : list) *at_++ = static_cast<std::uint8_t>(b);
  }
  template <class T> void number(T value) {
    std::memcpy(at_, &value, sizeof value);
    at_ += sizeof value;
  }
  void mov_eax(std::uint32_t value) {
    bytes({0xb8});
    number(value);
  }
  void ret() { bytes({0xc3}); }
  std::uint8_t* at() const { return at_; }

 private:
  std::uint8_t* at_;
};

// rewritten_code.cpp
double rewrite_constant(Count count);
double rewrite_body(Count count);
double store_beside(Count count);
double map_call_unmap(Count count);

// shared_code.cpp
double other_cpu(Count count);
double other_cpu_iret(Count count);
double other_cpu_running(Count count);
double aliases(Count count);

// endless_code.cpp
double endless(Count count);

} // namespace changing
