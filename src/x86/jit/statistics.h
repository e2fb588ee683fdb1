// SPDX-License-Identifier: Apache-2.0
// What a vCPU's translator has done. The vCPU's thread counts, others may read; so may other processes, if
// the counters are in a vCPU's record (kvm/vcpu_record.h).
#pragma once

#include "base/types.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace ring3::x86::jit {

// Has one writer.
class Counter {
 public:
  void add(u64 n = 1) { value_.store(value() + n, std::memory_order_relaxed); }
  u64 value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<u64> value_{0};
};

struct Statistics {     // of nothing but counters, which statistics.cpp names
  Counter translations; // blocks
  Counter instructions; // of the guest, in those blocks; more than once if translated again
  Counter improved;     // blocks that were translated once more, since they were hot
  Counter host_bytes;   // of code made for them
  Counter cold_bytes;   // of code for what seldom happens in them
  Counter nanoseconds;  // that translating took
  Counter flushes;      // of everything that was translated; the first when there was nothing yet
  Counter compared;     // blocks, with Lockstep
  Counter entries;      // of translated code, by the dispatcher
  // Why that was left: Exit::Kind by its number, and last where an instruction's handler saw to it.
  static constexpr unsigned ways_out = 6;
  std::array<Counter, ways_out> left;
  Counter refreshes;   // of the jump tables, since translations of addresses or code may have changed
  Counter interpreted; // instructions, in blocks that were not translated
  Counter missed;      // translated instructions that a handler did: not in the TLB, or about to fault
  // Those that handlers always do, by the decoder's number of the mnemonic.
  static constexpr unsigned mnemonics = 2048;
  std::array<Counter, mnemonics> handled;

  // In memory of at least that size, aligned as counters are; all-zero bytes are counters that are 0.
  static Statistics& in(std::span<std::byte> memory);
  static const Statistics& in(std::span<const std::byte> memory);

  // The mnemonics that were handled most, and how often.
  std::vector<std::pair<std::string, u64>> most_handled(unsigned count) const;
  // A member of a JSON object: "translator":{...}.
  std::string json() const;
  // For people: lines without a prefix.
  std::vector<std::string> lines() const;
  // Differs between builds whose counters mean something else.
  static u64 layout();
};

} // namespace ring3::x86::jit
