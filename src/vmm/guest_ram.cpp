// SPDX-License-Identifier: Apache-2.0
#include "vmm/guest_ram.h"

#include "base/address.h"

#include <cstring>
#include <fmt/format.h>
#include <sys/mman.h>
#include <utility>

namespace ring3::vmm {

Result<GuestRam> GuestRam::create(u64 size) {
  if (size < page_size || size > max_memory)
    return fail(fmt::format("{} bytes is no usable memory size", size),
                "give --memory a value such as 512M or 4G", 2);
  size = (size + page_offset_mask) & ~page_offset_mask;
  // Guest-physical memory aligned as the host's large pages are, which save both of them page faults and
  // misses of the TLB.
  constexpr u64 large = 2 * mib;
  const u64 reserved = size + large;
  void* const all =
      mmap(nullptr, reserved, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (all == MAP_FAILED)
    return fail(fmt::format("cannot reserve {} MiB for the guest: {}", size / mib, std::strerror(errno)),
                "use a smaller --memory, or raise the address-space limit (ulimit -v)", 2);
  auto* const begin = static_cast<std::byte*>(all);
  auto* const host = begin + (large - reinterpret_cast<u64>(begin) % large) % large;
  if (host != begin) munmap(begin, static_cast<u64>(host - begin));
  if (begin + reserved != host + size)
    munmap(host + size, static_cast<u64>(begin + reserved - (host + size)));
  static_cast<void>(madvise(host, size, MADV_HUGEPAGE)); // a wish
  return GuestRam(host, size);
}

GuestRam::GuestRam(GuestRam&& other) noexcept
    : host_(std::exchange(other.host_, nullptr)), size_(std::exchange(other.size_, 0)) {}

GuestRam::~GuestRam() {
  if (host_) munmap(host_, size_);
}

std::vector<GuestRam::Segment> GuestRam::segments() const {
  std::vector<Segment> all{{0, {host_, low_end()}}};
  if (high_size() != 0) all.push_back({high_ram_base, {host_ + low_end(), high_size()}});
  return all;
}

std::vector<MemoryRange> GuestRam::map() const {
  std::vector<MemoryRange> all;
  all.push_back({0, ebda_base, MemoryType::ram});
  all.push_back({ebda_base, mib - ebda_base, MemoryType::reserved});
  if (low_end() > mib) all.push_back({mib, low_end() - mib, MemoryType::ram});
  all.push_back({0xfec00000, 0x1000, MemoryType::reserved}); // I/O APIC
  all.push_back({0xfee00000, 0x1000, MemoryType::reserved}); // local APIC
  if (high_size() != 0) all.push_back({high_ram_base, high_size(), MemoryType::ram});
  return all;
}

std::span<std::byte> GuestRam::at(u64 base, u64 length) const {
  if (length == 0) return {};
  if (base < low_end()) {
    if (length > low_end() - base) return {};
    return {host_ + base, length};
  }
  if (base < high_ram_base) return {};
  const u64 offset = base - high_ram_base;
  if (offset >= high_size() || length > high_size() - offset) return {};
  return {host_ + low_end() + offset, length};
}

bool GuestRam::write(u64 base, std::span<const std::byte> bytes) const {
  if (bytes.empty()) return true;
  const std::span<std::byte> target = at(base, bytes.size());
  if (target.empty()) return false;
  std::memcpy(target.data(), bytes.data(), bytes.size());
  return true;
}

} // namespace ring3::vmm
