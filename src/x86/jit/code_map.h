// SPDX-License-Identifier: Apache-2.0
// Where linear addresses lead to translations, for one ring and one address space: a cache, which is kept in
// line with what the guest asks of the TLB.
#pragma once

#include "x86/cpu/translation_context.h"
#include "x86/mmu/mmu.h"

#include <algorithm>
#include <array>
#include <bit>
#include <bitset>
#include <memory>
#include <span>
#include <utility>

namespace ring3::x86::jit {

class CodeMap {
 public:
  // Where code is that was about to run. Apart from the Mmu's TLB, in which code and data would drive out
  // each other.
  struct Page {
    u64 linear = no_page;
    const std::byte* host = nullptr;
    GuestPhys physical;

    bool operator==(const Page&) const = default;
  };

  // Null: not known.
  const Page* find(u64 rip) const {
    const Page& p = pages_[index(rip)];
    return p.linear == (rip & ~page_offset_mask) ? &p : nullptr;
  }
  struct Rights {
    bool global = false, large = false; // what kind of page maps it
  };
  const Page* put(const Page& page, Rights rights);
  void put_jump(u64 linear, const u8* code) { jumps_.put(linear, code); }
  // The entry to jump to, or null.
  const u8* jump(u64 linear) const { return jumps_.find(linear); }
  JumpEntry* jumps() { return &jumps_.entry[0]; }

  // All of it comes from global pages, and so stays when CR3 is loaded.
  bool global() const { return global_; }
  // Pages may be elsewhere now, or this one may: nothing in it is to be used before same() has seen to that.
  void doubt() { doubtful_ = !empty_; }
  void doubt(GuestVirt a);
  bool doubtful() const { return doubtful_ || doubted_ != 0; }
  // Whether all pages in doubt are as `still_there` finds them; if not, it is cleared.
  template <class F> bool same(F&& still_there) {
    const auto there = [&](u16 i) { return still_there(std::as_const(pages_[i])); };
    const bool fine = doubtful_
                          ? listed_ <= entries && std::ranges::all_of(std::span(list_).first(listed_), there)
                          : std::ranges::all_of(std::span(doubts_).first(doubted_), there);
    if (!fine) clear();
    doubtful_ = false;
    doubted_ = 0;
    return fine;
  }
  void clear_jumps() { jumps_.clear(); }
  void forget_jump(u64 linear) { jumps_.forget(linear); }
  // Where it leads to `from`, to `to` instead.
  void replace_jump(u64 linear, const u8* from, const u8* to) {
    if (jumps_.find(linear) == from) jumps_.put(linear, to);
  }
  void clear();

 private:
  static constexpr u64 no_page = 1; // none begins there
  static constexpr unsigned entries = 2048;
  static unsigned index(u64 linear) { return linear >> page_shift & (entries - 1); }

  JumpTable jumps_;
  std::array<Page, entries> pages_;
  bool global_ = true;
  bool empty_ = true;
  bool doubtful_ = false;
  // The places in pages_ that are in use; more than there are: some was taken over by another page.
  std::array<u16, entries> list_{};
  unsigned listed_ = 0;
  // Those of them that are in doubt, while that is not all.
  std::array<u16, 8> doubts_{};
  unsigned doubted_ = 0;
  // The pages that were put since it was cleared, by a few bits of their numbers.
  static constexpr unsigned filter_bits = 4096;
  std::bitset<filter_bits> filter_;
  LargeRegions large_;
};

// Those of one vCPU.
class CodeMaps {
 public:
  CodeMaps() { user_[0] = std::make_unique<CodeMap>(); }
  // After what the guest asked of the TLB, and where it changed address spaces. Maps become doubtful by it.
  void refresh(const Mmu& mmu) {
    if (mmu.context_number() != context_ || generation_ != mmu.generation()) catch_up(mmu);
  }
  // For CPL 3, or for the rest.
  CodeMap& map(bool user) { return user ? *user_[context_] : kernel_; }
  // Its number, below 32.
  unsigned number(bool user) const { return user ? 1 + context_ : 0; }
  void clear_jumps();
  // Does it with the maps of these numbers, a bit each.
  template <class F> void each(u32 numbers, F&& f) {
    if ((numbers & 1) != 0) f(kernel_);
    for (u32 rest = numbers >> 1; rest != 0; rest &= rest - 1) {
      const auto& m = user_[static_cast<unsigned>(std::countr_zero(rest))];
      if (m) f(*m);
    }
  }

 private:
  void catch_up(const Mmu& mmu);
  template <class F> void each(F&& f) {
    f(kernel_);
    for (const auto& m : user_) {
      if (m) f(*m);
    }
  }

  static_assert(Mmu::context_count < 32);
  CodeMap kernel_;
  // Large; made when a context is first used. The current one is always there.
  std::array<std::unique_ptr<CodeMap>, Mmu::context_count> user_;
  // What they are in line with.
  unsigned context_ = 0;
  u64 generation_ = 0;
  u64 global_generation_ = 0;
  u64 page_flushes_ = 0;
  std::array<u64, Mmu::context_count> context_generation_{};
};

} // namespace ring3::x86::jit
