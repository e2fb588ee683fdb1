// SPDX-License-Identifier: Apache-2.0
// Which guest-physical pages of one address space are mapped for the guest: those that its vCPUs have reached
// by accesses of its own (page tables that only a page walk reads are not among them). KVM knows it from its
// second-level page tables, which we do not have.
//
// It takes memory in proportion to what is reached: 80 bytes for each 2 MiB, and 4 KiB for each GiB, with a
// page of theirs that is. Slots cost nothing, and that one is deleted is not noted: its pages no longer
// count, and a slot that comes to their place begins by forgetting them.
#pragma once

#include "base/address.h"
#include "base/host_pages.h"
#include "kvm/memory_attributes.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <memory>
#include <mutex>

namespace ring3::kvm {

class MappedPages {
 public:
  static constexpr u64 region_pages = large_page_size / page_size;
  // A bit for each page of a region, the first page's in bit 0.
  using Mask = std::array<u64, region_pages / 64>;

  // 2 MiB of guest-physical memory, aligned.
  class Region {
   public:
    // Any thread.
    void record(u64 page) {
      std::atomic<u64>& word = pages_[page % region_pages / 64];
      const u64 mask = u64{1} << page % 64;
      // Most are repetitions; a plain load keeps the line shared between vCPUs.
      if ((word.load(std::memory_order_relaxed) & mask) == 0) word.fetch_or(mask, std::memory_order_relaxed);
    }
    u64 word(std::size_t i) const { return pages_[i].load(std::memory_order_relaxed); }
    void add(const Mask& mask) {
      for (std::size_t i = 0; i < mask.size(); ++i)
        if (mask[i] != 0) pages_[i].fetch_or(mask[i], std::memory_order_relaxed);
    }
    void remove(const Mask& mask) {
      for (std::size_t i = 0; i < mask.size(); ++i)
        if ((word(i) & mask[i]) != 0) pages_[i].fetch_and(~mask[i], std::memory_order_relaxed);
    }

    // While the slot is logged: it was mapped as one when logging began, and has not been split. Under the
    // lock of the slots.
    bool kept_large = false;

   private:
    std::array<std::atomic<u64>, region_pages / 64> pages_{};
  };

  MappedPages() = default;
  ~MappedPages();
  MappedPages(const MappedPages&) = delete;
  MappedPages& operator=(const MappedPages&) = delete;

  // A vCPU reaches the page, in whose place it finds memory. Any thread, no lock but for the first page of a
  // region.
  void record(GuestPhys a) { region(a).record(a.frame()); }
  // Where the page is recorded. Stays as long as this object. Any thread, likewise.
  Region& region(GuestPhys a) {
    const u64 number = a.frame() / region_pages;
    Region* const region = find(number);
    return region != nullptr ? *region : make(number);
  }

  // Nothing of the range is mapped any more; a region that it touches is not kept large. Under the lock of
  // the slots; vCPUs that still go by an older layout may record pages at the same time.
  void forget(PageRange range);

  // Calls f(number, region) for each region of which the range has a page and where some page was recorded
  // ever, in order. Any thread.
  template <class F> void for_each(PageRange range, F&& f) const {
    if (range.first >= range.end) return;
    const u64 last = std::min((range.end - 1) / region_pages, roots * per_root - 1);
    for (u64 at = range.first / region_pages; at <= last;) {
      const Root* const root = root_of(at);
      const Node* const node = root == nullptr ? nullptr : node_of(*root, at);
      const u64 covered = root == nullptr ? per_root : regions_per_node;
      const u64 end = std::min(last + 1, (at / covered + 1) * covered);
      for (; node != nullptr && at < end; ++at)
        if (Region* const region = region_of(*node, at)) f(at, *region);
      at = end;
    }
  }

  // False: nothing of the range was ever recorded. Cheap; it looks no closer than GiBs. Any thread.
  bool may_have(PageRange range) const {
    if (range.first >= range.end) return false;
    const u64 last = std::min((range.end - 1) / region_pages, roots * per_root - 1) / regions_per_node;
    for (u64 at = range.first / region_pages / regions_per_node; at <= last; ++at) {
      const Root* const root = root_of(at * regions_per_node);
      if (root == nullptr)
        at |= nodes_per_root - 1;
      else if (node_of(*root, at * regions_per_node) != nullptr)
        return true;
    }
    return false;
  }

  // The pages of the range that are in a region.
  static Mask mask_of(u64 number, PageRange range);

 private:
  static constexpr u64 regions_per_node = 512; // 1 GiB
  static constexpr u64 nodes_per_root = 2048;  // 2 TiB
  static constexpr u64 per_root = regions_per_node * nodes_per_root;
  static constexpr u64 roots = 2048; // 52 bits, as many as addresses of slots have
  using Node = std::array<std::atomic<Region*>, regions_per_node>;
  using Root = std::array<std::atomic<Node*>, nodes_per_root>;

  const Root* root_of(u64 number) const { return roots_[number / per_root].load(std::memory_order_acquire); }
  static const Node* node_of(const Root& root, u64 number) {
    return root[number / regions_per_node % nodes_per_root].load(std::memory_order_acquire);
  }
  static Region* region_of(const Node& node, u64 number) {
    return node[number % regions_per_node].load(std::memory_order_acquire);
  }
  Region* find(u64 number) const {
    const Root* const root = root_of(number);
    if (root == nullptr) return nullptr;
    const Node* const node = node_of(*root, number);
    return node == nullptr ? nullptr : region_of(*node, number);
  }
  Region& make(u64 number);

  std::mutex growing_;
  std::array<std::atomic<Root*>, roots> roots_{};
};

} // namespace ring3::kvm
