// SPDX-License-Identifier: Apache-2.0
// The cascaded pair of 8259A interrupt controllers of a PC, with the edge/level control registers of the PIIX
// (ports 0x4d0, 0x4d1). Source: Intel 8259A datasheet (231468-003); 82371SB (PIIX3) datasheet, 2.8. Not
// thread-safe: IrqChip's lock is held by every caller.
#pragma once

#include "base/types.h"

#include <array>
#include <linux/kvm.h>

namespace ring3::x86 {

class Pic {
 public:
  // The source that lets go of a line by itself when the line's service ends (level-triggered irqfds).
  static constexpr unsigned resampler_source = 1;

  // Line 0-15, of which 2 is the cascade and leads nowhere. `source` 0-31 tells apart who holds the line up:
  // it is high while anyone does. 1: latched, 0: coalesced with an earlier one or lowered, -1: masked.
  int set_line(unsigned line, bool level, unsigned source);

  // INTR, and the acknowledge cycle: the vector, spurious (line 7) if the request went away.
  bool output() const { return output_; }
  u8 acknowledge();

  u8 read_command(unsigned chip) { return read(chip, false); }
  u8 read_data(unsigned chip) { return read(chip, true); }
  void write_command(unsigned chip, u8 value);
  void write_data(unsigned chip, u8 value);
  u8 read_elcr(unsigned chip) const { return chips_[chip].elcr; }
  void write_elcr(unsigned chip, u8 value) { chips_[chip].elcr = value & chips_[chip].elcr_mask; }

  // Lines whose service ended (or was dropped by a reset) since the last call, one bit each.
  u16 take_ended();
  // Lines that a mask write opened since the last call.
  u16 take_unmasked();

  // Chip 0 is the master; KVM's structure.
  void get_state(unsigned chip, kvm_pic_state& out) const;
  void set_state(unsigned chip, const kvm_pic_state& in);

 private:
  enum class Init : u8 { Ready = 0, Icw2 = 1, Icw3 = 2, Icw4 = 3 };
  struct Chip {
    u8 last_level = 0; // line levels, for edge detection
    u8 irr = 0;
    u8 imr = 0;
    u8 isr = 0;
    u8 priority_base = 0; // the line of highest priority
    u8 vector_base = 0;
    Init init = Init::Ready;
    bool read_isr = false;
    bool poll = false;
    bool special_mask = false;
    bool auto_eoi = false;
    bool rotate_on_auto_eoi = false;
    bool special_fully_nested = false;
    bool needs_icw4 = false;
    u8 elcr = 0; // 1: level
    u8 elcr_mask = 0;
  };

  static int first_by_priority(const Chip& c, u8 lines);
  int pending_line(unsigned chip) const;
  static int set_chip_line(Chip& c, unsigned line, bool level);
  void take_line(unsigned chip, unsigned line);
  void end_service(unsigned chip, unsigned line);
  void start_init(unsigned chip, u8 icw1);
  void write_ocw2(unsigned chip, u8 value);
  u8 read(unsigned chip, bool data_port);
  u8 poll_read(unsigned chip);
  void update();

  std::array<Chip, 2> chips_{Chip{.elcr_mask = 0xf8}, Chip{.elcr_mask = 0xde}};
  std::array<u32, 16> holders_{}; // by line, one bit a source
  bool output_ = false;
  u16 ended_ = 0;
  u16 unmasked_ = 0;
};

} // namespace ring3::x86
