// SPDX-License-Identifier: Apache-2.0
// Which pages of the guest's memory were written (api.rst 4.8 KVM_GET_DIRTY_LOG, 4.117 KVM_CLEAR_DIRTY_LOG,
// 7.18 KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2).
//
// The rule by which no store is lost: a vCPU may store to a logged page without looking at the log only while
// the page's bit is set. Whoever clears bits calls DirtyLog::revoke_writes() after that, and waits until
// every vCPU that is in the guest has forgotten its permissions from before. A store that raced with the
// clearing has happened by then, so it is in memory when the VMM reads the page that it was told about; a
// later one sets the bit again. The slow path of a store sets the bit before it stores: clearing and waiting
// cannot come between, since a vCPU gives its answer only when no instruction is under way. Writes that are
// not made from inside the guest set the bit after they wrote.
#pragma once

#include "base/types.h"
#include "kvm/block_pool.h"
#include "kvm/counted.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <span>

namespace ring3::kvm {

// One bit a page of a slot. Any thread, no locks. Shared between the versions of a slot.
class DirtyBitmap : public Counted, public Pooled {
 public:
  // All clear, or (KVM_DIRTY_LOG_INITIALLY_SET) all set. At most max_slot_pages.
  explicit DirtyBitmap(u64 pages, bool all_set = false);
  DirtyBitmap(const DirtyBitmap&) = delete;
  DirtyBitmap& operator=(const DirtyBitmap&) = delete;

  // True if the bit was clear. A page that the slot does not have is ignored.
  bool mark(u64 page);
  bool is_marked(u64 page) const;

  // These have one bit a page and need words() words.
  void copy(std::span<u64> out) const;
  // Copies and clears. Whether any bit was set.
  bool take(std::span<u64> out);
  // Clears the bits that are set in `bits`, whose first is for first_page, a multiple of 64. Whether any bit
  // was set.
  bool clear(u64 first_page, std::span<const u64> bits);
  bool clear_page(u64 page);

  // One word of the bitmap; 0 beyond its end.
  u64 marked(std::size_t word_index) const;

  u64 pages() const { return pages_; }
  std::size_t words() const { return (u64{pages_} + 63) / 64; }

 private:
  std::atomic<u64>& word(std::size_t i) { return many_ ? many_[i] : one_; }
  const std::atomic<u64>& word(std::size_t i) const { return many_ ? many_[i] : one_; }

  u32 pages_;
  std::atomic<u64> one_{0}; // the only word of a small slot
  std::unique_ptr<std::atomic<u64>[]> many_;
};

// How a VM logs, and the generation of its vCPUs' permissions to store. Any thread; settings change under the
// VM's lock.
class DirtyLog {
 public:
  // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, with it
  // KVM_DIRTY_LOG_INITIALLY_SET. 0 or -EINVAL.
  int set_manual_protect(u64 flags);
  bool manual() const { return (manual_.load(std::memory_order_relaxed) & 1) != 0; }
  bool initially_set() const {
    return (manual_.load(std::memory_order_relaxed) & KVM_DIRTY_LOG_INITIALLY_SET) != 0;
  }

  // KVM_CAP_DIRTY_LOG_RING: the size of every vCPU's ring in bytes, once and before there is a vCPU. 0 or
  // -errno: EINVAL, E2BIG for more than DirtyRing::max_entries.
  int enable_ring(u32 bytes, bool vcpus_exist);
  u32 ring_bytes() const { return ring_bytes_.load(std::memory_order_relaxed); }
  bool uses_ring() const { return ring_bytes() != 0; }

  // Permissions to store that are older than this number are void.
  u64 writes_valid_from() const { return revoked_.load(std::memory_order_seq_cst); }
  u64 revoke_writes() { return revoked_.fetch_add(1, std::memory_order_seq_cst) + 1; }

 private:
  std::atomic<u64> manual_{0};
  std::atomic<u32> ring_bytes_{0};
  std::atomic<u64> revoked_{0};
};

} // namespace ring3::kvm
