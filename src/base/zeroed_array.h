// SPDX-License-Identifier: Apache-2.0
// A large array of zero bytes that takes the host's memory only where it is touched.
#pragma once

#include <cstddef>
#include <cstring>
#include <new>
#include <span>
#include <sys/mman.h>
#include <type_traits>

namespace ring3 {

// All-zero bytes must be a value of T. Throws std::bad_alloc.
template <class T> class ZeroedArray {
  static_assert(std::is_trivially_copyable_v<T> && std::is_trivially_destructible_v<T>);

 public:
  explicit ZeroedArray(std::size_t size) : size_(size) {
    void* const pages =
        mmap(nullptr, size * sizeof(T), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (pages == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<T*>(pages);
  }
  ~ZeroedArray() { munmap(data_, size_ * sizeof(T)); }
  ZeroedArray(const ZeroedArray&) = delete;
  ZeroedArray& operator=(const ZeroedArray&) = delete;

  T& operator[](std::size_t i) { return data_[i]; }
  const T& operator[](std::size_t i) const { return data_[i]; }
  std::span<T> all() { return {data_, size_}; }
  // Zero bytes again. The memory goes back to the host, unless the process has locked it.
  void clear() {
    if (madvise(data_, size_ * sizeof(T), MADV_DONTNEED) != 0)
      std::memset(static_cast<void*>(data_), 0, size_ * sizeof(T));
  }

 private:
  T* data_;
  std::size_t size_;
};

} // namespace ring3
