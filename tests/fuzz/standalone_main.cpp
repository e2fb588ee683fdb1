// SPDX-License-Identifier: Apache-2.0
// Runs a fuzz target without libFuzzer: on the files named, or on N pseudo-random inputs (--runs N, --seed
// S), the same ones each time.
#include "base/types.h"

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const ring3::u8* data, std::size_t size);

namespace {

using ring3::u64;
using ring3::u8;

u64 next(u64& state) {
  u64 z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
  z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return z ^ z >> 31;
}

// Random bytes are mostly one-byte instructions; escapes and prefixes get their share.
u8 code_byte(u64& state) {
  constexpr u8 often[] = {0x0f, 0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x62, 0xc4, 0xc5, 0xf0, 0x67, 0x65,
                          0x00, 0xff, 0x38, 0x3a, 0x01, 0xae, 0xc7, 0xd9, 0xdd, 0xcf, 0xcb, 0x9d};
  const u64 v = next(state);
  return v % 4 == 0 ? often[(v >> 8) % std::size(often)] : static_cast<u8>(v >> 16);
}

} // namespace

int main(int argc, char** argv) {
  u64 runs = 20000;
  u64 seed = 1;
  bool files = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    if (a == "--runs" && i + 1 < argc) {
      runs = std::strtoull(argv[++i], nullptr, 0);
    } else if (a == "--seed" && i + 1 < argc) {
      seed = std::strtoull(argv[++i], nullptr, 0);
    } else {
      std::ifstream in(argv[i], std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
      LLVMFuzzerTestOneInput(reinterpret_cast<const u8*>(bytes.data()), bytes.size());
      files = true;
    }
  }
  if (files) return 0;
  std::vector<u8> input;
  for (u64 run = 0; run < runs; ++run) {
    u64 state = seed * 0x100000001b3 + run;
    input.resize(16 + next(state) % 112);
    for (u8& b : input) b = code_byte(state);
    input[0] = static_cast<u8>(next(state)); // targets that have a mode take it from here
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%llu inputs\n", static_cast<unsigned long long>(runs));
  return 0;
}
