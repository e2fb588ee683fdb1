// SPDX-License-Identifier: Apache-2.0
// The seams between a device model and the machine around it. A device is called from any vCPU thread and
// from the machine's main thread, so each locks itself; callbacks may be made with that lock held and must
// not call back in.
#pragma once

#include "base/types.h"

#include <functional>
#include <optional>

namespace ring3::device {

// One register window. Offsets count from the start of the window; the bus keeps every access inside it and
// no wider than the window's declared width. `size` is 1, 2, 4 or 8 bytes, values are little-endian and
// zero-extended.
class Device {
 public:
  virtual ~Device() = default;
  virtual u64 read(u64 offset, unsigned size) = 0;
  virtual void write(u64 offset, unsigned size, u64 value) = 0;
};

// A level-triggered line: true asserts. Edge-triggered inputs see the transition.
using IrqLine = std::function<void(bool level)>;

// What a guest can ask of the machine through a device.
struct MachineEvent {
  enum class Kind {
    power_off,     // ACPI S5
    reset,         // keyboard controller, port 0x92, port 0xcf9
    debug_exit,    // isa-debug-exit; value is the raw value written
    command_result // the exit code of the command that `ring3 run -- CMD` ran
  };
  Kind kind = Kind::power_off;
  u32 value = 0;
};
using EventSink = std::function<void(const MachineEvent&)>;

// A device with deadlines of its own. The machine's main thread asks for the next one (nanoseconds of
// kvm::Clock) and calls service() when it has passed; a device whose deadline moves earlier calls the wake
// callback it was given.
class TimedDevice {
 public:
  virtual ~TimedDevice() = default;
  virtual std::optional<u64> next_deadline_ns() = 0;
  virtual void service() = 0;
};
using WakeFn = std::function<void()>;

} // namespace ring3::device
