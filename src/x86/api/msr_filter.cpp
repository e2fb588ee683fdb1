// SPDX-License-Identifier: Apache-2.0
#include "x86/api/msr_filter.h"

#include <algorithm>
#include <cerrno>

namespace ring3::x86 {

std::expected<std::unique_ptr<const MsrFilter>, int> MsrFilter::make(const kvm_msr_filter& from,
                                                                     CopyIn copy) {
  constexpr u32 known = KVM_MSR_FILTER_DEFAULT_DENY;
  constexpr u32 directions = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE;
  if ((from.flags & ~known) != 0) return std::unexpected(-EINVAL);
  auto filter = std::make_unique<MsrFilter>();
  filter->default_allow_ = (from.flags & KVM_MSR_FILTER_DEFAULT_DENY) == 0;
  const bool empty = std::ranges::all_of(from.ranges, [](const auto& r) { return r.nmsrs == 0; });
  if (empty && !filter->default_allow_) return std::unexpected(-EINVAL);
  for (const kvm_msr_filter_range& r : from.ranges) {
    if (r.nmsrs == 0) continue;
    if ((r.flags & ~directions) != 0 || r.flags == 0) return std::unexpected(-EINVAL);
    const std::size_t bytes = (std::size_t{r.nmsrs} + 63) / 64 * 8; // KVM reads whole words
    if (bytes > max_bitmap_bytes) return std::unexpected(-EINVAL);
    Range& made = filter->ranges_.emplace_back(r.flags, r.base, r.nmsrs, std::vector<u8>(bytes));
    if (!copy(made.bitmap.data(), reinterpret_cast<u64>(r.bitmap), bytes)) return std::unexpected(-EFAULT);
  }
  return filter;
}

bool MsrFilter::allows(u32 index, bool write) const {
  if (index >= 0x800 && index <= 0x8ff) return true;
  const u32 direction = write ? KVM_MSR_FILTER_WRITE : KVM_MSR_FILTER_READ;
  for (const Range& r : ranges_) {
    // As KVM: a range that goes beyond the last index holds nothing.
    const u32 end = r.base + r.count;
    if (index < r.base || index >= end || (r.flags & direction) == 0) continue;
    const u32 n = index - r.base;
    return (r.bitmap[n / 8] >> (n % 8) & 1) != 0;
  }
  return default_allow_;
}

} // namespace ring3::x86
