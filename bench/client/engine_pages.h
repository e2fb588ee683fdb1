// SPDX-License-Identifier: Apache-2.0
// Memory of the programs of bench/engine.
#pragma once

#include "engine_base.h"
#include <cstddef>
#include <cstdint>
#include <sys/mman.h>

namespace bench {

// Anonymous memory in 4 KiB pages, so that every system has the same number of pages to deal with.
class Pages {
 public:
  explicit Pages(std::size_t size, int protection = PROT_READ | PROT_WRITE) : size_(size) {
    memory_ = mmap(nullptr, size, protection, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory_ == MAP_FAILED) fail("mmap");
    madvise(memory_, size, MADV_NOHUGEPAGE); // may fail where there are no huge pages
  }
  ~Pages() { munmap(memory_, size_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  std::uint8_t* data() const { return static_cast<std::uint8_t*>(memory_); }

 private:
  void* memory_;
  std::size_t size_;
};

} // namespace bench
