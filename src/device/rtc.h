// SPDX-License-Identifier: Apache-2.0
// MC146818A real-time clock with 128 bytes of CMOS memory at ports 0x70 (index) and 0x71 (data). Time of day
// follows the Clock's wall time (UTC) plus what the guest has set. Update, alarm and periodic interrupts
// work; the square wave does not exist. Memory-size bytes are where QEMU and its firmwares keep them.
#pragma once

#include "device/device.h"
#include "kvm/clock.h"

#include <array>
#include <mutex>

namespace ring3::device {

struct CmosContents {
  u64 memory_below_4g = 0; // bytes
  u64 memory_above_4g = 0; // bytes
  u32 cpus = 1;
};

class Rtc final : public Device, public TimedDevice {
 public:
  static constexpr u64 port_count = 2;

  Rtc(const kvm::Clock& clock, IrqLine irq, WakeFn wake, const CmosContents& contents);

  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;
  std::optional<u64> next_deadline_ns() override;
  void service() override;

 private:
  s64 guest_ns() const; // guest's time of day, nanoseconds since 1970
  bool frozen() const;
  void latch_time();      // time of day into the registers
  void adopt_registers(); // the registers become the time of day
  void update(s64 now);   // brings register C and the line up to `now`
  bool alarm_matches(s64 second) const;
  u64 period_ns() const; // of the periodic interrupt, 0 for none
  u8 encode(unsigned value) const;
  unsigned decode(u8 value) const;
  u8 encode_hour(unsigned hour) const;

  std::mutex mutex_;
  const kvm::Clock& clock_;
  IrqLine irq_;
  WakeFn wake_;
  std::array<u8, 128> ram_{};
  u8 index_ = 0;
  s64 offset_ns_ = 0;
  s64 last_ns_ = 0; // guest_ns() up to which flags are accounted for
  bool line_ = false;
};

} // namespace ring3::device
