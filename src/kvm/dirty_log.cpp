// SPDX-License-Identifier: Apache-2.0
#include "kvm/dirty_log.h"

#include "base/address.h"
#include "base/bits.h"
#include "kvm/dirty_ring.h"

#include <algorithm>
#include <bit>
#include <cerrno>

namespace ring3::kvm {
namespace {

u64 page_bit(u64 page) { return bit(static_cast<unsigned>(page % 64)); }

} // namespace

DirtyBitmap::DirtyBitmap(u64 pages, bool all_set)
    : pages_(static_cast<u32>(pages)),
      many_(words() > 1 ? std::make_unique<std::atomic<u64>[]>(words()) : nullptr) {
  if (!all_set) return;
  for (std::size_t i = 0; i < words(); ++i) {
    const u64 left = pages_ - u64{i} * 64;
    word(i).store(left >= 64 ? ~u64{0} : low_mask(static_cast<unsigned>(left)), std::memory_order_relaxed);
  }
}

bool DirtyBitmap::mark(u64 page) {
  if (page >= pages_) return false;
  std::atomic<u64>& bits = word(page / 64);
  const u64 mask = page_bit(page);
  // Most marks repeat an earlier one; a plain load keeps the line shared between vCPUs.
  if ((bits.load(std::memory_order_acquire) & mask) != 0) return false;
  return (bits.fetch_or(mask, std::memory_order_acq_rel) & mask) == 0;
}

bool DirtyBitmap::is_marked(u64 page) const {
  return page < pages_ && (word(page / 64).load(std::memory_order_acquire) & page_bit(page)) != 0;
}

u64 DirtyBitmap::marked(std::size_t word_index) const {
  return word_index < words() ? word(word_index).load(std::memory_order_acquire) : 0;
}

void DirtyBitmap::copy(std::span<u64> out) const {
  const std::size_t n = std::min(words(), out.size());
  for (std::size_t i = 0; i < n; ++i) out[i] = word(i).load(std::memory_order_acquire);
}

bool DirtyBitmap::take(std::span<u64> out) {
  const std::size_t n = std::min(words(), out.size());
  u64 any = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const bool clean = word(i).load(std::memory_order_relaxed) == 0;
    out[i] = clean ? 0 : word(i).exchange(0, std::memory_order_acq_rel);
    any |= out[i];
  }
  return any != 0;
}

bool DirtyBitmap::clear(u64 first_page, std::span<const u64> bits) {
  const std::size_t first = first_page / 64;
  if (first >= words()) return false;
  const std::size_t n = std::min(words() - first, bits.size());
  u64 any = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const u64 mask = bits[i]; // read once: the VMM may change it meanwhile
    if (mask != 0) any |= word(first + i).fetch_and(~mask, std::memory_order_acq_rel) & mask;
  }
  return any != 0;
}

bool DirtyBitmap::clear_page(u64 page) {
  if (page >= pages_) return false;
  return (word(page / 64).fetch_and(~page_bit(page), std::memory_order_acq_rel) & page_bit(page)) != 0;
}

int DirtyLog::set_manual_protect(u64 flags) {
  const bool enable = (flags & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0;
  const u64 allowed = enable ? KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET : 0;
  if ((flags & ~allowed) != 0) return -EINVAL;
  manual_.store(flags, std::memory_order_relaxed);
  return 0;
}

int DirtyLog::enable_ring(u32 bytes, bool vcpus_exist) {
  if (!std::has_single_bit(bytes)) return -EINVAL;
  if (bytes < DirtyRing::reserved * sizeof(kvm_dirty_gfn) || bytes < page_size) return -EINVAL;
  if (bytes > DirtyRing::max_entries * sizeof(kvm_dirty_gfn)) return -E2BIG;
  if (uses_ring() || vcpus_exist) return -EINVAL;
  ring_bytes_.store(bytes, std::memory_order_relaxed);
  return 0;
}

} // namespace ring3::kvm
