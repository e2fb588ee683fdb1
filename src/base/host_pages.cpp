// SPDX-License-Identifier: Apache-2.0
#include "base/host_pages.h"

#include "base/address.h"
#include "base/bits.h"

#include <algorithm>
#include <atomic>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace ring3 {
namespace {

// From linux/fs.h of Linux 6.7.
constexpr u64 page_is_present = bit(3), page_is_huge = bit(6);
struct ScanArguments { // struct pm_scan_arg
  u64 size, flags, start, end, walk_end, regions, region_count, max_pages;
  u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};
static_assert(sizeof(ScanArguments) == 96);
constexpr unsigned long pagemap_scan = _IOWR('f', 16, ScanArguments);

// The process in the upper half, its descriptor plus one in the lower.
constinit std::atomic<u64> opened{0};

// How many regions were found, or less than 0.
int scan(ScanArguments& arguments) {
  const int fd = pagemap_descriptor();
  return fd < 0 ? -1 : ::ioctl(fd, pagemap_scan, &arguments);
}

} // namespace

int pagemap_descriptor() {
  const auto process = static_cast<u64>(::getpid());
  u64 now = opened.load(std::memory_order_relaxed);
  if (now >> 32 == process) return static_cast<int>(now & low_mask(32)) - 1;
  const int fd = ::open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  // That of a parent is left open: its number may be somebody else's by now.
  if (opened.compare_exchange_strong(now, process << 32 | static_cast<u32>(fd + 1))) return fd;
  if (fd >= 0) ::close(fd);
  return static_cast<int>(now & low_mask(32)) - 1;
}

bool HostPages::told() {
  static const bool answer = [] {
    ScanArguments nothing{};
    nothing.size = sizeof nothing;
    nothing.return_mask = page_is_huge;
    return scan(nothing) >= 0;
  }();
  return answer;
}

HostPages::HostPages(const std::byte* first, u64 pages)
    : first_(reinterpret_cast<u64>(first)), end_(first_ + pages * page_size), at_(first_) {}

bool HostPages::ask() {
  ScanArguments arguments{};
  arguments.size = sizeof arguments;
  arguments.start = at_;
  arguments.end = end_;
  arguments.regions = reinterpret_cast<u64>(regions_.data());
  arguments.region_count = regions_.size();
  arguments.category_mask = page_is_present;
  arguments.return_mask = page_is_present | page_is_huge;
  const int found = scan(arguments);
  next_ = 0;
  count_ = static_cast<std::size_t>(std::max(found, 0));
  // It stops where there is no room for another region.
  at_ = found < 0 ? end_ : std::max(arguments.walk_end, at_ + page_size);
  return found >= 0;
}

bool HostPages::next(Run& run) {
  while (next_ == count_) {
    if (at_ >= end_ || !ask()) return false;
  }
  const Region& found = regions_[next_++];
  run = {.first = (found.start - first_) / page_size,
         .end = (found.end - first_) / page_size,
         .large = (found.categories & page_is_huge) != 0};
  return true;
}

} // namespace ring3
