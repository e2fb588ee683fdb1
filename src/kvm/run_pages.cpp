// SPDX-License-Identifier: Apache-2.0
#include "kvm/run_pages.h"

#include <sys/mman.h>

namespace ring3::kvm {

RunPages::RunPages(int fd, u64 dirty_ring_bytes)
    : size_(file_size(dirty_ring_bytes)), ring_bytes_(dirty_ring_bytes) {
  const int flags = fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
  void* p = mmap(nullptr, size_, PROT_READ | PROT_WRITE, flags, fd, 0);
  if (p != MAP_FAILED) base_ = static_cast<std::byte*>(p);
}

RunPages::~RunPages() {
  if (base_ != nullptr) munmap(base_, size_);
}

std::span<kvm_dirty_gfn> RunPages::dirty_ring() const {
  if (ring_bytes_ == 0) return {};
  auto* first = reinterpret_cast<kvm_dirty_gfn*>(base_ + KVM_DIRTY_LOG_PAGE_OFFSET * u64{4096});
  return {first, ring_bytes_ / sizeof(kvm_dirty_gfn)};
}

} // namespace ring3::kvm
