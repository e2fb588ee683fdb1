// SPDX-License-Identifier: Apache-2.0
#include "kvm/memory_attributes.h"

#include <algorithm>

namespace ring3::kvm {

bool PrivatePages::contains(u64 page) const {
  // The first range that ends behind the page.
  const auto r = std::ranges::upper_bound(ranges_, page, {}, &PageRange::end);
  return r != ranges_.end() && r->first <= page;
}

bool PrivatePages::all(PageRange range, bool are_private) const {
  const auto r = std::ranges::upper_bound(ranges_, range.first, {}, &PageRange::end);
  if (are_private) return r != ranges_.end() && r->first <= range.first && r->end >= range.end;
  return r == ranges_.end() || r->first >= range.end;
}

PrivatePages PrivatePages::with(PageRange range, bool is_private) const {
  PrivatePages next;
  next.ranges_.reserve(ranges_.size() + 2);
  for (const PageRange& r : ranges_) {
    const bool apart = r.end < range.first || r.first > range.end; // touching ranges become one
    if (apart) {
      next.ranges_.push_back(r);
    } else if (is_private) {
      range = {std::min(range.first, r.first), std::max(range.end, r.end)};
    } else {
      if (r.first < range.first) next.ranges_.push_back({r.first, std::min(r.end, range.first)});
      if (r.end > range.end) next.ranges_.push_back({std::max(r.first, range.end), r.end});
    }
  }
  if (is_private) {
    const auto at = std::ranges::upper_bound(next.ranges_, range.first, {}, &PageRange::first);
    next.ranges_.insert(at, range);
  }
  return next;
}

} // namespace ring3::kvm
