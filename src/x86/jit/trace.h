// SPDX-License-Identifier: Apache-2.0
// Chooses what is translated together: instructions that are likely to be executed one after another. Within
// its page a trace follows jumps the way that they are expected to go, calls, and the returns of those calls;
// and a loop goes round several times.
#pragma once

#include "x86/cpu/cpuid.h"
#include "x86/jit/translator.h"

#include <bitset>
#include <functional>
#include <span>

namespace ring3::x86::jit {

class TraceBuilder {
 public:
  // How often code at an address in the page was executed, as far as anybody has counted.
  using Warmth = std::function<unsigned(u64 linear)>;

  // The first bytes of the page behind, if an instruction lies in both: 15 or none.
  using PageBehind = std::function<std::span<const u8>()>;

  // `bytes` are those of the page that begins at `linear`.
  TraceBuilder(const CpuidTable& cpuid, u64 linear, std::span<const u8, page_size> bytes, PageBehind behind)
      : cpuid_(cpuid), page_(linear), bytes_(bytes), behind_(std::move(behind)) {}

  // The trace that begins at `start`, which is in the page: how many of `out` it has. 0: there is no
  // instruction. The last one may be split.
  unsigned build(u64 start, std::span<Source> out, const Warmth& warmth);
  // Lines of 128 bytes (kvm::CodePage) of which some byte has made a difference.
  u32 lines() const { return lines_; }

 private:
  bool in_page(u64 target) const { return (target ^ page_) < page_size; }
  bool read(u64 at, Source& out);
  bool read_split(u64 at, Source& out);
  bool follow(Source& s, u64& next, const Warmth& warmth);
  u16 flags_wanted(u64 target);

  const CpuidTable& cpuid_;
  const u64 page_;
  const std::span<const u8, page_size> bytes_;
  const PageBehind behind_;
  u32 lines_ = 0;
  static constexpr unsigned most_calls = 4;
  std::array<u64, most_calls> return_to_{};
  unsigned calls_ = 0;
  std::bitset<page_size> seen_;
};

} // namespace ring3::x86::jit
