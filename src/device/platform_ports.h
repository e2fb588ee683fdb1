// SPDX-License-Identifier: Apache-2.0
// The small ports of the machine: PCI configuration with an empty bus and the reset control register inside
// it, isa-debug-exit, the command-result port of `ring3 run -- CMD`, a write-only character port.
#pragma once

#include "device/device.h"

#include <mutex>

namespace ring3::device {

// Ports 0xcf8 to 0xcff: configuration mechanism #1. No function answers, so data reads are all ones. A byte
// access to 0xcf9 is the reset control register of Intel's chip sets: a write of bit 2 from 0 to 1 resets.
class PciConfigPorts final : public Device {
 public:
  static constexpr u64 base = 0xcf8, port_count = 8;
  static constexpr u64 reset_port = 0xcf9;
  static constexpr u8 reset_value = 0x06; // what the FADT tells the guest to write

  explicit PciConfigPorts(EventSink events);
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::mutex mutex_;
  EventSink events_;
  u32 address_ = 0;
  u8 reset_control_ = 0;
};

// Reports every write as an event of one kind; reads as zero. QEMU's isa-debug-exit takes accesses of 1 to 4
// bytes.
class EventPort final : public Device {
 public:
  EventPort(MachineEvent::Kind kind, EventSink events);
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  MachineEvent::Kind kind_;
  EventSink events_;
};

constexpr u64 debug_exit_port = 0xf4;      // 4 ports
constexpr u64 command_result_port = 0x5f0; // 1 port: the low byte is the command's exit code
constexpr u64 debug_console_port = 0xe9;   // 1 port: Bochs's character port

// The port 0xe9 console: reads as 0xe9 so that a guest can find it, writes are characters.
class CharacterPort final : public Device {
 public:
  explicit CharacterPort(std::function<void(u8)> sink);
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::function<void(u8)> sink_;
};

} // namespace ring3::device
