// SPDX-License-Identifier: Apache-2.0
// QEMU's pc-testdev, which kvm-unit-tests drives: a data port, a page-flush port, one port per interrupt line
// and a window of MMIO that behaves as RAM but always exits.
#pragma once

#include "device/device.h"

#include <array>
#include <functional>
#include <mutex>
#include <vector>

namespace ring3::device {

// Ports 0xe0 to 0xe3 (a 32-bit register), 0xe4 to 0xe7 (flush) and 0xe8 (the register's low byte).
class TestIoPorts final : public Device {
 public:
  static constexpr u64 base = 0xe0, port_count = 9;
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::mutex mutex_;
  std::array<u8, 4> data_{};
};

// Ports 0x2000 to 0x2017: writing a value sets that GSI's level to it.
class TestIrqLines final : public Device {
 public:
  static constexpr u64 base = 0x2000, port_count = 24;
  explicit TestIrqLines(std::function<void(u32 gsi, bool level)> irq);
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::function<void(u32, bool)> irq_;
};

class TestIoMemory final : public Device {
 public:
  static constexpr u64 base = 0xff000000, length = 0x10000;
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::mutex mutex_;
  std::vector<u8> bytes_ = std::vector<u8>(length);
};

} // namespace ring3::device
