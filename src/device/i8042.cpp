// SPDX-License-Identifier: Apache-2.0
#include "device/i8042.h"

#include <utility>

namespace ring3::device {
namespace {

constexpr std::size_t output_capacity = 16;
constexpr u8 status_output_full = 0x01, status_system = 0x04, status_command = 0x08, status_unlocked = 0x10;

} // namespace

I8042::I8042(EventSink events) : events_(std::move(events)) {}

void I8042::answer(u8 value) {
  if (output_.size() < output_capacity) output_.push_back(value);
}

void I8042::reset() {
  if (events_) events_({MachineEvent::Kind::reset, 0});
}

u8 I8042::read_status() {
  std::lock_guard lock(mutex_);
  return static_cast<u8>(status_unlocked | (command_byte_ & status_system) |
                         (output_.empty() ? 0 : status_output_full) |
                         (last_was_command_ ? status_command : 0));
}

u8 I8042::read_data() {
  std::lock_guard lock(mutex_);
  if (output_.empty()) return 0;
  const u8 value = output_.front();
  output_.pop_front();
  return value;
}

void I8042::write_command(u8 value) {
  std::unique_lock lock(mutex_);
  last_was_command_ = true;
  pending_command_ = 0;
  switch (value) {
  case 0x20: answer(command_byte_); return;
  case 0x60: // write command byte
  case 0xd1: // write output port
  case 0xd2:
  case 0xd3:
  case 0xd4: pending_command_ = value; return;                // data for the buffers and the mouse
  case 0xa7: command_byte_ |= 0x20; return;                   // mouse port off
  case 0xa8: command_byte_ &= static_cast<u8>(~0x20); return; // mouse port on
  case 0xa9: answer(0x00); return;                            // mouse port test: line fine
  case 0xaa:
    command_byte_ |= status_system;
    answer(0x55);
    return;                                                   // self test passed
  case 0xab: answer(0x00); return;                            // keyboard port test: line fine
  case 0xad: command_byte_ |= 0x10; return;                   // keyboard port off
  case 0xae: command_byte_ &= static_cast<u8>(~0x10); return; // keyboard port on
  case 0xc0: answer(0x80); return;                            // input port: keyboard not locked
  case 0xd0: answer(output_port_); return;
  default: break;
  }
  if (value >= 0xf0 && !(value & 1)) { // pulse output lines; line 0 is the processor's reset
    lock.unlock();
    reset();
  }
}

void I8042::write_data(u8 value) {
  std::unique_lock lock(mutex_);
  last_was_command_ = false;
  switch (std::exchange(pending_command_, u8{0})) {
  case 0x60: command_byte_ = value; return;
  case 0xd1:
    output_port_ = value;
    if (!(value & 1)) {
      lock.unlock();
      reset();
    }
    return;
  case 0xd2:
  case 0xd3: answer(value); return;
  default: return; // a byte for a keyboard or mouse that is not there: no answer ever comes
  }
}

SystemControlPortA::SystemControlPortA(EventSink events) : events_(std::move(events)) {}

u64 SystemControlPortA::read(u64, unsigned) {
  std::lock_guard lock(mutex_);
  return value_;
}

void SystemControlPortA::write(u64, unsigned, u64 value) {
  std::unique_lock lock(mutex_);
  const bool reset = (value & 1) && !(value_ & 1);
  value_ = static_cast<u8>(value);
  lock.unlock();
  if (reset && events_) events_({MachineEvent::Kind::reset, 0});
}

} // namespace ring3::device
