// SPDX-License-Identifier: Apache-2.0
// Memory for what describes translated blocks, which all goes at once. It has to stay bounded, whatever a
// guest executes.
#pragma once

#include "base/types.h"
#include "base/zeroed_array.h"

#include <memory_resource>
#include <sys/mman.h>

namespace ring3::x86::jit {

class BlockMemory final : public std::pmr::memory_resource {
 public:
  // Of address space; memory is taken as it is used, and kept.
  BlockMemory() {
    // Blocks are found all over it.
    ::madvise(&room_[0], size + one_translation, MADV_HUGEPAGE);
  }

  // To be asked before each translation: there may be no room for it.
  bool full() const { return used_ > size; }
  void rewind() { used_ = 0; }

 private:
  static constexpr std::size_t size = std::size_t{160} << 20;
  static constexpr std::size_t one_translation = std::size_t{1} << 20; // more than any needs

  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    const std::size_t at = (used_ + alignment - 1) & ~(alignment - 1);
    if (at + bytes > size + one_translation) throw std::bad_alloc();
    used_ = at + bytes;
    return &room_[at];
  }
  void do_deallocate(void*, std::size_t, std::size_t) override {}
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  ZeroedArray<u8> room_{size + one_translation};
  std::size_t used_ = 0;
};

} // namespace ring3::x86::jit
