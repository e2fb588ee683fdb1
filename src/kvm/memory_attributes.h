// SPDX-License-Identifier: Apache-2.0
// Which guest pages are private (api.rst 4.141, KVM_SET_MEMORY_ATTRIBUTES).
//
// A sorted list of disjoint ranges, replaced as a whole by each change: that costs time in proportion to the
// ranges, and finding a page their logarithm. Readers hold a version and take no lock.
#pragma once

#include "base/address.h"
#include "base/types.h"

#include <memory>
#include <vector>

namespace ring3::kvm {

// Pages by number, the end excluded.
struct PageRange {
  u64 first;
  u64 end;
};

class PrivatePages {
 public:
  bool contains(u64 page) const;
  bool empty() const { return ranges_.empty(); }
  // This with the range added or taken away.
  PrivatePages with(PageRange range, bool is_private) const;
  // Are all of them, or none of them, private?
  bool all(PageRange range, bool are_private) const;

 private:
  std::vector<PageRange> ranges_; // in order, neither overlapping nor touching
};

} // namespace ring3::kvm
