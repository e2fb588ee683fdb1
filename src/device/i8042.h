// SPDX-License-Identifier: Apache-2.0
// The keyboard controller without keyboard or mouse: self test, command byte, output port, and the reset
// pulse that operating systems use. Two windows of one byte, data (0x60) and command/status (0x64), because
// 0x61 is the PIT's. Also the PS/2 system control port A (0x92): A20 and fast reset.
#pragma once

#include "device/device.h"

#include <deque>
#include <mutex>

namespace ring3::device {

class I8042 {
 public:
  explicit I8042(EventSink events);

  Device& data_port() { return data_; }
  Device& command_port() { return command_; }

 private:
  struct Port final : Device {
    Port(I8042& o, bool c) : owner(o), is_command(c) {}
    u64 read(u64, unsigned) override { return is_command ? owner.read_status() : owner.read_data(); }
    void write(u64, unsigned, u64 v) override {
      is_command ? owner.write_command(static_cast<u8>(v)) : owner.write_data(static_cast<u8>(v));
    }
    I8042& owner;
    bool is_command;
  };
  u8 read_status();
  u8 read_data();
  void write_command(u8 value);
  void write_data(u8 value);
  void answer(u8 value);
  void reset();

  Port data_{*this, false};
  Port command_{*this, true};
  std::mutex mutex_;
  EventSink events_;
  std::deque<u8> output_;
  u8 command_byte_ = 0x30 | 0x04; // both ports disabled, system flag set
  u8 output_port_ = 0x03;         // A20 on, reset line high
  u8 pending_command_ = 0;        // the command whose data byte is awaited, or 0
  bool last_was_command_ = false;
};

class SystemControlPortA final : public Device {
 public:
  explicit SystemControlPortA(EventSink events);
  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::mutex mutex_;
  EventSink events_;
  u8 value_ = 0x02; // A20 on
};

} // namespace ring3::device
