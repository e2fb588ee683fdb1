// SPDX-License-Identifier: Apache-2.0
#include "kvm/code_watch.h"

#include <utility>

namespace ring3::kvm {

CodeWatch::~CodeWatch() {
  for (auto& slot : roots_) {
    const std::unique_ptr<Root> root(slot.load(std::memory_order_relaxed));
    if (root == nullptr) continue;
    for (auto& chunk : *root) std::unique_ptr<Chunk>(chunk.load(std::memory_order_relaxed)).reset();
  }
}

CodePage* CodeWatch::page(GuestPhys a) {
  if (CodePage* p = find(a)) return p;
  const u64 frame = a.frame();
  if (frame >= roots * chunks_per_root * pages_per_chunk) return nullptr;
  const std::scoped_lock guard(lock_);
  auto& root_slot = roots_[frame / (chunks_per_root * pages_per_chunk)];
  if (root_slot.load(std::memory_order_relaxed) == nullptr) {
    root_slot.store(std::make_unique<Root>().release(), std::memory_order_release);
  }
  auto& chunk_slot = (*root_slot.load(std::memory_order_relaxed))[frame / pages_per_chunk % chunks_per_root];
  if (chunk_slot.load(std::memory_order_relaxed) == nullptr) {
    chunk_slot.store(std::make_unique<Chunk>().release(), std::memory_order_release);
  }
  return &(*chunk_slot.load(std::memory_order_relaxed))[frame % pages_per_chunk];
}

void CodeWatch::note_new(GuestPhys page, const std::byte* host) {
  const std::scoped_lock guard(lock_);
  new_[noted_ % new_.size()] = {page, host};
  ++noted_;
}

std::optional<std::vector<CodeWatch::NewPage>> CodeWatch::new_pages(u64& seen) {
  const std::scoped_lock guard(lock_);
  const u64 first = std::exchange(seen, noted_);
  if (seen - first > new_.size()) return std::nullopt;
  std::vector<NewPage> pages;
  for (u64 i = first; i < seen; ++i) pages.push_back(new_[i % new_.size()]);
  return pages;
}

} // namespace ring3::kvm
