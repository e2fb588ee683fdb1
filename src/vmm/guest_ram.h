// SPDX-License-Identifier: Apache-2.0
// The machine's RAM and its map. RAM is one anonymous mapping, reserved but not committed; it appears to the
// guest from 0 up to 3 GiB and, what does not fit there, from 4 GiB on. All access from the host side is
// bounds-checked.
#pragma once

#include "base/error.h"
#include "base/types.h"

#include <cstddef>
#include <span>
#include <vector>

namespace ring3::vmm {

constexpr u64 kib = 1024, mib = 1024 * kib, gib = 1024 * mib;
constexpr u64 low_ram_limit = 3 * gib; // MMIO lives between here and 4 GiB
constexpr u64 high_ram_base = 4 * gib;
constexpr u64 legacy_hole = 0xa0000; // to 1 MiB: video memory, option ROMs, firmware
constexpr u64 ebda_base = 0x9fc00;   // end of conventional memory
constexpr u64 acpi_base = 0xe0000;   // our ACPI tables, up to 1 MiB

constexpr u64 min_memory = 1 * mib;
constexpr u64 max_memory = 64 * 1024 * gib; // 46 bits, within every CPU model's MAXPHYADDR or refused by it

// As E820 types them.
enum class MemoryType : u32 { ram = 1, reserved = 2 };
struct MemoryRange {
  u64 base;
  u64 size;
  MemoryType type;
};

class GuestRam {
 public:
  // Rounds up to whole pages. Fails when the host's address space does not hold it.
  static Result<GuestRam> create(u64 size);
  ~GuestRam();
  GuestRam(GuestRam&& other) noexcept;
  GuestRam(const GuestRam&) = delete;
  GuestRam& operator=(const GuestRam&) = delete;
  GuestRam& operator=(GuestRam&&) = delete;

  struct Segment {
    u64 guest_base;
    std::span<std::byte> host;
  };
  std::vector<Segment> segments() const;

  u64 size() const { return size_; }
  u64 low_end() const { return size_ < low_ram_limit ? size_ : low_ram_limit; }
  u64 high_size() const { return size_ - low_end(); }

  // What the guest's firmware tables say, in ascending order.
  std::vector<MemoryRange> map() const;

  // The host bytes of [base, base + length), or an empty span when any of it is not RAM. length 0 is empty,
  // too.
  std::span<std::byte> at(u64 base, u64 length) const;
  // Copies to the guest; false when any of the target is not RAM.
  [[nodiscard]] bool write(u64 base, std::span<const std::byte> bytes) const;

 private:
  GuestRam(std::byte* host, u64 size) : host_(host), size_(size) {}
  std::byte* host_;
  u64 size_;
};

} // namespace ring3::vmm
