// SPDX-License-Identifier: Apache-2.0
#include "kvm/block_pool.h"

#include "base/types.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <new>
#include <sys/mman.h>

namespace ring3::kvm {
namespace {

// Pieces are aligned to their size, by which a block finds its piece, and are what a huge page is.
constexpr std::size_t piece_size = std::size_t{2} << 20;
constexpr std::size_t first_piece_end = std::size_t{64} << 10; // what is used of the first

} // namespace

struct BlockPool::Piece {
  Piece* next = nullptr;
  std::byte* unused = nullptr; // from here to the end no block has been made
  std::byte* end = nullptr;
  s64 made = 0; // how often a block of it was
  // Blocks that were deleted. Any thread adds one, and only the pool takes: all at once.
  std::atomic<Free*> freed{nullptr};
  // Deletions, negative; once the pool is gone, how many objects there still are.
  std::atomic<s64> balance{0};
};

BlockPool::BlockPool(std::size_t block_size)
    : block_size_(std::max(sizeof(Free), (block_size + 7) & ~std::size_t{7})) {}

BlockPool::~BlockPool() {
  while (pieces_ != nullptr) {
    Piece* const piece = std::exchange(pieces_, pieces_->next);
    const s64 made = piece->made;
    if (piece->balance.fetch_add(made, std::memory_order_acq_rel) + made == 0) unmap(piece);
  }
}

BlockPool::Piece* BlockPool::piece_of(void* block) {
  const auto at = reinterpret_cast<std::uintptr_t>(block) % piece_size;
  return reinterpret_cast<Piece*>(static_cast<std::byte*>(block) - at);
}

void BlockPool::unmap(Piece* piece) noexcept { munmap(piece, piece_size); }

// Null: there is none.
void* BlockPool::take_free() {
  for (Piece* p = pieces_; p != nullptr && free_ == nullptr; p = p->next) {
    if (p->freed.load(std::memory_order_relaxed) != nullptr)
      free_ = p->freed.exchange(nullptr, std::memory_order_acquire);
  }
  if (free_ == nullptr) return nullptr;
  return std::exchange(free_, free_->next);
}

#ifdef __SANITIZE_ADDRESS__

void* BlockPool::allocate() { return ::operator new(block_size_); }
void BlockPool::free(void* block) noexcept { ::operator delete(block); }

#else

void* BlockPool::allocate() {
  if (void* const block = take_free()) {
    ++piece_of(block)->made;
    return block;
  }
  if (pieces_ == nullptr || static_cast<std::size_t>(pieces_->end - pieces_->unused) < block_size_) {
    // Twice as much, of which the aligned middle stays.
    void* const mapped =
        mmap(nullptr, 2 * piece_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    auto* const begin = static_cast<std::byte*>(mapped);
    const std::size_t before =
        (piece_size - reinterpret_cast<std::uintptr_t>(begin) % piece_size) % piece_size;
    if (before != 0) munmap(begin, before);
    munmap(begin + before + piece_size, piece_size - before);
    const bool first = pieces_ == nullptr;
    // Without huge pages it works as well.
    if (!first) madvise(begin + before, piece_size, MADV_HUGEPAGE);
    auto* const piece = new (begin + before) Piece;
    piece->next = pieces_;
    piece->unused = begin + before + sizeof(Piece);
    piece->end = begin + before + (first ? first_piece_end : piece_size);
    pieces_ = piece;
  }
  void* const block = pieces_->unused;
  pieces_->unused += block_size_;
  ++pieces_->made;
  return block;
}

void BlockPool::free(void* block) noexcept {
  Piece* const piece = piece_of(block);
  auto* const freed = new (block) Free;
  Free* head = piece->freed.load(std::memory_order_relaxed);
  do freed->next = head;
  while (
      !piece->freed.compare_exchange_weak(head, freed, std::memory_order_release, std::memory_order_relaxed));
  if (piece->balance.fetch_sub(1, std::memory_order_acq_rel) == 1) unmap(piece);
}

#endif

} // namespace ring3::kvm
