// SPDX-License-Identifier: Apache-2.0
// Instructions that were decoded lately: traces overlap, and the ways out of each are looked down.
#pragma once

#include "base/zeroed_array.h"
#include "x86/jit/translator.h"

#include <algorithm>

namespace ring3::x86::jit {

// Direct-mapped by address. What counts are the bytes, so there is nothing to be told when code changes; only
// when CPUID does, which decides what some of them mean.
class DecodeMemo {
 public:
  // The instruction at `at`, if it is one of those and still begins `bytes`; else null. Valid until the next
  // put().
  const Source* find(u64 at, std::span<const u8> bytes) const {
    const Slot& s = slots_[at % slots];
    const Decoded& d = s.source.decoded;
    if (s.era != era_ || s.source.ip != at || d.length > bytes.size() ||
        !std::equal(d.bytes.begin(), d.bytes.begin() + d.length, bytes.begin()))
      return nullptr;
    return &s.source;
  }
  const Source& put(const Source& source) {
    Slot& s = slots_[source.ip % slots];
    s = {source, era_};
    return s.source;
  }
  void clear() { ++era_; }

 private:
  static constexpr std::size_t slots = 4096;
  struct Slot {
    Source source;
    u64 era; // in which it was put there
  };
  ZeroedArray<Slot> slots_{slots};
  u64 era_ = 1;
};

} // namespace ring3::x86::jit
