// SPDX-License-Identifier: Apache-2.0
// The interrupt side of the local APIC: accepting, prioritizing, sending, and its modes. Registers as the
// guest sees them are in lapic_registers.cpp.
#include "x86/irqchip/lapic.h"

#include "base/bits.h"

#include <bit>

namespace ring3::x86 {
namespace {

constexpr u32 first_legal_vector = 16;
constexpr u32 lvt_mask_bit = 1u << 16;
constexpr u32 lvt_level_bit = 1u << 15;
constexpr u32 flat_model = 0xffff'ffff;
constexpr u32 cluster_model = 0x0fff'ffff;
constexpr u32 error_send_illegal_vector = 1u << 5;
constexpr u32 error_receive_illegal_vector = 1u << 6;

DeliveryMode lvt_mode(u32 lvt) { return static_cast<DeliveryMode>(lvt >> 8 & 7); }

} // namespace

Lapic::Lapic(u32 id, bool bootstrap, ApicBus& bus, const kvm::Clock& clock, kvm::TimerQueue& timers,
             VcpuEvents& events, const GuestTsc& tsc)
    : id_(id), bootstrap_(bootstrap), bus_(bus), events_(events),
      timer_(clock, timers, tsc, [this] { deliver_local(lvt_timer); }) {
  reset(false);
}

void Lapic::set_features(const LapicFeatures& features) {
  features_ = features;
  set_reg(version_register, version());
}

u32 Lapic::version() const {
  constexpr u32 integrated = 0x14;
  const u32 entries = features_.cmci ? 7 : 6;
  return integrated | (entries - 1) << 16 | (features_.directed_eoi ? 1u << 24 : 0);
}

void Lapic::reset(bool init) {
  if (!init) {
    base_.store(default_base | enable_bit | (bootstrap_ ? bootstrap_bit : 0), std::memory_order_relaxed);
    set_reg(id_register, id_ << 24);
  }
  const u32 id = reg(id_register);
  const u32 ldr = reg(logical_destination);
  timer_.reset();
  for (u32 number = 0; number < regs_.size(); ++number) set_reg(number, 0);
  errors_.store(0, std::memory_order_relaxed);
  set_reg(id_register, id);
  set_reg(version_register, version());
  set_reg(spurious, 0xff);
  for (const Register lvt : lvt_registers) set_reg(lvt, lvt_mask_bit);
  // KVM leaves the boot CPU in virtual wire mode, for firmware that does not know APICs.
  if (bootstrap_) set_reg(lvt_lint0, static_cast<u32>(DeliveryMode::ExtInt) << 8);
  if (x2apic_mode()) {
    set_reg(logical_destination, ldr);
  } else {
    set_reg(destination_format, flat_model);
  }
  bus_.addressing_changed();
}

bool Lapic::may_set_base(u64 old, u64 value, const LapicFeatures& features, bool host_initiated) {
  const u64 defined = (low_mask(features.max_phys_bits) & base_address_mask) | enable_bit | bootstrap_bit |
                      (features.x2apic || host_initiated ? x2apic_bit : 0);
  if ((value & ~defined) != 0) return false;
  const u64 mode = value & x2apic_modes;
  const u64 old_mode = old & x2apic_modes;
  if (mode == x2apic_bit) return false; // x2APIC without enable is no mode
  if (host_initiated) return true;
  // SDM figure 11-27: x2APIC is left through "disabled" only, and entered from xAPIC only.
  return !(old_mode == x2apic_modes && mode == enable_bit) && !(old_mode == 0 && mode == x2apic_modes);
}

bool Lapic::set_base_msr(u64 value, bool host_initiated) {
  const u64 old = base_msr();
  if (!may_set_base(old, value, features_, host_initiated)) return false;
  const u64 mode = value & x2apic_modes;
  const u64 old_mode = old & x2apic_modes;
  base_.store(value, std::memory_order_relaxed);
  if (mode == old_mode) return true;
  if (mode == x2apic_modes) {
    set_x2apic_addressing();
  } else {
    if (old_mode == x2apic_modes) {
      set_reg(logical_destination, 0);
      set_reg(destination_format, flat_model);
    }
    if (old_mode != enable_bit) set_reg(id_register, id_ << 24);
  }
  bus_.addressing_changed();
  events_.event_pending(); // an APIC that is off lets the PIC through
  return true;
}

// SDM vol. 3, 11.12.10.2: cluster in 31:16, one bit of 16 within it.
void Lapic::set_x2apic_addressing() { set_reg(logical_destination, id_ >> 4 << 16 | 1u << (id_ & 15)); }

// -- Vector sets

void Lapic::set_vector(Register set, u8 vector) {
  regs_[set + vector / 32u].fetch_or(1u << (vector & 31), std::memory_order_acq_rel);
}

void Lapic::clear_vector(Register set, u8 vector) {
  regs_[set + vector / 32u].fetch_and(~(1u << (vector & 31)), std::memory_order_acq_rel);
}

bool Lapic::has_vector(Register set, u8 vector) const {
  return (regs_[set + vector / 32u].load(std::memory_order_acquire) >> (vector & 31) & 1) != 0;
}

int Lapic::highest_vector(Register set) const {
  for (int word = 7; word >= 0; --word) {
    const u32 bits = regs_[set + static_cast<u32>(word)].load(std::memory_order_acquire);
    if (bits != 0) return word * 32 + 31 - std::countl_zero(bits);
  }
  return -1;
}

// -- Priorities

// SDM vol. 3, 11.8.3.1.
u32 Lapic::processor_priority_value() const {
  const u32 tpr = reg(task_priority) & 0xff;
  const int in_service = highest_vector(isr);
  const u32 service_class = in_service < 0 ? 0 : static_cast<u32>(in_service) & 0xf0;
  return (tpr & 0xf0) >= service_class ? tpr : service_class;
}

int Lapic::highest_pending() const {
  if (!enabled()) return -1;
  const int vector = highest_vector(irr);
  if (vector < 0) return -1;
  return (static_cast<u32>(vector) & 0xf0) > (processor_priority_value() & 0xf0) ? vector : -1;
}

void Lapic::acknowledge(int vector) {
  const auto v = static_cast<u8>(vector);
  clear_vector(irr, v);
  set_vector(isr, v);
}

void Lapic::recheck() {
  if (highest_pending() >= 0) events_.event_pending();
}

void Lapic::set_task_priority(u32 value) {
  set_reg(task_priority, value & 0xff);
  recheck();
}

void Lapic::end_of_interrupt() {
  const int vector = highest_vector(isr);
  if (vector < 0) return; // a spurious interrupt has no service to end
  const auto v = static_cast<u8>(vector);
  clear_vector(isr, v);
  const bool level = has_vector(tmr, v);
  constexpr u32 suppress_broadcast = 1u << 12;
  const bool suppressed = (reg(spurious) & suppress_broadcast) != 0;
  if ((level && !suppressed) || bus_.wants_edge_eoi(v)) bus_.broadcast_eoi(v, level && !suppressed);
  // As KVM: whether or not the guest has suppressed the broadcast, which not every VMM knows.
  if (bus_.reports_eoi(*this, v, level)) events_.report_eoi(v);
  recheck();
}

bool Lapic::eoi_is_private() const {
  const int vector = highest_vector(isr);
  if (vector < 0 || highest_vector(irr) >= 0) return false;
  const auto v = static_cast<u8>(vector);
  return !has_vector(tmr, v) && !bus_.wants_edge_eoi(v);
}

// -- Accepting

bool Lapic::matches_physical(u32 destination) const {
  // An ID above 255 names an APIC even in xAPIC mode, so that a hot-plugged CPU can be started (KVM).
  if (x2apic_mode() || destination > 0xff) return destination == id_;
  // The other way round, an ID that does not fit is not aliased.
  return id_ <= 0xff && destination == xapic_id();
}

// SDM vol. 3, 11.6.2.2 and 11.12.10.1.
bool Lapic::matches_logical(u32 destination) const {
  const u32 ldr = reg(logical_destination);
  if (x2apic_mode()) return ldr >> 16 == destination >> 16 && (ldr & destination & 0xffff) != 0;
  if (destination > 0xff) return false;
  const u32 id = ldr >> 24;
  switch (reg(destination_format)) {
  case flat_model: return (id & destination) != 0;
  case cluster_model: return id >> 4 == destination >> 4 && (id & destination & 15) != 0;
  default: return false;
  }
}

bool Lapic::accept_fixed(u8 vector, bool level_triggered) {
  if (!enabled() || !software_enabled()) return false;
  if (vector < first_legal_vector) {
    record_error(error_receive_illegal_vector);
    return false;
  }
  // TMR before IRR: who sees the request finds the trigger mode that goes with it.
  if (level_triggered) {
    set_vector(tmr, vector);
  } else if (has_vector(tmr, vector)) {
    clear_vector(tmr, vector);
  }
  set_vector(irr, vector);
  events_.event_pending();
  return true;
}

bool Lapic::accept(const ApicMessage& message) {
  if (!enabled()) return false;
  const bool deassert = message.level_triggered && !message.level_assert;
  switch (message.mode) {
  case DeliveryMode::Fixed:
  case DeliveryMode::LowestPriority:
    return !deassert && accept_fixed(message.vector, message.level_triggered);
  case DeliveryMode::Smi: events_.post_smi(); return true;
  case DeliveryMode::Nmi: events_.post_nmi(); return true;
  case DeliveryMode::Init:
    // INIT level de-assert synchronized arbitration IDs once; since the Pentium 4 it does nothing.
    if (!deassert) events_.post_init();
    return !deassert;
  case DeliveryMode::Startup: events_.post_startup(message.vector); return true;
  case DeliveryMode::Reserved:
  case DeliveryMode::ExtInt: return false; // as KVM: the PIC reaches a CPU through LINT0 only
  }
  return false;
}

// One of the local sources fired: timer, LINT pins, error, performance counters.
void Lapic::deliver_local(Register lvt) {
  const u32 entry = reg(lvt);
  if (!enabled() || (entry & lvt_mask_bit) != 0) return;
  const auto vector = static_cast<u8>(entry);
  if (lvt == lvt_timer || lvt == lvt_error) { // no delivery mode field
    accept_fixed(vector, false);
    return;
  }
  switch (lvt_mode(entry)) {
  case DeliveryMode::Fixed: accept_fixed(vector, (entry & lvt_level_bit) != 0); break;
  case DeliveryMode::Smi: events_.post_smi(); break;
  case DeliveryMode::Nmi: events_.post_nmi(); break;
  case DeliveryMode::Init: events_.post_init(); break;
  default: break; // ExtINT is accepts_pic()
  }
}

void Lapic::performance_interrupt() {
  const u32 entry = reg(lvt_performance);
  deliver_local(lvt_performance);
  set_reg(lvt_performance, entry | lvt_mask_bit);
}

void Lapic::raise_lint(unsigned pin) { deliver_local(pin == 0 ? lvt_lint0 : lvt_lint1); }

bool Lapic::accepts_pic() const {
  if (!enabled()) return true;
  const u32 entry = reg(lvt_lint0);
  return (entry & lvt_mask_bit) == 0 && lvt_mode(entry) == DeliveryMode::ExtInt;
}

bool Lapic::lint0_is_nmi() const {
  const u32 entry = reg(lvt_lint0);
  return enabled() && (entry & lvt_mask_bit) == 0 && lvt_mode(entry) == DeliveryMode::Nmi;
}

void Lapic::record_error(u32 error) {
  const u32 before = errors_.fetch_or(error, std::memory_order_acq_rel);
  // An error entry that itself has an illegal vector must not report itself for ever.
  const bool legal = (reg(lvt_error) & 0xff) >= first_legal_vector;
  if ((before & error) == 0 && legal) deliver_local(lvt_error);
}

// -- Sending

// SDM vol. 3, 11.6.1 (figure 11-12).
void Lapic::send_ipi(u32 low, u32 destination) {
  const ApicMessage message{.destination = destination,
                            .vector = static_cast<u8>(low),
                            .mode = lvt_mode(low),
                            .shorthand = static_cast<Shorthand>(low >> 18 & 3),
                            .logical = (low >> 11 & 1) != 0,
                            .level_triggered = (low >> 15 & 1) != 0,
                            .level_assert = (low >> 14 & 1) != 0};
  const bool has_vector_field =
      message.mode == DeliveryMode::Fixed || message.mode == DeliveryMode::LowestPriority;
  if (has_vector_field && message.vector < first_legal_vector) return record_error(error_send_illegal_vector);
  if (message.shorthand == Shorthand::Self) {
    accept(message);
  } else {
    bus_.deliver(message, this);
  }
}

} // namespace ring3::x86
