// SPDX-License-Identifier: Apache-2.0
#include "kvm/residency.h"

#include "base/address.h"
#include "base/bits.h"
#include "base/host_pages.h"

#include <algorithm>
#include <charconv>
#include <fcntl.h>
#include <string_view>
#include <sys/mman.h>
#include <sys/sysinfo.h>
#include <unistd.h>

namespace ring3::kvm {
namespace {

// An entry of /proc/PID/pagemap (Documentation/admin-guide/mm/pagemap.rst).
constexpr u64 page_present = bit(63), page_swapped = bit(62);

// VmSwap of proc(5), in KiB; 0 if it is not told.
u64 swapped_kib() {
  const int fd = ::open("/proc/self/status", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  char text[4096];
  const ssize_t size = ::read(fd, text, sizeof text);
  ::close(fd);
  if (size <= 0) return 0;
  const std::string_view status(text, static_cast<std::size_t>(size));
  constexpr std::string_view name = "\nVmSwap:";
  const std::size_t at = status.find(name);
  if (at == std::string_view::npos) return 0;
  const std::size_t digits = status.find_first_of("0123456789", at + name.size());
  if (digits == std::string_view::npos) return 0;
  u64 kib = 0;
  std::from_chars(status.data() + digits, status.data() + status.size(), kib);
  return kib;
}

} // namespace

constinit Residency Residency::process_;

void Residency::set_reason(u32 reason, bool on) {
  if (on) {
    reasons_.fetch_or(reason, std::memory_order_relaxed);
  } else {
    reasons_.fetch_and(~reason, std::memory_order_relaxed);
  }
}

void Residency::look_for_swap() {
  struct sysinfo host {};
  const bool host_swaps = ::sysinfo(&host) == 0 && host.totalswap != host.freeswap;
  set_reason(swapped, host_swaps && swapped_kib() != 0);
}

void Residency::registered(u64 start, u64 size) {
  if (size == 0 || start + size < start) return;
  for (Range& r : ranges_) {
    u64 empty = 0;
    if (!r.end.compare_exchange_strong(empty, start + size)) continue;
    r.start.store(start);
    set_reason(user_ranges, true);
    return;
  }
}

void Residency::unregistered(u64 start, u64 size) {
  const u64 end = start + size;
  if (end < start) return;
  for (Range& r : ranges_) {
    const u64 r_start = r.start.load();
    const u64 r_end = r.end.load();
    if (r_end == 0 || r_end <= start || end <= r_start) continue;
    if (start <= r_start && r_end <= end) {
      r.end.store(0);
    } else if (start <= r_start) {
      r.start.store(end);
    } else {
      r.end.store(start);
      if (end < r_end) registered(end, r_end - end);
    }
  }
  set_reason(user_ranges, false);
  if (any_user_range()) set_reason(user_ranges, true); // also one that came meanwhile
}

bool Residency::any_user_range() const {
  return std::ranges::any_of(ranges_, [](const Range& r) { return r.end.load() != 0; });
}

bool Residency::in_user_range(u64 address) const {
  return std::ranges::any_of(ranges_, [address](const Range& r) {
    return address < r.end.load(std::memory_order_relaxed) &&
           address >= r.start.load(std::memory_order_relaxed);
  });
}

void Residency::prepare() {
  static_cast<void>(pagemap_descriptor());
  look_for_swap();
}

bool Residency::may_block(const std::byte* page) {
  const auto address = reinterpret_cast<u64>(page) & ~page_offset_mask;
  const bool served = (reasons_.load(std::memory_order_relaxed) & user_ranges) != 0 && in_user_range(address);
  if (!served && (reasons_.load(std::memory_order_relaxed) & swapped) == 0) return false;
  u64 entry = 0;
  const auto at = static_cast<off_t>(address / page_size * sizeof entry);
  const int fd = pagemap_descriptor();
  if (fd >= 0 && ::pread(fd, &entry, sizeof entry, at) == ssize_t{sizeof entry}) {
    if ((entry & page_present) != 0) return false;
    return served || (entry & page_swapped) != 0;
  }
  unsigned char resident = 1;
  void* const mapped = const_cast<std::byte*>(page) - (reinterpret_cast<u64>(page) & page_offset_mask);
  return served && ::mincore(mapped, page_size, &resident) == 0 && (resident & 1) == 0;
}

} // namespace ring3::kvm
