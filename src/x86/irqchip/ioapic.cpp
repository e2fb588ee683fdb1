// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/ioapic.h"

#include "base/bits.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ring3::x86 {
namespace {

// Redirection table entry (82093AA, 3.2.4).
constexpr u64 logical_bit = bit(11);
constexpr u64 delivery_status_bit = bit(12);
constexpr u64 remote_irr_bit = bit(14);
constexpr u64 level_bit = bit(15);
constexpr u64 mask_bit = bit(16);
constexpr u64 read_only_bits = delivery_status_bit | remote_irr_bit;

constexpr u32 select_offset = 0x00;
constexpr u32 window_offset = 0x10;
constexpr u8 id_register = 0;
constexpr u8 version_register = 1;
constexpr u8 arbitration_register = 2;
constexpr u8 first_redirection_register = 0x10;
constexpr u32 version = 0x11;
constexpr u32 storm_limit = 10'000;

bool is_masked(u64 entry) { return (entry & mask_bit) != 0; }
bool is_level(u64 entry) { return (entry & level_bit) != 0; }
DeliveryMode mode_of(u64 entry) { return static_cast<DeliveryMode>(field(entry, 10, 8)); }

// NMI, SMI, INIT and ExtINT end without an EOI message, so they are edges whatever the entry says.
bool waits_for_eoi(u64 entry) {
  return is_level(entry) &&
         (mode_of(entry) == DeliveryMode::Fixed || mode_of(entry) == DeliveryMode::LowestPriority);
}

} // namespace

void IoApic::read(u32 offset, void* data, u32 size) const {
  std::memset(data, 0, size);
  u32 value = 0;
  if (offset == select_offset) value = select_;
  if (offset == window_offset) value = read_register();
  std::memcpy(data, &value, std::min<u32>(size, sizeof value));
}

void IoApic::write(u32 offset, const void* data, u32 size) {
  u32 value = 0;
  std::memcpy(&value, data, std::min<u32>(size, sizeof value));
  if (offset == select_offset) select_ = static_cast<u8>(value);
  if (offset == window_offset) write_register(value);
}

u32 IoApic::read_register() const {
  switch (select_) {
  case id_register:
  case arbitration_register: return static_cast<u32>(id_) << 24;
  case version_register: return (pins - 1) << 16 | version;
  default: break;
  }
  if (select_ < first_redirection_register) return 0;
  const unsigned pin = (select_ - first_redirection_register) / 2u;
  if (pin >= pins) return ~u32{0};
  return static_cast<u32>((select_ & 1) != 0 ? entries_[pin] >> 32 : entries_[pin]);
}

void IoApic::write_register(u32 value) {
  if (select_ == id_register) id_ = static_cast<u8>(field(value, 27, 24));
  if (select_ < first_redirection_register) return;
  const unsigned pin = (select_ - first_redirection_register) / 2u;
  if (pin < pins) write_entry(pin, (select_ & 1) != 0, value);
}

void IoApic::write_entry(unsigned pin, bool high, u32 value) {
  u64& entry = entries_[pin];
  const u64 old = entry;
  if (high) {
    entry = with_field(old, 63, 32, value);
  } else {
    constexpr u64 defined = low_mask(17);
    entry = (old & (~low_mask(32) | read_only_bits)) | (value & defined & ~read_only_bits);
    // Linux and Xen clear a stuck remote IRR by making the pin edge-triggered and level-triggered again.
    if (!is_level(entry)) entry &= ~remote_irr_bit;
  }
  if (is_masked(old) && !is_masked(entry)) unmasked_ |= u32{1} << pin;
  const bool line_up = (irr_ >> pin & 1) != 0;
  if (is_level(entry) && line_up) service(pin);
}

int IoApic::service(unsigned pin) {
  u64& entry = entries_[pin];
  if (is_masked(entry) || (is_level(entry) && (entry & remote_irr_bit) != 0)) return -1;
  const ApicMessage message{.destination = static_cast<u32>(entry >> 56),
                            .vector = static_cast<u8>(entry),
                            .mode = mode_of(entry),
                            .logical = (entry & logical_bit) != 0,
                            .level_triggered = is_level(entry)};
  if (!is_level(entry)) edges_delivered_ |= u32{1} << pin;
  const int reached = bus_.deliver(message, nullptr);
  if (reached > 0 && waits_for_eoi(entry)) entry |= remote_irr_bit;
  return reached;
}

int IoApic::raise(unsigned pin) {
  const u32 mask = u32{1} << pin;
  const bool was_up = (irr_ & mask) != 0;
  irr_ |= mask;
  if (!is_level(entries_[pin])) {
    if (was_up) return 0;
    edges_delivered_ &= ~mask;
  }
  return service(pin);
}

int IoApic::set_pin(unsigned pin, bool level, unsigned source) {
  if (pin >= pins || source >= 32) return -1;
  const u32 mask = u32{1} << source;
  holders_[pin] = level ? holders_[pin] | mask : holders_[pin] & ~mask;
  if (holders_[pin] != 0) return raise(pin);
  irr_ &= ~(u32{1} << pin);
  delayed_ &= ~(u32{1} << pin);
  return 1;
}

void IoApic::end_of_interrupt(u8 vector, bool level_triggered) {
  for (unsigned pin = 0; pin < pins; ++pin) {
    u64& entry = entries_[pin];
    if (static_cast<u8>(entry) != vector) continue;
    const u32 mask = u32{1} << pin;
    ended_ |= mask;
    if (!level_triggered || !is_level(entry)) continue;
    entry &= ~remote_irr_bit;
    if (is_masked(entry) || (irr_ & mask) == 0) {
      successive_ends_[pin] = 0;
    } else if (++successive_ends_[pin] >= storm_limit) {
      successive_ends_[pin] = 0;
      delayed_ |= mask;
      storm_ = true;
    } else {
      service(pin);
    }
  }
}

u32 IoApic::pins_of(u8 vector) const {
  u32 found = 0;
  for (unsigned pin = 0; pin < pins; ++pin)
    if (static_cast<u8>(entries_[pin]) == vector) found |= u32{1} << pin;
  return found;
}

u32 IoApic::take_ended() { return std::exchange(ended_, 0); }
u32 IoApic::take_unmasked() { return std::exchange(unmasked_, 0); }
bool IoApic::take_storm() { return std::exchange(storm_, false); }

void IoApic::retry() {
  const u32 waiting = std::exchange(delayed_, 0);
  for (unsigned pin = 0; pin < pins; ++pin)
    if ((waiting & irr_ & u32{1} << pin) != 0) service(pin);
}

void IoApic::get_state(kvm_ioapic_state& out) const {
  out = kvm_ioapic_state{};
  out.base_address = base_;
  out.ioregsel = select_;
  out.id = id_;
  // KVM's convention: an edge that has been sent is not pending, so that restoring does not send it again.
  out.irr = irr_ & ~edges_delivered_;
  for (unsigned pin = 0; pin < pins; ++pin) out.redirtbl[pin].bits = entries_[pin];
}

void IoApic::set_state(const kvm_ioapic_state& in) {
  base_ = in.base_address;
  select_ = static_cast<u8>(in.ioregsel);
  id_ = in.id & 0xf;
  irr_ = 0;
  edges_delivered_ = 0;
  delayed_ = 0;
  successive_ends_.fill(0);
  for (unsigned pin = 0; pin < pins; ++pin) entries_[pin] = in.redirtbl[pin].bits;
  for (unsigned pin = 0; pin < pins; ++pin)
    if ((in.irr >> pin & 1) != 0) raise(pin);
}

} // namespace ring3::x86
