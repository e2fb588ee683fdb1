// SPDX-License-Identifier: Apache-2.0
// Chooses what is translated together: instructions that are likely to be executed one after another. Within
// its page a trace follows jumps the way that they are expected to go, calls, and the returns of those calls.
#pragma once

#include "x86/cpu/cpuid.h"
#include "x86/decode/decode_memo.h"
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

  // For code in `page`, which has been asked whether it is valid.
  TraceBuilder(const CpuidTable& cpuid, DecodeMemo& memo, TranslatedPage& page, PageBehind behind)
      : cpuid_(cpuid), memo_(memo), page_(page), behind_(std::move(behind)) {}

  // The trace that begins at `start`, which is in the page: how many of `out` it has. 0: there is no
  // instruction. The last one may be split.
  unsigned build(u64 start, std::span<Source> out, Tier tier, const Warmth& warmth);
  // Lines of 128 bytes (kvm::CodePage) of which some byte has made a difference.
  u32 lines() const { return lines_; }
  // The page as it was decoded; only lines() of it are there.
  std::span<const u8, page_size> bytes() const { return bytes_; }

 private:
  bool in_page(u64 target) const { return (target ^ page_.linear) < page_size; }
  // Bytes from there on, as many as an instruction may have.
  std::span<const u8> bytes_at(u64 offset);
  // The instruction there, if it lies in this page alone. Valid until the next call.
  const BoundInsn* look(u64 at);
  // Whether it may run on the host.
  bool copied(const BoundInsn& b) const;
  void fill(Source& s, u64 at, const BoundInsn& b) const;
  bool read(u64 at, Source& s);
  bool read_split(u64 at, Source& s);
  bool follow(Source& s, u64& next, const Warmth& warmth);
  bool expected_to_jump(const Source& s, u64 target, u64 behind, const Warmth& warmth);
  u16 flags_wanted(u64 target);

  const CpuidTable& cpuid_;
  DecodeMemo& memo_;
  TranslatedPage& page_;
  const PageBehind behind_;
  std::array<u8, page_size> bytes_;
  u32 copied_ = 0; // lines of it
  u32 lines_ = 0;
  static constexpr unsigned most_calls = 4;
  std::array<u64, most_calls> return_to_{};
  unsigned calls_ = 0;
  std::bitset<page_size> seen_;
};

} // namespace ring3::x86::jit
