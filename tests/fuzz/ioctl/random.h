// SPDX-License-Identifier: Apache-2.0
// Pseudo-random numbers that are the same for the same seed, with a taste for the values at which things
// break.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <span>

namespace fuzz {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}

  // SplitMix64.
  u64 next() {
    u64 z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  // 0 to n - 1; n is not 0.
  u64 below(u64 n) { return next() % n; }
  bool one_in(u64 n) { return below(n) == 0; }
  template <class Range> const auto& among(const Range& range) {
    return *(std::begin(range) + below(std::size(range)));
  }

  // Powers of two and their neighbours, borders of address spaces and devices, small numbers, anything.
  u64 odd_number() {
    constexpr u64 borders[] = {0,
                               1,
                               ~u64{0},
                               0x7fffffff,
                               0x80000000,
                               0xffffffff,
                               0x7fffffffffffffff,
                               0x8000000000000000,
                               0x00007fffffffffff,
                               0x0000800000000000,
                               0xffff800000000000,
                               0x000fffffffffffff,
                               0x0010000000000000,
                               0xfec00000,
                               0xfee00000,
                               0xfee00900,
                               0xfffff000,
                               0xfffffffffffff000};
    switch (below(6)) {
    case 0: return among(borders);
    case 1: return u64{1} << below(64);
    case 2: return (u64{1} << below(64)) - 1;
    case 3: return below(256);
    case 4: return among(borders) + below(64) - 32;
    default: return next() >> below(64);
    }
  }

  void fill(std::span<std::byte> out) {
    for (std::size_t at = 0; at < out.size(); at += sizeof(u64)) {
      const u64 v = next();
      std::memcpy(out.data() + at, &v, out.size() - at < sizeof v ? out.size() - at : sizeof v);
    }
  }

  // Changes a few places of something that was right.
  void damage(std::span<std::byte> data) {
    if (data.empty()) return;
    if (one_in(12)) return fill(data);
    for (u64 n = 1 + below(one_in(4) ? 24 : 4); n != 0; --n) {
      constexpr std::size_t widths[] = {1, 2, 4, 8};
      const std::size_t width = among(widths);
      if (width > data.size()) continue;
      const std::size_t at = below(data.size() / width) * width;
      u64 v = odd_number();
      if (one_in(3)) {
        std::memcpy(&v, data.data() + at, width);
        v ^= u64{1} << below(8 * width);
      }
      std::memcpy(data.data() + at, &v, width);
    }
  }
  template <class T> void damage_object(T& object) {
    damage(std::as_writable_bytes(std::span<T, 1>(&object, 1)));
  }

 private:
  u64 state_;
};

} // namespace fuzz
