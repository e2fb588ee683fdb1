// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/pic.h"

#include <bit>
#include <utility>

namespace ring3::x86 {
namespace {

constexpr unsigned cascade_line = 2;
constexpr u8 line_bit(unsigned line) { return static_cast<u8>(1u << (line & 7)); }
constexpr u8 without(u8 set, u8 bits) { return static_cast<u8>(set & ~bits); }

} // namespace

// The line of highest priority among `lines`, or -1.
int Pic::first_by_priority(const Chip& c, u8 lines) {
  if (lines == 0) return -1;
  const u8 rotated = std::rotr(lines, c.priority_base);
  return (std::countr_zero(rotated) + c.priority_base) & 7;
}

// The line that may interrupt now: requested, not masked, and above everything in service.
int Pic::pending_line(unsigned chip) const {
  const Chip& c = chips_[chip];
  const int line = first_by_priority(c, without(c.irr, c.imr));
  if (line < 0) return -1;
  u8 in_service = c.isr;
  if (c.special_mask) in_service = without(in_service, c.imr);
  // The slave may interrupt its own service: the master does not count the cascade as busy.
  if (c.special_fully_nested && chip == 0) in_service = without(in_service, line_bit(cascade_line));
  const int busy = first_by_priority(c, in_service);
  if (busy < 0) return line;
  const auto rank = [&c](int n) { return (n - c.priority_base) & 7; };
  return rank(line) < rank(busy) ? line : -1;
}

int Pic::set_chip_line(Chip& c, unsigned line, bool level) {
  const u8 mask = line_bit(line);
  const bool level_triggered = (c.elcr & mask) != 0;
  int result = 0;
  if (level) {
    const bool requests = level_triggered || (c.last_level & mask) == 0;
    if (requests) {
      result = (c.irr & mask) == 0;
      c.irr |= mask;
    }
    c.last_level |= mask;
  } else {
    // An edge stays latched when the line falls, as in KVM and QEMU; the 8259A would turn it into a spurious
    // one.
    if (level_triggered) c.irr = without(c.irr, mask);
    c.last_level = without(c.last_level, mask);
  }
  return (c.imr & mask) != 0 ? -1 : result;
}

int Pic::set_line(unsigned line, bool level, unsigned source) {
  if (line >= 16 || source >= 32) return -1;
  const u32 mask = u32{1} << source;
  holders_[line] = level ? holders_[line] | mask : holders_[line] & ~mask;
  const int result = set_chip_line(chips_[line / 8], line & 7, holders_[line] != 0);
  update();
  return result;
}

void Pic::update() {
  if (pending_line(1) >= 0) {
    // A pulse, because the master may see the cascade as an edge.
    set_chip_line(chips_[0], cascade_line, true);
    set_chip_line(chips_[0], cascade_line, false);
  }
  output_ = pending_line(0) >= 0;
}

void Pic::end_service(unsigned chip, unsigned line) {
  Chip& c = chips_[chip];
  c.isr = without(c.isr, line_bit(line));
  u32& holders = holders_[line + 8 * chip];
  const u32 resampler = u32{1} << resampler_source;
  if ((holders & resampler) != 0) {
    holders &= ~resampler;
    set_chip_line(c, line, holders != 0);
  }
  ended_ |= static_cast<u16>(1u << (line + 8 * chip));
}

// The acknowledge cycle of one chip for one line.
void Pic::take_line(unsigned chip, unsigned line) {
  Chip& c = chips_[chip];
  const u8 mask = line_bit(line);
  c.isr |= mask;
  if ((c.elcr & mask) == 0) c.irr = without(c.irr, mask);
  if (c.auto_eoi) {
    if (c.rotate_on_auto_eoi) c.priority_base = (line + 1) & 7;
    end_service(chip, line);
  }
}

u8 Pic::acknowledge() {
  constexpr u8 spurious_line = 7;
  u8 vector = 0;
  const int line = pending_line(0);
  if (line < 0) {
    vector = static_cast<u8>(chips_[0].vector_base + spurious_line);
  } else {
    take_line(0, static_cast<unsigned>(line));
    vector = static_cast<u8>(chips_[0].vector_base + line);
    if (line == cascade_line) {
      const int slave_line = pending_line(1);
      if (slave_line >= 0) take_line(1, static_cast<unsigned>(slave_line));
      vector = static_cast<u8>(chips_[1].vector_base + (slave_line >= 0 ? slave_line : spurious_line));
    }
  }
  update();
  return vector;
}

void Pic::start_init(unsigned chip, u8 icw1) {
  Chip& c = chips_[chip];
  const u8 dropped = without(static_cast<u8>(c.irr | c.isr), c.elcr);
  c.needs_icw4 = (icw1 & 1) != 0;
  c.last_level = 0;
  c.irr &= c.elcr; // level requests are the line itself
  c.isr = 0;
  c.imr = 0;
  c.priority_base = 0;
  c.special_mask = false;
  c.read_isr = false;
  c.poll = false;
  if (!c.needs_icw4) {
    c.special_fully_nested = false;
    c.auto_eoi = false;
  }
  c.init = Init::Icw2;
  // Who waits for the end of a dropped interrupt would wait for ever.
  for (unsigned line = 0; line < 8; ++line)
    if ((dropped & line_bit(line)) != 0) end_service(chip, line);
  update();
}

void Pic::write_ocw2(unsigned chip, u8 value) {
  Chip& c = chips_[chip];
  const unsigned named = value & 7;
  const unsigned command = value >> 5;
  switch (command) {
  case 0: // rotate on automatic EOI: clear
  case 4: // and set
    c.rotate_on_auto_eoi = command == 4;
    return;
  case 1:   // non-specific EOI
  case 5: { // and rotate
    u8 in_service = c.isr;
    if (c.special_mask)
      in_service = without(in_service, c.imr); // datasheet: masked lines are not cleared by it
    const int line = first_by_priority(c, in_service);
    if (line < 0) return;
    if (command == 5) c.priority_base = (line + 1) & 7;
    end_service(chip, static_cast<unsigned>(line));
    break;
  }
  case 3: end_service(chip, named); break;          // specific EOI
  case 6: c.priority_base = (named + 1) & 7; break; // set priority
  case 7:                                           // rotate on specific EOI
    c.priority_base = (named + 1) & 7;
    end_service(chip, named);
    break;
  default: return; // 2: no operation
  }
  update();
}

void Pic::write_command(unsigned chip, u8 value) {
  Chip& c = chips_[chip];
  if ((value & 0x10) != 0) {
    start_init(chip, value);
  } else if ((value & 0x08) != 0) { // OCW3
    if ((value & 0x04) != 0) c.poll = true;
    if ((value & 0x02) != 0) c.read_isr = (value & 1) != 0;
    if ((value & 0x40) != 0) {
      c.special_mask = (value & 0x20) != 0;
      update();
    }
  } else {
    write_ocw2(chip, value);
  }
}

void Pic::write_data(unsigned chip, u8 value) {
  Chip& c = chips_[chip];
  switch (c.init) {
  case Init::Ready: {
    const u8 opened = without(c.imr, value);
    unmasked_ |= static_cast<u16>(opened << (8 * chip));
    c.imr = value;
    update();
    break;
  }
  case Init::Icw2:
    c.vector_base = value & 0xf8;
    c.init = Init::Icw3;
    break;
  case Init::Icw3: c.init = c.needs_icw4 ? Init::Icw4 : Init::Ready; break; // the cascade is wired
  case Init::Icw4:
    c.special_fully_nested = (value & 0x10) != 0;
    c.auto_eoi = (value & 0x02) != 0;
    c.init = Init::Ready;
    break;
  }
}

// The read that follows a poll command acknowledges like an INTA cycle: bit 7 says whether there was a
// request.
u8 Pic::poll_read(unsigned chip) {
  const int line = pending_line(chip);
  if (line < 0) return 0;
  take_line(chip, static_cast<unsigned>(line));
  update();
  return static_cast<u8>(0x80 | line);
}

u8 Pic::read(unsigned chip, bool data_port) {
  Chip& c = chips_[chip];
  if (std::exchange(c.poll, false)) return poll_read(chip);
  if (data_port) return c.imr;
  return c.read_isr ? c.isr : c.irr;
}

u16 Pic::take_ended() { return std::exchange(ended_, u16{0}); }
u16 Pic::take_unmasked() { return std::exchange(unmasked_, u16{0}); }

void Pic::get_state(unsigned chip, kvm_pic_state& out) const {
  const Chip& c = chips_[chip];
  out = kvm_pic_state{.last_irr = c.last_level,
                      .irr = c.irr,
                      .imr = c.imr,
                      .isr = c.isr,
                      .priority_add = c.priority_base,
                      .irq_base = c.vector_base,
                      .read_reg_select = c.read_isr,
                      .poll = c.poll,
                      .special_mask = c.special_mask,
                      .init_state = static_cast<u8>(c.init),
                      .auto_eoi = c.auto_eoi,
                      .rotate_on_auto_eoi = c.rotate_on_auto_eoi,
                      .special_fully_nested_mode = c.special_fully_nested,
                      .init4 = c.needs_icw4,
                      .elcr = c.elcr,
                      .elcr_mask = c.elcr_mask};
}

void Pic::set_state(unsigned chip, const kvm_pic_state& in) {
  Chip& c = chips_[chip];
  c.last_level = in.last_irr;
  c.irr = in.irr;
  c.imr = in.imr;
  c.isr = in.isr;
  c.priority_base = in.priority_add & 7;
  c.vector_base = in.irq_base;
  c.read_isr = in.read_reg_select != 0;
  c.poll = in.poll != 0;
  c.special_mask = in.special_mask != 0;
  c.init = static_cast<Init>(in.init_state & 3);
  c.auto_eoi = in.auto_eoi != 0;
  c.rotate_on_auto_eoi = in.rotate_on_auto_eoi != 0;
  c.special_fully_nested = in.special_fully_nested_mode != 0;
  c.needs_icw4 = in.init4 != 0;
  c.elcr = in.elcr & c.elcr_mask; // the mask is the wiring's, not the VMM's
  update();
}

} // namespace ring3::x86
