// SPDX-License-Identifier: Apache-2.0
#include "device/acpi_pm.h"

#include "base/bits.h"

#include <utility>

namespace ring3::device {
namespace {

constexpr u16 tmr_sts = 0x0001; // also TMR_EN
// Timer, global lock, and the RTC alarm, which the guest may arm although nothing here sleeps; there are no
// buttons.
constexpr u16 enable_mask = 0x0001 | 0x0020 | 0x0400;
constexpr u16 status_mask = enable_mask | 0x8000; // and wake
constexpr u16 sci_en = 0x0001, slp_en = 0x2000;
constexpr unsigned carry_shift = 31; // TMR_STS is set whenever the timer's most significant bit changes

} // namespace

AcpiPm::AcpiPm(const kvm::Clock& clock, IrqLine sci, WakeFn wake, EventSink events)
    : clock_(clock), sci_(std::move(sci)), wake_(std::move(wake)), events_(std::move(events)),
      start_ns_(clock.now_ns()) {}

u64 AcpiPm::ticks() const {
  return static_cast<u64>(static_cast<u128>(clock_.now_ns() - start_ns_) * timer_hz / 1'000'000'000);
}

void AcpiPm::update() {
  const u64 carries = ticks() >> carry_shift;
  if (carries != carried_) status_ |= tmr_sts;
  carried_ = carries;
  const bool level = status_ & enable_;
  if (level != line_) {
    line_ = level;
    if (sci_) sci_(level);
  }
}

u64 AcpiPm::read(u64 offset, unsigned size) {
  std::lock_guard lock(mutex_);
  if (offset >= timer_offset)
    return field(ticks(), 31, 0) >> (8 * (offset - timer_offset)) & low_mask(8 * size);
  update();
  u64 value = 0;
  for (unsigned i = 0; i < size; ++i) value |= read_byte(offset + i) << (8 * i);
  return value;
}

u64 AcpiPm::read_byte(u64 offset) {
  switch (offset) {
  case 0: return status_ & 0xff;
  case 1: return status_ >> 8;
  case 2: return enable_ & 0xff;
  case 3: return enable_ >> 8;
  case 4: return control_ & 0xff;
  case 5: return control_ >> 8;
  default: return 0;
  }
}

void AcpiPm::write(u64 offset, unsigned size, u64 value) {
  std::unique_lock lock(mutex_);
  update();
  bool sleep = false;
  for (unsigned i = 0; i < size; ++i) {
    const u16 byte = static_cast<u16>((value >> (8 * i)) & 0xff);
    switch (offset + i) {
    case 0: status_ &= static_cast<u16>(~byte); break; // write one to clear
    case 1: status_ &= static_cast<u16>(~(byte << 8)); break;
    case 2: enable_ = static_cast<u16>(((enable_ & 0xff00) | byte) & enable_mask); break;
    case 3: enable_ = static_cast<u16>(((enable_ & 0x00ff) | byte << 8) & enable_mask); break;
    case 4:
      control_ = static_cast<u16>((control_ & 0xff00) | (byte & 0xfb) | sci_en);
      break; // GBL_RLS reads as 0
    case 5:
      control_ = static_cast<u16>((control_ & 0x00ff) | ((byte << 8) & ~slp_en));
      sleep = ((byte << 8) & slp_en) && ((byte >> 2) & 7) == s5_sleep_type;
      break;
    default: break; // the timer is read only
    }
  }
  status_ &= status_mask;
  update();
  const bool armed = enable_ & tmr_sts;
  lock.unlock();
  if (armed && wake_) wake_();
  if (sleep && events_) events_({MachineEvent::Kind::power_off, 0});
}

std::optional<u64> AcpiPm::next_deadline_ns() {
  std::lock_guard lock(mutex_);
  if (!(enable_ & tmr_sts) || (status_ & tmr_sts)) return std::nullopt;
  const u64 next = ((ticks() >> carry_shift) + 1) << carry_shift;
  return start_ns_ + static_cast<u64>(static_cast<u128>(next) * 1'000'000'000 / timer_hz) + 1;
}

void AcpiPm::service() {
  std::lock_guard lock(mutex_);
  update();
}

} // namespace ring3::device
