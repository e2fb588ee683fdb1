// SPDX-License-Identifier: Apache-2.0
#include "kvm/mapped_pages.h"

#include "base/bits.h"

namespace ring3::kvm {
namespace {

// What the place points to, made if there is nothing. One thread at a time.
template <class T> T& made(std::atomic<T*>& place) {
  if (place.load(std::memory_order_relaxed) == nullptr)
    place.store(std::make_unique<T>().release(), std::memory_order_release);
  return *place.load(std::memory_order_relaxed);
}

template <class T> std::unique_ptr<T> taken(std::atomic<T*>& place) {
  return std::unique_ptr<T>(place.exchange(nullptr, std::memory_order_relaxed));
}

} // namespace

MappedPages::~MappedPages() {
  for (auto& root_place : roots_) {
    const std::unique_ptr<Root> root = taken(root_place);
    if (!root) continue;
    for (auto& node_place : *root) {
      const std::unique_ptr<Node> node = taken(node_place);
      if (!node) continue;
      for (auto& region_place : *node) taken(region_place);
    }
  }
}

MappedPages::Region& MappedPages::make(u64 number) {
  const std::scoped_lock guard(growing_);
  Root& root = made(roots_[number / per_root]);
  Node& node = made(root[number / regions_per_node % nodes_per_root]);
  return made(node[number % regions_per_node]);
}

MappedPages::Mask MappedPages::mask_of(u64 number, PageRange range) {
  Mask mask{};
  const u64 start = number * region_pages;
  for (std::size_t i = 0; i < mask.size(); ++i) {
    const u64 word = start + u64{i} * 64;
    const u64 first = std::clamp(range.first, word, word + 64) - word;
    const u64 end = std::clamp(range.end, word, word + 64) - word;
    mask[i] =
        first < end ? low_mask(static_cast<unsigned>(end)) & ~low_mask(static_cast<unsigned>(first)) : 0;
  }
  return mask;
}

void MappedPages::forget(PageRange range) {
  for_each(range, [range](u64 number, Region& region) {
    region.remove(mask_of(number, range));
    region.kept_large = false;
  });
}

} // namespace ring3::kvm
