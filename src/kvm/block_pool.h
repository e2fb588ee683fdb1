// SPDX-License-Identifier: Apache-2.0
// Memory for very many small objects of one size. What is new to a process costs it a page fault a page,
// which for tens of thousands of slots is more than all else that is done for them; so after the first 64 KiB
// a pool takes memory in huge pages where the kernel has them. Nothing is taken before the first object.
//
// One thread at a time makes objects (their table's lock is held); any thread may delete them, without a
// lock, and after the end of the pool too. Memory goes back to the system when the pool and its objects are
// gone.
//
// With AddressSanitizer objects are on the heap, so that it sees their misuse.
#pragma once

#include "kvm/counted.h"

#include <cstddef>
#include <memory>
#include <utility>

namespace ring3::kvm {

class BlockPool {
 public:
  // For objects of up to this many bytes, aligned to 8.
  explicit BlockPool(std::size_t block_size);
  ~BlockPool();
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Throws std::bad_alloc.
  void* allocate();
  static void free(void* block) noexcept;

 private:
  struct Piece;
  struct Free {
    Free* next;
  };
  void* take_free();
  static Piece* piece_of(void* block);
  static void unmap(Piece* piece) noexcept;

  const std::size_t block_size_;
  Piece* pieces_ = nullptr; // the newest first
  Free* free_ = nullptr;    // some blocks that were deleted
};

// A base of objects that are in a pool or no dynamic ones.
struct Pooled {
  static void* operator new(std::size_t, BlockPool& pool) { return pool.allocate(); }
  static void operator delete(void* block, BlockPool&) noexcept { BlockPool::free(block); }
  static void operator delete(void* block) noexcept { BlockPool::free(block); }
};

// The pool is one for objects of this size.
template <class T, class... Arguments> Ref<T> make_ref_in(BlockPool& pool, Arguments&&... arguments) {
  static_assert(alignof(T) <= 8);
  return Ref<T>(std::unique_ptr<T>(new (pool) T(std::forward<Arguments>(arguments)...)));
}

} // namespace ring3::kvm
