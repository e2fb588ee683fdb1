// SPDX-License-Identifier: Apache-2.0
#include "device/rtc.h"

#include <algorithm>
#include <chrono>
#include <utility>

namespace ring3::device {
namespace {

constexpr u8 seconds = 0, seconds_alarm = 1, minutes = 2, minutes_alarm = 3, hours = 4, hours_alarm = 5,
             weekday = 6, day = 7, month = 8, year = 9, reg_a = 10, reg_b = 11, reg_c = 12, reg_d = 13,
             century = 0x32;
constexpr u8 a_uip = 0x80;
constexpr u8 b_set = 0x80, b_pie = 0x40, b_aie = 0x20, b_uie = 0x10, b_binary = 0x04, b_24h = 0x02;
constexpr u8 c_irq = 0x80, c_periodic = 0x40, c_alarm = 0x20, c_update = 0x10;
constexpr s64 second_ns = 1'000'000'000;
constexpr s64 update_lead_ns = 244'000; // UIP rises this long before the registers change
constexpr s64 day_seconds = 86'400;

constexpr s64 floor_div(s64 a, s64 b) { return a / b - (a % b < 0); }

constexpr bool is_time_register(u8 index) {
  return index == seconds || index == minutes || index == hours || (index >= weekday && index <= year) ||
         index == century;
}

} // namespace

Rtc::Rtc(const kvm::Clock& clock, IrqLine irq, WakeFn wake, const CmosContents& contents)
    : clock_(clock), irq_(std::move(irq)), wake_(std::move(wake)) {
  ram_[reg_a] = 0x26; // 32.768 kHz crystal, 1024 Hz
  ram_[reg_b] = b_24h;
  ram_[reg_d] = 0x80; // battery good
  auto put16 = [&](u8 at, u64 value) {
    ram_[at] = static_cast<u8>(value);
    ram_[at + 1u] = static_cast<u8>(value >> 8);
  };
  constexpr u64 kib = 1024, mib = kib * kib;
  const u64 low = contents.memory_below_4g;
  put16(0x15, 640);
  const u64 extended = std::min<u64>(low > mib ? (low - mib) / kib : 0, 0xffff);
  put16(0x17, extended);
  put16(0x30, extended);
  put16(0x34, std::min<u64>(low > 16 * mib ? (low - 16 * mib) / (64 * kib) : 0, 0xffff));
  const u64 high = std::min<u64>(contents.memory_above_4g / (64 * kib), 0xffffff);
  put16(0x5b, high);
  ram_[0x5d] = static_cast<u8>(high >> 16);
  ram_[0x5f] = static_cast<u8>(std::min<u32>(contents.cpus - 1, 255));
  last_ns_ = guest_ns();
}

s64 Rtc::guest_ns() const { return static_cast<s64>(clock_.wall_ns()) + offset_ns_; }

// The SET bit, or the divider chain held in reset, stops the time of day.
bool Rtc::frozen() const { return (ram_[reg_b] & b_set) || (ram_[reg_a] & 0x60) == 0x60; }

u8 Rtc::encode(unsigned value) const {
  return static_cast<u8>((ram_[reg_b] & b_binary) ? value : (value / 10 % 10) << 4 | value % 10);
}
unsigned Rtc::decode(u8 value) const {
  return (ram_[reg_b] & b_binary) ? value : (value >> 4) * 10u + (value & 15u);
}
u8 Rtc::encode_hour(unsigned hour) const {
  if (ram_[reg_b] & b_24h) return encode(hour);
  const unsigned h12 = hour % 12 == 0 ? 12 : hour % 12;
  return static_cast<u8>(encode(h12) | (hour >= 12 ? 0x80 : 0));
}

void Rtc::latch_time() {
  using namespace std::chrono;
  const s64 now = floor_div(guest_ns(), second_ns);
  const s64 in_day = now - floor_div(now, day_seconds) * day_seconds;
  const sys_days date{days{floor_div(now, day_seconds)}};
  const year_month_day ymd{date};
  const int full_year = std::clamp(static_cast<int>(ymd.year()), 0, 9999);
  ram_[seconds] = encode(static_cast<unsigned>(in_day % 60));
  ram_[minutes] = encode(static_cast<unsigned>(in_day / 60 % 60));
  ram_[hours] = encode_hour(static_cast<unsigned>(in_day / 3600));
  ram_[weekday] = encode(std::chrono::weekday{date}.c_encoding() + 1);
  ram_[day] = encode(static_cast<unsigned>(ymd.day()));
  ram_[month] = encode(static_cast<unsigned>(ymd.month()));
  ram_[year] = encode(static_cast<unsigned>(full_year % 100));
  ram_[century] = encode(static_cast<unsigned>(full_year / 100));
}

void Rtc::adopt_registers() {
  using namespace std::chrono;
  // Whatever the guest wrote is a time: fields out of range carry over, as days and seconds added to a date.
  unsigned hour = decode(ram_[hours] & ((ram_[reg_b] & b_24h) ? 0xff : 0x7f));
  if (!(ram_[reg_b] & b_24h)) hour = hour % 12 + ((ram_[hours] & 0x80) ? 12 : 0);
  const int full_year = static_cast<int>(decode(ram_[century]) * 100 + decode(ram_[year]));
  const unsigned m = std::clamp(decode(ram_[month]), 1u, 12u);
  const sys_days first{std::chrono::year{full_year} / std::chrono::month{m} / 1};
  const s64 date = first.time_since_epoch().count() + static_cast<s64>(decode(ram_[day])) - 1;
  const s64 now =
      date * day_seconds + static_cast<s64>(hour * 3600 + decode(ram_[minutes]) * 60 + decode(ram_[seconds]));
  // The clock runs from 1970 to 2255, which 64 bits of nanoseconds hold; times beyond stop at the ends.
  constexpr s64 latest = 9'000'000'000;
  offset_ns_ = std::clamp<s64>(now, 0, latest) * second_ns - static_cast<s64>(clock_.wall_ns());
  last_ns_ = guest_ns();
}

u64 Rtc::period_ns() const {
  const unsigned rate = ram_[reg_a] & 15;
  if (rate == 0) return 0;
  const unsigned shift = rate <= 2 ? rate + 6 : rate - 1; // periods of 32768 Hz; rates 1 and 2 repeat 8 and 9
  return (u64{1} << shift) * 1'000'000'000 / 32768;
}

bool Rtc::alarm_matches(s64 second) const {
  const s64 in_day = second - floor_div(second, day_seconds) * day_seconds;
  auto match = [](u8 alarm, u8 now) { return (alarm & 0xc0) == 0xc0 || alarm == now; };
  return match(ram_[seconds_alarm], encode(static_cast<unsigned>(in_day % 60))) &&
         match(ram_[minutes_alarm], encode(static_cast<unsigned>(in_day / 60 % 60))) &&
         match(ram_[hours_alarm], encode_hour(static_cast<unsigned>(in_day / 3600)));
}

void Rtc::update(s64 now) {
  if (now > last_ns_) {
    if (const u64 period = period_ns(); period != 0) {
      const s64 p = static_cast<s64>(period);
      if (floor_div(now, p) != floor_div(last_ns_, p)) ram_[reg_c] |= c_periodic;
    }
    const s64 from = floor_div(last_ns_, second_ns), to = floor_div(now, second_ns);
    if (to != from && !frozen()) {
      ram_[reg_c] |= c_update;
      // A day holds every possible match, so more need not be looked at.
      for (s64 s = std::max(from + 1, to - day_seconds + 1); s <= to && !(ram_[reg_c] & c_alarm); ++s)
        if (alarm_matches(s)) ram_[reg_c] |= c_alarm;
    }
    last_ns_ = now;
  } else if (now < last_ns_ - second_ns) {
    last_ns_ = now; // the host's wall clock was set back
  }
  const bool level = ram_[reg_c] & ram_[reg_b] & (c_periodic | c_alarm | c_update);
  ram_[reg_c] = static_cast<u8>((ram_[reg_c] & ~c_irq) | (level ? c_irq : 0));
  if (level != line_) {
    line_ = level;
    if (irq_) irq_(level);
  }
}

u64 Rtc::read(u64 offset, unsigned) {
  std::lock_guard lock(mutex_);
  if (offset == 0) return 0xff; // the index is write-only
  const s64 now = guest_ns();
  update(now);
  if (is_time_register(index_) && !frozen()) latch_time();
  switch (index_) {
  case reg_a: {
    const s64 in_second = now - floor_div(now, second_ns) * second_ns;
    const bool updating = !frozen() && in_second >= second_ns - update_lead_ns;
    return (ram_[reg_a] & 0x7f) | (updating ? a_uip : 0);
  }
  case reg_c: {
    const u8 flags = ram_[reg_c];
    ram_[reg_c] = 0;
    update(now);
    if ((ram_[reg_b] & (b_pie | b_aie | b_uie)) && wake_) wake_();
    return flags;
  }
  default: return ram_[index_];
  }
}

void Rtc::write(u64 offset, unsigned, u64 wide) {
  std::lock_guard lock(mutex_);
  const u8 value = static_cast<u8>(wide);
  if (offset == 0) {
    index_ = value & 0x7f; // bit 7 masks NMI, which nothing here raises
    return;
  }
  update(guest_ns());
  if (index_ == reg_c || index_ == reg_d) return;
  if (index_ == reg_a || index_ == reg_b) {
    const bool before = frozen();
    if (!before) latch_time();
    ram_[index_] = index_ == reg_a ? value & 0x7f : value;
    // A change of the data mode re-reads nothing: the registers keep their bytes until the guest sets the
    // time.
    if (before && !frozen()) adopt_registers();
    update(guest_ns());
    if (wake_) wake_();
    return;
  }
  if (!is_time_register(index_)) {
    ram_[index_] = value;
    return;
  }
  if (!frozen()) latch_time();
  ram_[index_] = value;
  if (!frozen()) adopt_registers();
}

std::optional<u64> Rtc::next_deadline_ns() {
  std::lock_guard lock(mutex_);
  // Flags that are raised already, or whose interrupt is off, need no wake-up; an alarm is looked for each
  // second.
  const u8 waiting = static_cast<u8>(ram_[reg_b] & ~ram_[reg_c]);
  const s64 now = guest_ns();
  s64 best = -1;
  auto consider = [&](s64 step) {
    const s64 wait = (floor_div(now, step) + 1) * step - now;
    if (best < 0 || wait < best) best = wait;
  };
  if ((waiting & b_pie) && period_ns() != 0) consider(static_cast<s64>(period_ns()));
  if ((waiting & (b_uie | b_aie)) && !frozen()) consider(second_ns);
  if (best < 0) return std::nullopt;
  return clock_.now_ns() + static_cast<u64>(best);
}

void Rtc::service() {
  std::lock_guard lock(mutex_);
  update(guest_ns());
}

} // namespace ring3::device
