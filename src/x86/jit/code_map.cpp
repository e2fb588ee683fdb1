// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/code_map.h"

namespace ring3::x86::jit {

const CodeMap::Page* CodeMap::put(const Page& page, Rights rights) {
  const unsigned i = index(page.linear);
  Page& place = pages_[i];
  // What was there is still in the jump table, and nobody knows any more.
  if (place.linear != no_page) listed_ = entries + 1;
  if (listed_ < entries) list_[listed_++] = static_cast<u16>(i);
  place = page;
  empty_ = false;
  global_ &= rights.global;
  filter_.set(page.linear >> page_shift & (filter_bits - 1));
  if (rights.large) large_.note(page.linear);
  return &place;
}

void CodeMap::doubt(GuestVirt a) {
  if (empty_ || doubtful_) return;
  const unsigned i = index(a.value);
  if (large_.may_hold(a.value)) {
    doubt();
  } else if (pages_[i].linear == a.page().value) {
    if (doubted_ == doubts_.size()) return doubt();
    doubts_[doubted_++] = static_cast<u16>(i);
  } else if (listed_ > entries && filter_.test(a.value >> page_shift & (filter_bits - 1))) {
    doubt(); // it may be one that was taken over
  }
}

void CodeMap::clear() {
  if (std::exchange(empty_, true)) return;
  jumps_.clear();
  pages_.fill({});
  global_ = true;
  filter_.reset();
  large_.clear();
  listed_ = 0;
  doubtful_ = false;
  doubted_ = 0;
}

void CodeMaps::catch_up(const Mmu& mmu) {
  const unsigned context = mmu.context_number();
  const bool other_space = context != std::exchange(context_, context);
  generation_ = mmu.generation();
  const u64 now = mmu.context_generation();
  const bool flushed = now != std::exchange(context_generation_[context], now);

  const u64 first = std::exchange(page_flushes_, mmu.page_flushes());
  const bool too_many = page_flushes_ - first > Mmu::remembered_flushes;
  const u64 global = mmu.global_generation();
  const bool everything = global != std::exchange(global_generation_, global);
  if (everything || too_many) {
    each([](CodeMap& m) { m.doubt(); });
  } else {
    for (u64 i = first; i < page_flushes_; ++i) {
      each([&](CodeMap& m) { m.doubt(mmu.flushed_page(i)); });
    }
    if ((other_space || flushed) && !kernel_.global()) kernel_.doubt();
    if (flushed && user_[context]) user_[context]->doubt();
  }
  if (!user_[context]) user_[context] = std::make_unique<CodeMap>();
}

void CodeMaps::clear_jumps() {
  each([](CodeMap& m) { m.clear_jumps(); });
}

} // namespace ring3::x86::jit
