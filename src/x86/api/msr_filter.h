// SPDX-License-Identifier: Apache-2.0
// Which MSRs a VMM lets its guest reach: KVM_X86_SET_MSR_FILTER (api.rst 4.97).
#pragma once

#include "base/types.h"

#include <cstddef>
#include <expected>
#include <linux/kvm.h>
#include <memory>
#include <vector>

namespace ring3::x86 {

// One version of the filter; never changes. Any thread.
class MsrFilter {
 public:
  static constexpr std::size_t max_bitmap_bytes = KVM_MSR_FILTER_MAX_BITMAP_SIZE;

  // Copies `size` bytes from the VMM's memory; false: they are not there.
  using CopyIn = bool (*)(void* to, u64 from, std::size_t size);

  // Or KVM's -errno: -EINVAL for unknown flags, a range without a direction or with a bitmap that is too
  // large, and a filter that would deny everything; -EFAULT for a bitmap that cannot be read.
  static std::expected<std::unique_ptr<const MsrFilter>, int> make(const kvm_msr_filter& from, CopyIn copy);

  // May the guest read (or write) this one itself? The x2APIC's registers it always may.
  bool allows(u32 index, bool write) const;

 private:
  struct Range {
    u32 flags; // KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE
    u32 base;
    u32 count;
    std::vector<u8> bitmap; // a bit that is set allows
  };
  std::vector<Range> ranges_;
  bool default_allow_ = true;
};

} // namespace ring3::x86
