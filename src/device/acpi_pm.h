// SPDX-License-Identifier: Apache-2.0
// The ACPI fixed hardware (ACPI 6.4, 4.8): PM1a event and control blocks with power-off through S5, and the
// 32-bit PM timer at 3.579545 MHz. One window of 12 bytes. The machine is in ACPI mode from the start (SCI_EN
// is set).
#pragma once

#include "device/device.h"
#include "kvm/clock.h"

#include <mutex>

namespace ring3::device {

class AcpiPm final : public Device, public TimedDevice {
 public:
  static constexpr u64 event_offset = 0;   // PM1_STS, PM1_EN: 2 bytes each
  static constexpr u64 control_offset = 4; // PM1_CNT: 2 bytes
  static constexpr u64 timer_offset = 8;   // PM_TMR: 4 bytes
  static constexpr u64 port_count = 12;
  static constexpr u64 timer_hz = 3'579'545;
  static constexpr u8 s5_sleep_type = 5; // SLP_TYPa of \_S5 in the DSDT

  AcpiPm(const kvm::Clock& clock, IrqLine sci, WakeFn wake, EventSink events);

  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;
  std::optional<u64> next_deadline_ns() override;
  void service() override;

 private:
  u64 ticks() const;
  void update();
  u64 read_byte(u64 offset);

  std::mutex mutex_;
  const kvm::Clock& clock_;
  IrqLine sci_;
  WakeFn wake_;
  EventSink events_;
  u64 start_ns_;
  u16 status_ = 0;
  u16 enable_ = 0;
  u16 control_ = 1; // SCI_EN
  u64 carried_ = 0; // how often the timer's top bit had changed when TMR_STS was last accounted for
  bool line_ = false;
};

} // namespace ring3::device
