// SPDX-License-Identifier: Apache-2.0
// The 8254 interval timer: three counters at ports 0x40-0x43, and what port 0x61 has of it (gate and output
// of counter 2, the speaker bit). Source: Intel 8254 datasheet (231164-005). KVM's behaviour where software
// can tell: a new count takes effect at once in every mode, and each tick of counter 0 is a pulse on its
// interrupt line. Not thread-safe: IrqChip's lock is held by every caller.
#pragma once

#include "base/types.h"

#include <array>
#include <limits>
#include <linux/kvm.h>

namespace ring3::x86 {

class Pit {
 public:
  static constexpr u64 frequency_hz = 1'193'182;
  // Fastest periodic interrupt of counter 0, as KVM's module parameter min_timer_period_us.
  static constexpr u64 min_period_ns = 200'000;
  static constexpr u64 never = std::numeric_limits<u64>::max();

  explicit Pit(u64 now_ns);

  u8 read(unsigned port, u64 now_ns);              // port 0-2
  void write(unsigned port, u8 value, u64 now_ns); // port 0-3
  u8 read_port_b(u64 now_ns) const;                // 0x61
  void write_port_b(u8 value, u64 now_ns);

  // When counter 0 next raises its interrupt, or `never`.
  u64 next_tick_ns() const { return next_tick_; }
  // The ticks that are due: moves next_tick_ns() past now.
  u64 take_ticks(u64 now_ns);

  void get_state(kvm_pit_state2& out) const;
  // Counters start afresh, as in KVM.
  void set_state(const kvm_pit_state2& in, u64 now_ns);

 private:
  enum class Access : u8 { Latch = 0, Low = 1, High = 2, Word = 3, WordHigh = 4 };
  struct Channel {
    u32 count = 0x10000; // 1-0x10000, in binary also when bcd
    u8 mode = 0;         // 0-5
    bool bcd = false;
    bool gate = true;
    bool null_count = false; // status bit 6
    bool loaded = false;     // a count was written since power-up; KVM's state shows its absence as mode 0xff
    bool running = true;     // false: modes 1 and 5 before their trigger
    u64 start_ns = 0;        // when the present count was loaded or triggered
    u64 stopped_at_ns = never; // gate low in a mode that it stops
    Access access = Access::Word;
    Access read_state = Access::Word;
    Access write_state = Access::Word;
    u8 write_low = 0;
    Access latched = Access::Latch; // Latch: nothing latched; else what remains to be read
    u16 latched_count = 0;
    bool status_latched = false;
    u8 status = 0;
  };

  static u64 elapsed(const Channel& c, u64 now_ns);
  static u16 counter(const Channel& c, u64 now_ns);
  static bool output(const Channel& c, u64 now_ns);
  static u8 status_of(const Channel& c, u64 now_ns);
  static void latch_count(Channel& c, u64 now_ns);
  void set_gate(unsigned channel, bool gate, u64 now_ns);
  void load(unsigned channel, u16 raw, u64 now_ns);
  void start(unsigned channel, u64 now_ns);
  void schedule(u64 now_ns);
  void control(u8 value, u64 now_ns);
  void read_back(u8 value, u64 now_ns);

  std::array<Channel, 3> channels_;
  bool speaker_on_ = false;
  bool hpet_legacy_ = false; // the HPET has taken over IRQ 0
  u64 next_tick_ = never;
  u64 period_ns_ = 0; // 0: one-shot
};

} // namespace ring3::x86
