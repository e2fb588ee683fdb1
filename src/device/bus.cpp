// SPDX-License-Identifier: Apache-2.0
#include "device/bus.h"

#include <algorithm>

namespace ring3::device {

bool Bus::add(u64 base, u64 length, Device& device, unsigned width) {
  if (length == 0 || base + (length - 1) < base) return false;
  auto next = std::ranges::upper_bound(windows_, base, {}, &Window::base);
  if (next != windows_.end() && next->base - base < length) return false;
  if (next != windows_.begin()) {
    const Window& before = *std::prev(next);
    if (base - before.base < before.length) return false;
  }
  windows_.insert(next, Window{base, length, &device, width});
  return true;
}

const Bus::Window* Bus::find(u64 address) const {
  auto next = std::ranges::upper_bound(windows_, address, {}, &Window::base);
  if (next == windows_.begin()) return nullptr;
  const Window& window = *std::prev(next);
  return address - window.base < window.length ? &window : nullptr;
}

unsigned Bus::piece(const Window& window, u64 address, std::size_t size) {
  const u64 left = window.length - (address - window.base);
  unsigned n = window.width;
  while (n > size || n > left) n /= 2;
  return n;
}

void Bus::read(u64 address, std::span<u8> data) const {
  while (!data.empty()) {
    unsigned n = 1;
    u64 value = 0xff;
    if (const Window* window = find(address)) {
      n = piece(*window, address, data.size());
      value = window->device->read(address - window->base, n);
    }
    for (unsigned i = 0; i < n; ++i) data[i] = static_cast<u8>(value >> (8 * i));
    data = data.subspan(n);
    address += n;
  }
}

void Bus::write(u64 address, std::span<const u8> data) const {
  while (!data.empty()) {
    unsigned n = 1;
    if (const Window* window = find(address)) {
      n = piece(*window, address, data.size());
      u64 value = 0;
      for (unsigned i = 0; i < n; ++i) value |= u64{data[i]} << (8 * i);
      window->device->write(address - window->base, n, value);
    }
    data = data.subspan(n);
    address += n;
  }
}

} // namespace ring3::device
