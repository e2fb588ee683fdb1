// SPDX-License-Identifier: Apache-2.0
// The heap, counting what is taken of it: what is kept beside translated code has to stay bounded too,
// whatever a guest executes.
#pragma once

#include <cstddef>
#include <memory_resource>
#include <sys/mman.h>

namespace ring3::x86::jit {

class CountedMemory final : public std::pmr::memory_resource {
 public:
  std::size_t bytes() const { return bytes_; }

 private:
  void* do_allocate(std::size_t size, std::size_t alignment) override {
    if (size >= large_page) alignment = large_page;
    void* const p = std::pmr::new_delete_resource()->allocate(size, alignment);
    // Blocks are found all over it.
    if (size >= large_page) ::madvise(p, size & ~(large_page - 1), MADV_HUGEPAGE);
    bytes_ += size;
    return p;
  }
  void do_deallocate(void* p, std::size_t size, std::size_t alignment) override {
    if (size >= large_page) alignment = large_page;
    bytes_ -= size;
    std::pmr::new_delete_resource()->deallocate(p, size, alignment);
  }
  bool do_is_equal(const std::pmr::memory_resource& other) const noexcept override { return this == &other; }

  static constexpr std::size_t large_page = std::size_t{2} << 20;
  std::size_t bytes_ = 0;
};

} // namespace ring3::x86::jit
