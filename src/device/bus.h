// SPDX-License-Identifier: Apache-2.0
// An address space of device windows: port I/O or MMIO. Filled before the vCPUs start and constant
// afterwards, so look-ups take no lock. Accesses that no window claims read as all ones and swallow writes,
// as on a PC.
#pragma once

#include "device/device.h"

#include <span>
#include <vector>

namespace ring3::device {

class Bus {
 public:
  // Claims [base, base + length). `width` is the widest access the device takes (1, 2, 4 or 8); wider ones
  // are split into consecutive ones, as the ISA bus does. False when the window is empty, wraps or overlaps
  // another.
  [[nodiscard]] bool add(u64 base, u64 length, Device& device, unsigned width = 1);

  // One access of data.size() bytes (1 to 8).
  void read(u64 address, std::span<u8> data) const;
  void write(u64 address, std::span<const u8> data) const;

  // Whether any window claims the byte at `address`.
  bool claims(u64 address) const { return find(address) != nullptr; }

 private:
  struct Window {
    u64 base;
    u64 length;
    Device* device;
    unsigned width;
  };
  const Window* find(u64 address) const;
  // The largest piece of an access of `size` bytes at `address` that `window` takes at once.
  static unsigned piece(const Window& window, u64 address, std::size_t size);

  std::vector<Window> windows_; // sorted by base
};

} // namespace ring3::device
