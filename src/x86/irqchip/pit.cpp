// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/pit.h"

#include <algorithm>
#include <utility>

namespace ring3::x86 {
namespace {

constexpr u64 ns_per_second = 1'000'000'000;

u64 to_ticks(u64 ns) { return static_cast<u64>(static_cast<u128>(ns) * Pit::frequency_hz / ns_per_second); }
// Rounded up, so that the counter has reached the tick when the time has.
u64 to_ns(u64 ticks) {
  return static_cast<u64>((static_cast<u128>(ticks) * ns_per_second + Pit::frequency_hz - 1) /
                          Pit::frequency_hz);
}

// Any 16 bits are a BCD count to the hardware; digits above 9 weigh what they weigh.
u32 from_bcd(u32 v) { return (v >> 12) * 1000 + (v >> 8 & 15) * 100 + (v >> 4 & 15) * 10 + (v & 15); }
u16 to_bcd(u64 v) {
  return static_cast<u16>(v / 1000 % 10 << 12 | v / 100 % 10 << 8 | v / 10 % 10 << 4 | v % 10);
}

constexpr bool is_periodic(u8 mode) { return mode == 2 || mode == 3; }
// Modes 1 and 5 count from a rising gate, whatever the gate does afterwards.
constexpr bool is_triggered(u8 mode) { return mode == 1 || mode == 5; }

} // namespace

Pit::Pit(u64 now_ns) {
  for (unsigned i = 0; i < 3; ++i) {
    channels_[i].mode = 3;
    channels_[i].gate = i != 2;
    channels_[i].start_ns = now_ns;
  }
  channels_[2].stopped_at_ns = now_ns;
}

u64 Pit::elapsed(const Channel& c, u64 now_ns) {
  const u64 end = std::min(now_ns, c.stopped_at_ns);
  return end <= c.start_ns ? 0 : to_ticks(end - c.start_ns);
}

u16 Pit::counter(const Channel& c, u64 now_ns) {
  const u64 modulus = c.bcd ? 10000 : 0x10000;
  u64 value = c.count;
  if (c.running) {
    const u64 ticks = elapsed(c, now_ns);
    switch (c.mode) {
    case 2: value = c.count - ticks % c.count; break;
    case 3: value = c.count - 2 * ticks % c.count; break;             // counts by two
    default: value = (c.count + modulus - ticks % modulus) % modulus; // and goes on below zero
    }
  }
  return c.bcd ? to_bcd(value) : static_cast<u16>(value);
}

bool Pit::output(const Channel& c, u64 now_ns) {
  if (!c.running) return true; // waiting for its trigger
  const u64 ticks = elapsed(c, now_ns);
  switch (c.mode) {
  case 0: return !c.null_count && ticks >= c.count;
  case 1: return ticks >= c.count;
  case 2: return !c.gate || ticks % c.count != c.count - 1;
  case 3: return !c.gate || ticks % c.count < (c.count + 1) / 2;
  default: return ticks != c.count; // a strobe of one tick
  }
}

u8 Pit::status_of(const Channel& c, u64 now_ns) {
  return static_cast<u8>((output(c, now_ns) ? 0x80 : 0) | (c.null_count ? 0x40 : 0) |
                         std::to_underlying(c.access) << 4 | c.mode << 1 | (c.bcd ? 1 : 0));
}

void Pit::latch_count(Channel& c, u64 now_ns) {
  if (c.latched != Access::Latch) return; // the first latch holds until it is read
  c.latched_count = counter(c, now_ns);
  c.latched = c.access;
}

void Pit::start(unsigned channel, u64 now_ns) {
  Channel& c = channels_[channel];
  c.start_ns = now_ns;
  c.stopped_at_ns = c.gate || is_triggered(c.mode) ? never : now_ns;
  if (channel == 0) schedule(now_ns);
}

void Pit::schedule(u64 now_ns) {
  const Channel& c = channels_[0];
  next_tick_ = never;
  period_ns_ = 0;
  // A count that waits for a trigger never gets one: the gate of counter 0 is tied high.
  if (hpet_legacy_ || !c.loaded || is_triggered(c.mode)) return;
  const u64 ns = to_ns(c.count);
  if (is_periodic(c.mode)) period_ns_ = std::max(ns, min_period_ns);
  next_tick_ = now_ns + (period_ns_ != 0 ? period_ns_ : ns);
}

u64 Pit::take_ticks(u64 now_ns) {
  if (now_ns < next_tick_) return 0;
  if (period_ns_ == 0) {
    next_tick_ = never;
    return 1;
  }
  const u64 due = 1 + (now_ns - next_tick_) / period_ns_;
  next_tick_ += due * period_ns_;
  return due;
}

void Pit::load(unsigned channel, u16 raw, u64 now_ns) {
  Channel& c = channels_[channel];
  const u32 value = c.bcd ? from_bcd(raw) : raw;
  c.count = value != 0 ? value : c.bcd ? 10000 : 0x10000;
  c.null_count = false;
  c.loaded = true;
  c.running = !is_triggered(c.mode);
  start(channel, now_ns);
}

void Pit::set_gate(unsigned channel, bool gate, u64 now_ns) {
  Channel& c = channels_[channel];
  const bool was = std::exchange(c.gate, gate);
  if (was == gate) return;
  if (is_triggered(c.mode)) {
    if (gate && !c.null_count) {
      c.running = true;
      start(channel, now_ns);
    }
  } else if (!gate) {
    c.stopped_at_ns = now_ns;
  } else if (is_periodic(c.mode)) {
    start(channel, now_ns);
  } else {
    // Modes 0 and 4 go on where they stopped.
    c.start_ns += now_ns - std::min(now_ns, c.stopped_at_ns);
    c.stopped_at_ns = never;
  }
}

void Pit::control(u8 value, u64 now_ns) {
  const unsigned channel = value >> 6;
  if (channel == 3) return read_back(value, now_ns);
  Channel& c = channels_[channel];
  const auto access = static_cast<Access>(value >> 4 & 3);
  if (access == Access::Latch) return latch_count(c, now_ns);
  c.access = access;
  c.read_state = access;
  c.write_state = access;
  c.latched = Access::Latch;
  c.status_latched = false;
  c.mode = value >> 1 & 7;
  if (c.mode > 5) c.mode &= 3; // the third bit of modes 2 and 3 is "don't care"
  c.bcd = (value & 1) != 0;
  c.null_count = true;
  c.running = !is_triggered(c.mode);
  // The new mode counts only from its first count on; KVM lets the interrupt of the old one run until then.
}

void Pit::read_back(u8 value, u64 now_ns) {
  for (unsigned i = 0; i < 3; ++i) {
    if ((value >> (i + 1) & 1) == 0) continue;
    Channel& c = channels_[i];
    if ((value & 0x20) == 0) latch_count(c, now_ns);
    if ((value & 0x10) == 0 && !c.status_latched) {
      c.status = status_of(c, now_ns);
      c.status_latched = true;
    }
  }
}

u8 Pit::read(unsigned port, u64 now_ns) {
  if (port > 2) return 0; // the control register cannot be read
  Channel& c = channels_[port];
  if (std::exchange(c.status_latched, false)) return c.status;
  if (c.latched != Access::Latch) {
    switch (std::exchange(c.latched, Access::Latch)) {
    case Access::Low: return static_cast<u8>(c.latched_count);
    case Access::Word: c.latched = Access::High; return static_cast<u8>(c.latched_count);
    default: return static_cast<u8>(c.latched_count >> 8);
    }
  }
  const u16 value = counter(c, now_ns);
  switch (c.read_state) {
  case Access::High: return static_cast<u8>(value >> 8);
  case Access::Word: c.read_state = Access::WordHigh; return static_cast<u8>(value);
  case Access::WordHigh: c.read_state = Access::Word; return static_cast<u8>(value >> 8);
  default: return static_cast<u8>(value);
  }
}

void Pit::write(unsigned port, u8 value, u64 now_ns) {
  if (port > 2) return control(value, now_ns);
  Channel& c = channels_[port];
  switch (c.write_state) {
  case Access::High: load(port, static_cast<u16>(value << 8), now_ns); break;
  case Access::Word:
    c.write_low = value;
    c.write_state = Access::WordHigh;
    break;
  case Access::WordHigh:
    c.write_state = Access::Word;
    load(port, static_cast<u16>(value << 8 | c.write_low), now_ns);
    break;
  default: load(port, value, now_ns);
  }
}

u8 Pit::read_port_b(u64 now_ns) const {
  const Channel& c = channels_[2];
  const bool refresh = (now_ns >> 14 & 1) != 0; // toggles about every 15 us, as DRAM refresh did
  return static_cast<u8>((c.gate ? 1 : 0) | (speaker_on_ ? 2 : 0) | (refresh ? 0x10 : 0) |
                         (output(c, now_ns) ? 0x20 : 0));
}

void Pit::write_port_b(u8 value, u64 now_ns) {
  speaker_on_ = (value & 2) != 0;
  set_gate(2, (value & 1) != 0, now_ns);
}

void Pit::get_state(kvm_pit_state2& out) const {
  out = kvm_pit_state2{};
  for (unsigned i = 0; i < 3; ++i) {
    const Channel& c = channels_[i];
    out.channels[i] = kvm_pit_channel_state{.count = c.count,
                                            .latched_count = c.latched_count,
                                            .count_latched = std::to_underlying(c.latched),
                                            .status_latched = c.status_latched,
                                            .status = c.status,
                                            .read_state = std::to_underlying(c.read_state),
                                            .write_state = std::to_underlying(c.write_state),
                                            .write_latch = c.write_low,
                                            .rw_mode = std::to_underlying(c.access),
                                            .mode = c.loaded ? c.mode : u8{0xff},
                                            .bcd = c.bcd,
                                            .gate = c.gate,
                                            .count_load_time = static_cast<s64>(c.start_ns)};
  }
  out.flags =
      (hpet_legacy_ ? KVM_PIT_FLAGS_HPET_LEGACY : 0u) | (speaker_on_ ? KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0u);
}

void Pit::set_state(const kvm_pit_state2& in, u64 now_ns) {
  const auto access = [](u8 v) { return static_cast<Access>(v <= 4 ? v : 3); };
  const auto not_latch = [&access](u8 v) { return v == 0 ? Access::Word : access(v); };
  hpet_legacy_ = (in.flags & KVM_PIT_FLAGS_HPET_LEGACY) != 0;
  speaker_on_ = (in.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON) != 0;
  for (unsigned i = 0; i < 3; ++i) {
    const kvm_pit_channel_state& s = in.channels[i];
    Channel& c = channels_[i];
    c = Channel{};
    c.bcd = (s.bcd & 1) != 0;
    c.loaded = s.mode <= 7;
    c.mode = s.mode & 7;
    if (c.mode > 5) c.mode &= 3;
    const u32 most = c.bcd ? 10000 : 0x10000;
    c.count = s.count == 0 ? most : std::min(s.count, most);
    c.gate = s.gate != 0;
    c.running = !is_triggered(c.mode);
    c.access = static_cast<Access>((s.rw_mode & 3) == 0 ? 3 : s.rw_mode & 3);
    c.read_state = not_latch(s.read_state);
    c.write_state = not_latch(s.write_state);
    c.write_low = s.write_latch;
    c.latched = access(s.count_latched);
    c.latched_count = s.latched_count;
    c.status_latched = s.status_latched != 0;
    c.status = s.status;
    start(i, now_ns);
  }
}

} // namespace ring3::x86
