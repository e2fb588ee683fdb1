// SPDX-License-Identifier: Apache-2.0
#include "device/platform_ports.h"

#include <utility>

namespace ring3::device {

PciConfigPorts::PciConfigPorts(EventSink events) : events_(std::move(events)) {}

u64 PciConfigPorts::read(u64 offset, unsigned size) {
  std::lock_guard lock(mutex_);
  if (offset == 0 && size == 4) return address_;
  if (offset == 1 && size == 1) return reset_control_;
  return ~u64{0};
}

void PciConfigPorts::write(u64 offset, unsigned size, u64 value) {
  std::unique_lock lock(mutex_);
  if (offset == 0 && size == 4) {
    address_ = static_cast<u32>(value) & 0x80fffffc;
  } else if (offset == 1 && size == 1) {
    const bool reset = (value & 4) && !(reset_control_ & 4);
    reset_control_ = static_cast<u8>(value & 0x0e);
    lock.unlock();
    if (reset && events_) events_({MachineEvent::Kind::reset, 0});
  }
}

EventPort::EventPort(MachineEvent::Kind kind, EventSink events) : kind_(kind), events_(std::move(events)) {}

u64 EventPort::read(u64, unsigned) { return 0; }

void EventPort::write(u64, unsigned, u64 value) {
  if (events_) events_({kind_, static_cast<u32>(value)});
}

CharacterPort::CharacterPort(std::function<void(u8)> sink) : sink_(std::move(sink)) {}

u64 CharacterPort::read(u64, unsigned) { return debug_console_port; }

void CharacterPort::write(u64, unsigned, u64 value) { sink_(static_cast<u8>(value)); }

} // namespace ring3::device
