// SPDX-License-Identifier: Apache-2.0
#include "kvm/dirty_ring.h"

#include <algorithm>

namespace ring3::kvm {

DirtyRing::DirtyRing(std::span<kvm_dirty_gfn> entries, std::atomic<u32>& exit_word, u32 request)
    : entries_(entries), exit_word_(exit_word), request_(request) {
  // A block has up to 48 instructions; the most that one of them writes to is 32 pages (a scatter of 16
  // elements across page boundaries).
  waiting_.reserve(std::size_t{48} * 32);
}

void DirtyRing::write(Page p) {
  const u32 at = pushed_.load(std::memory_order_relaxed);
  kvm_dirty_gfn& e = entries_[at & (entries_.size() - 1)];
  std::atomic_ref<u32>(e.slot).store(p.slot, std::memory_order_relaxed);
  std::atomic_ref<__u64>(e.offset).store(p.page, std::memory_order_relaxed);
  // Counted first: once the VMM can see the entry, a reset must find it.
  pushed_.store(at + 1, std::memory_order_release);
  std::atomic_ref<u32>(e.flags).store(KVM_DIRTY_GFN_F_DIRTY, std::memory_order_release);
}

void DirtyRing::push(u32 slot, u64 page) {
  if (waiting_.empty() && used() < entries_.size()) {
    write({slot, page});
  } else {
    waiting_.push_back({slot, page});
  }
  if (used() >= entries_.size() - reserved) exit_word_.fetch_or(request_, std::memory_order_relaxed);
}

bool DirtyRing::full() {
  if (!waiting_.empty()) {
    const std::size_t room = entries_.size() - used();
    const auto n = static_cast<std::ptrdiff_t>(std::min(room, waiting_.size()));
    std::for_each_n(waiting_.begin(), n, [this](Page p) { write(p); });
    waiting_.erase(waiting_.begin(), waiting_.begin() + n);
  }
  return used() >= entries_.size() - reserved;
}

bool DirtyRing::take_back(u32& slot, u64& page) {
  const u32 at = taken_back_.load(std::memory_order_relaxed);
  kvm_dirty_gfn& e = entries_[at & (entries_.size() - 1)];
  const std::atomic_ref<u32> flags(e.flags);
  if ((flags.load(std::memory_order_acquire) & KVM_DIRTY_GFN_F_RESET) == 0) return false;
  slot = std::atomic_ref<u32>(e.slot).load(std::memory_order_relaxed);
  page = std::atomic_ref<__u64>(e.offset).load(std::memory_order_relaxed);
  flags.store(0, std::memory_order_release);
  taken_back_.store(at + 1, std::memory_order_release);
  return true;
}

} // namespace ring3::kvm
