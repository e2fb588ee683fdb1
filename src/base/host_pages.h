// SPDX-License-Identifier: Apache-2.0
// How the host maps memory of this process: which pages are there, and which of them by large pages
// (Documentation/admin-guide/mm/pagemap.rst, PAGEMAP_SCAN, since Linux 6.7).
#pragma once

#include "base/types.h"

#include <array>
#include <cstddef>

namespace ring3 {

constexpr u64 large_page_size = u64{2} << 20;

// /proc/self/pagemap, which is opened once a process; -1: it cannot be. Any thread; a child of fork() gets a
// descriptor of its own.
int pagemap_descriptor();

// Goes through the pages of a range that the host maps at the moment, in order. Addresses where nothing is
// mapped are not an error. One thread at a time.
class HostPages {
 public:
  // Neighbours that are mapped in the same way, counted from the first page of the range.
  struct Run {
    u64 first, end; // pages of 4 KiB
    bool large;     // by one page table entry for each 2 MiB, or a larger one
    friend bool operator==(const Run&, const Run&) = default;
  };

  // Whether the host tells. Asked once.
  static bool told();

  // `first` is aligned to pages.
  HostPages(const std::byte* first, u64 pages);

  // False: there are no more, or the host does not tell.
  bool next(Run& run);

 private:
  // struct page_region of linux/fs.h.
  struct Region {
    u64 start, end, categories;
  };
  bool ask();

  const u64 first_;
  const u64 end_;
  u64 at_; // from here on nobody has asked yet
  std::array<Region, 64> regions_;
  std::size_t count_ = 0, next_ = 0;
};

} // namespace ring3
