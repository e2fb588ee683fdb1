// SPDX-License-Identifier: Apache-2.0
// KVM_REGISTER_COALESCED_MMIO and its opposite (api.rst 4.116): writes to zones of ports or device memory are
// put into a ring that the VMM empties when it next leaves KVM_RUN.
//
// KVM has one ring a VM, which it maps into every vCPU's descriptor. Here each vCPU's descriptor is a file of
// its own, so the ring is the page of the vCPU that was created first: the one that VMMs read. The page is
// shared with a VMM that may write anything to it.
//
// Threads: write() from any thread; add() and remove() from any thread but one that is inside write(). When
// remove() returns, no write enters the ring through that zone any more.
#pragma once

#include "kvm/io_space.h"
#include "kvm/published.h"

#include <array>
#include <cstddef>
#include <linux/kvm.h>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

class CoalescedRing {
 public:
  static constexpr u64 page_bytes = 4096;
  // Where the entries begin: after `first` and `last`. Not offsetof(): C++ gives the empty structure in
  // Linux's
  // __DECLARE_FLEX_ARRAY a size, which C does not.
  static constexpr u64 header_bytes = 2 * sizeof(u32);
  // How many entries fit; one of them is always free, so that a full ring and an empty one differ.
  static constexpr u32 entries = (page_bytes - header_bytes) / sizeof(kvm_coalesced_mmio);
  static constexpr u32 max_zones = 1000; // a bus of KVM's holds that many devices (NR_IOBUS_DEVS)

  // The ring's page, once; later calls change nothing. Writes before it go to user space. The page must stay
  // until no thread writes any more.
  void attach(kvm_coalesced_mmio_ring* page);

  // 0 or -errno: EINVAL for a `pio` that is not 0 or 1, ENOSPC with max_zones of that kind.
  int add(const kvm_coalesced_mmio_zone& zone);
  // Removes every zone of that kind that includes the given one; that there is none is no error, as in KVM.
  int remove(const kvm_coalesced_mmio_zone& zone);

  // The guest writes `data`, 1 to 8 bytes. True: it is in the ring. False: not in a zone, or the ring is full
  // (or its indices are not valid ones); the access is for user space.
  bool write(IoSpace space, u64 address, std::span<const std::byte> data);

 private:
  struct Zone {
    u64 address;
    u32 size;
    bool includes(u64 first, u64 bytes) const {
      return first >= address && bytes <= size && first - address <= size - bytes;
    }
  };
  using Table = std::vector<Zone>; // in order of registration

  std::mutex lock_;                         // one change of the zones at a time
  std::array<Published<Table>, 2> zones_;   // by IoSpace
  std::mutex ring_lock_;                    // one entry at a time
  kvm_coalesced_mmio_ring* ring_ = nullptr; // under ring_lock_
};

} // namespace ring3::kvm
