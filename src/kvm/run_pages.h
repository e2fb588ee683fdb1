// SPDX-License-Identifier: Apache-2.0
// The memory a vCPU shares with its VMM (api.rst 4.5, 4.10, 8.29): kvm_run, the data of port accesses, the
// ring of coalesced writes and, 64 pages in, the dirty ring.
#pragma once

#include "base/types.h"

#include <linux/kvm.h>
#include <span>

namespace ring3::kvm {

// KVM_GET_VCPU_MMAP_SIZE: kvm_run, the PIO data page, the ring of coalesced writes.
constexpr u64 vcpu_mmap_size = 3 * 4096;

class RunPages {
 public:
  // How many bytes the shared file of a vCPU has with a dirty ring of that many bytes (0: none).
  static constexpr u64 file_size(u64 dirty_ring_bytes) {
    return dirty_ring_bytes == 0 ? vcpu_mmap_size : KVM_DIRTY_LOG_PAGE_OFFSET * u64{4096} + dirty_ring_bytes;
  }

  // `fd`: the file to share, of file_size() bytes, which the caller keeps; -1: memory that only this process
  // sees.
  RunPages(int fd, u64 dirty_ring_bytes);
  ~RunPages();
  RunPages(const RunPages&) = delete;
  RunPages& operator=(const RunPages&) = delete;

  // False: there was no memory; nothing else may be called then.
  bool valid() const { return base_ != nullptr; }

  kvm_run& run() const { return *reinterpret_cast<kvm_run*>(base_); }
  std::byte* pio() const { return base_ + pio_offset; }
  kvm_coalesced_mmio_ring* coalesced() const {
    return reinterpret_cast<kvm_coalesced_mmio_ring*>(base_ + KVM_COALESCED_MMIO_PAGE_OFFSET * 4096);
  }
  std::span<kvm_dirty_gfn> dirty_ring() const;

  static constexpr u64 pio_offset = KVM_PIO_PAGE_OFFSET * u64{4096};

 private:
  std::byte* base_ = nullptr;
  u64 size_ = 0;
  u64 ring_bytes_ = 0;
};

} // namespace ring3::kvm
