// SPDX-License-Identifier: Apache-2.0
// The registers of the local APIC as MMIO (SDM vol. 3, table 11-1), as MSRs (table 11-6), and as KVM's state
// structure.
#include "base/bits.h"
#include "x86/irqchip/lapic.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace ring3::x86 {
namespace {

constexpr u32 first_msr = 0x800;
constexpr u32 lvt_mask_bit = 1u << 16;
constexpr u32 lvt_read_only_bits = 1u << 12 | 1u << 14; // delivery status, remote IRR
constexpr u32 icr_busy_bit = 1u << 12;
// SDM figure 11-28, with KVM's licence to write the delivery status of the older format.
constexpr u32 x2apic_icr_reserved = 0xfff0'0000 | 3u << 16 | 1u << 13;
constexpr u32 divide_bits = 0xb;
constexpr u32 vector_bits = 0xff;
constexpr u32 spurious_bits = 0x3ff; // vector, software enable, focus check
constexpr u32 suppress_broadcast_bit = 1u << 12;

} // namespace

u32 Lapic::writable_lvt_bits(Register lvt) const {
  constexpr u32 common = vector_bits | lvt_mask_bit;
  constexpr u32 mode = 7u << 8;
  constexpr u32 polarity_and_trigger = 1u << 13 | 1u << 15;
  switch (lvt) {
  case lvt_timer: return common | (features_.tsc_deadline ? 3u : 1u) << 17;
  case lvt_lint0:
  case lvt_lint1: return common | mode | polarity_and_trigger;
  case lvt_error: return common;
  default: return common | mode;
  }
}

bool Lapic::is_readable(u32 number) const {
  switch (number) {
  case arbitration_priority:
  case destination_format:
  case icr_high: return !x2apic_mode();
  case lvt_cmci: return features_.cmci;
  case id_register:
  case version_register:
  case task_priority:
  case processor_priority:
  case logical_destination:
  case spurious:
  case error_status:
  case icr_low:
  case lvt_timer:
  case lvt_thermal:
  case lvt_performance:
  case lvt_lint0:
  case lvt_lint1:
  case lvt_error:
  case initial_count:
  case current_count:
  case divide_configuration: return true;
  default: return number >= isr && number < irr + 8;
  }
}

u32 Lapic::read_register(u32 number) const {
  switch (number) {
  case id_register: return x2apic_mode() ? id_ : reg(id_register);
  case arbitration_priority: return 0; // KVM; the Pentium 4 and later have none
  case processor_priority: return processor_priority_value();
  case initial_count: return timer_.initial_count();
  case current_count: return timer_.current_count();
  default: return reg(number);
  }
}

bool Lapic::write_lvt(Register lvt, u32 value) {
  const u32 writable = writable_lvt_bits(lvt);
  if (x2apic_mode() && (value & ~(writable | lvt_read_only_bits)) != 0) return false;
  value &= writable;
  if (!software_enabled()) value |= lvt_mask_bit;
  set_reg(lvt, value);
  if (lvt == lvt_timer) timer_.set_mode(static_cast<ApicTimer::Mode>(value >> 17 & 3));
  if (lvt == lvt_lint0) events_.event_pending(); // the PIC may have become visible
  return true;
}

void Lapic::write_spurious(u32 value) {
  set_reg(spurious, value & (spurious_bits | (features_.directed_eoi ? suppress_broadcast_bit : 0)));
  if (software_enabled()) return;
  // SDM vol. 3, 11.4.7.2: software disable masks all local entries; enabling does not undo it.
  for (const Register lvt : lvt_registers) set_reg(lvt, reg(lvt) | lvt_mask_bit);
}

// One 32-bit register. In x2APIC mode reserved bits fault; in xAPIC mode they are ignored.
bool Lapic::write_register(u32 number, u32 value) {
  const bool strict = x2apic_mode();
  switch (number) {
  case id_register:
    if (strict) return false;
    set_reg(id_register, value & 0xff00'0000);
    bus_.addressing_changed();
    return true;
  case task_priority:
    if (strict && (value & ~vector_bits) != 0) return false;
    set_task_priority(value);
    return true;
  case eoi_register:
    if (strict && value != 0) return false;
    end_of_interrupt();
    return true;
  case logical_destination:
    if (strict) return false;
    set_reg(logical_destination, value & 0xff00'0000);
    return true;
  case destination_format:
    if (strict) return false;
    set_reg(destination_format, value | 0x0fff'ffff);
    return true;
  case spurious:
    if (strict && (value & ~(spurious_bits | suppress_broadcast_bit)) != 0) return false;
    if (strict && (value & suppress_broadcast_bit) != 0 && !features_.directed_eoi) return false;
    write_spurious(value);
    return true;
  case error_status:
    if (strict && value != 0) return false;
    // SDM vol. 3, 11.5.3: the write shows what has been recorded since the last one.
    set_reg(error_status, errors_.exchange(0, std::memory_order_acq_rel));
    return true;
  case icr_low: // in x2APIC mode write_x2apic_msr() has it
    set_reg(icr_low, value & ~icr_busy_bit);
    send_ipi(value, reg(icr_high) >> 24);
    return true;
  case icr_high:
    if (strict) return false;
    set_reg(icr_high, value & 0xff00'0000);
    return true;
  case lvt_cmci: return features_.cmci && write_lvt(lvt_cmci, value);
  case lvt_timer:
  case lvt_thermal:
  case lvt_performance:
  case lvt_lint0:
  case lvt_lint1:
  case lvt_error: return write_lvt(static_cast<Register>(number), value);
  case initial_count: timer_.set_initial_count(value); return true;
  case divide_configuration:
    if (strict && (value & ~divide_bits) != 0) return false;
    set_reg(divide_configuration, value & divide_bits);
    timer_.set_divide(value);
    return true;
  case self_ipi:
    if (!strict || (value & ~vector_bits) != 0) return false;
    send_ipi(static_cast<u32>(Shorthand::Self) << 18 | value, 0);
    return true;
  default: return false;
  }
}

void Lapic::mmio_read(u32 offset, void* data, u32 size) {
  const bool page_is_live = enabled() && !x2apic_mode();
  std::memset(data, page_is_live ? 0 : 0xff, size);
  if (!page_is_live) return;
  const u32 within = offset & 15;
  const u32 number = offset >> 4;
  if (offset > 0x3ff || within + size > 4 || !is_readable(number)) return;
  const u32 value = read_register(number);
  std::memcpy(data, reinterpret_cast<const std::byte*>(&value) + within, size);
}

void Lapic::mmio_write(u32 offset, const void* data, u32 size) {
  // Registers take aligned 32-bit writes only (SDM vol. 3, 11.4.1.1).
  if (!enabled() || x2apic_mode() || size != 4 || (offset & 15) != 0 || offset > 0x3ff) return;
  write_register(offset >> 4, load_raw<u32>(data));
}

bool Lapic::read_x2apic_msr(u32 msr, u64& value) {
  const u32 number = msr - first_msr;
  if (!x2apic_mode() || msr < first_msr || number >= regs_.size() || !is_readable(number)) return false;
  value = read_register(number);
  if (number == icr_low) value |= static_cast<u64>(reg(icr_high)) << 32;
  return true;
}

bool Lapic::write_x2apic_msr(u32 msr, u64 value) {
  const u32 number = msr - first_msr;
  if (!x2apic_mode() || msr < first_msr || number >= regs_.size()) return false;
  const auto low = static_cast<u32>(value);
  const auto high = static_cast<u32>(value >> 32);
  if (number == icr_low) {
    if ((low & x2apic_icr_reserved) != 0) return false;
    set_reg(icr_low, low & ~icr_busy_bit);
    set_reg(icr_high, high);
    send_ipi(low, high);
    return true;
  }
  return high == 0 && write_register(number, low);
}

void Lapic::get_state(kvm_lapic_state& out, bool wide_ids) const {
  out = kvm_lapic_state{};
  for (u32 number = 0; number < regs_.size(); ++number) {
    u32 value = read_register(number);
    // Until KVM_CAP_X2APIC_API the ID has 8 bits, in the place where the xAPIC has it.
    if (number == id_register && x2apic_mode() && !wide_ids) value = id_ << 24;
    store_raw(out.regs + number * 16, value);
  }
}

int Lapic::set_state(const kvm_lapic_state& in, bool wide_ids) {
  const auto saved = [&in](u32 number) { return load_raw<u32>(in.regs + number * 16); };
  if (x2apic_mode() && wide_ids && saved(id_register) != id_) return -EINVAL;
  timer_.reset();
  for (u32 number = 0; number < regs_.size(); ++number) set_reg(number, saved(number));
  set_reg(version_register, version());
  for (const Register lvt : lvt_registers)
    set_reg(lvt, saved(lvt) & (writable_lvt_bits(lvt) | lvt_read_only_bits));
  set_reg(task_priority, saved(task_priority) & 0xff);
  write_spurious(saved(spurious));
  if (x2apic_mode()) {
    set_reg(id_register, id_ << 24);
    set_x2apic_addressing();
  }
  timer_.set_mode(static_cast<ApicTimer::Mode>(reg(lvt_timer) >> 17 & 3));
  timer_.set_divide(saved(divide_configuration));
  timer_.restore(saved(initial_count), saved(current_count));
  bus_.addressing_changed();
  events_.event_pending();
  return 0;
}

} // namespace ring3::x86
