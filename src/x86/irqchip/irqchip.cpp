// SPDX-License-Identifier: Apache-2.0
#include "x86/irqchip/irqchip.h"

#include "base/bits.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ring3::x86 {
namespace {

constexpr u32 pit_gsi = 0;
constexpr u16 port_b = 0x61;
constexpr u64 ioapic_page_size = 0x1000;
// The ports that claims_port() may say yes to; the others need not wait for the lock.
constexpr bool may_be_ours(u16 port) {
  return (port & 0xff7e) == 0x20 || (port & 0xfffe) == 0x4d0 || (port & 0xfffc) == 0x40 || port == port_b;
}

constexpr u32 widest_mmio = 64; // a vector register; what is larger is not an access of the CPU

} // namespace

IrqChip::IrqChip(const kvm::Clock& clock, kvm::TimerQueue& timers, std::optional<u32> split)
    : clock_(clock), timers_(timers), user_pins_(split), ioapic_(*this),
      pit_timer_(timers.add([this](u64 now_ns) { pit_expired(now_ns); })),
      storm_timer_(timers.add([this](u64) {
        const std::scoped_lock guard(lock_);
        ioapic_.retry();
      })) {
  if (split) routing_.set_routing({});
}

// -- Ports and memory

bool IrqChip::claims_port(u16 port) const {
  switch (port) {
  case 0x20:
  case 0x21:
  case 0xa0:
  case 0xa1:
  case 0x4d0:
  case 0x4d1: return true;
  case port_b: return pit_.has_value() && speaker_port_;
  default: return pit_.has_value() && port >= 0x40 && port <= 0x43;
  }
}

u8 IrqChip::read_port(u16 port) {
  switch (port) {
  case 0x20: return pic_.read_command(0);
  case 0x21: return pic_.read_data(0);
  case 0xa0: return pic_.read_command(1);
  case 0xa1: return pic_.read_data(1);
  case 0x4d0:
  case 0x4d1: return pic_.read_elcr(port & 1);
  case port_b: return pit_->read_port_b(clock_.now_ns());
  default: return pit_->read(port & 3, clock_.now_ns());
  }
}

void IrqChip::write_port(u16 port, u8 value) {
  switch (port) {
  case 0x20: return pic_.write_command(0, value);
  case 0x21: return pic_.write_data(0, value);
  case 0xa0: return pic_.write_command(1, value);
  case 0xa1: return pic_.write_data(1, value);
  case 0x4d0:
  case 0x4d1: return pic_.write_elcr(port & 1, value);
  case port_b: return pit_->write_port_b(value, clock_.now_ns());
  default: break;
  }
  const u64 before = pit_->next_tick_ns();
  pit_->write(port & 3, value, clock_.now_ns());
  if (pit_->next_tick_ns() != before) pit_rescheduled();
}

bool IrqChip::pio_read(u16 port, u8 size, u32& value) {
  if (!may_be_ours(port) || !has_pic()) return false;
  const std::scoped_lock guard(lock_);
  if (!claims_port(port)) return false;
  value = 0;
  for (unsigned i = 0; i < std::min<unsigned>(size, 4); ++i) {
    const auto p = static_cast<u16>(port + i);
    const u32 byte = claims_port(p) ? read_port(p) : 0xff; // an empty bus floats high
    value |= byte << (8 * i);
  }
  settle();
  return true;
}

bool IrqChip::pio_write(u16 port, u8 size, u32 value) {
  if (!may_be_ours(port) || !has_pic()) return false;
  const std::scoped_lock guard(lock_);
  if (!claims_port(port)) return false;
  for (unsigned i = 0; i < std::min<unsigned>(size, 4); ++i) {
    const auto p = static_cast<u16>(port + i);
    if (claims_port(p)) write_port(p, static_cast<u8>(value >> (8 * i)));
  }
  settle();
  return true;
}

bool IrqChip::mmio_read(u64 gpa, void* data, u32 size) {
  const u64 offset = gpa - ioapic_base_.load(std::memory_order_relaxed);
  if (offset >= ioapic_page_size || size > widest_mmio || !has_pic()) return false;
  const std::scoped_lock guard(lock_);
  ioapic_.read(static_cast<u32>(offset), data, size);
  return true;
}

bool IrqChip::mmio_write(u64 gpa, const void* data, u32 size) {
  const u64 offset = gpa - ioapic_base_.load(std::memory_order_relaxed);
  if (offset >= ioapic_page_size || size > widest_mmio || !has_pic()) return false;
  const std::scoped_lock guard(lock_);
  ioapic_.write(static_cast<u32>(offset), data, size);
  watch_eoi_vectors();
  settle();
  return true;
}

// -- Lines and messages

int IrqChip::set_line(u32 gsi, bool level, unsigned source) {
  int result = -1;
  const auto routes = routing_.routes();
  for (const kvm::IrqRoute& route : routes->of(gsi)) {
    int reached = -1;
    switch (route.kind) {
    case kvm::IrqRoute::Kind::Pic: reached = pic_.set_line(route.pin, level, source); break;
    case kvm::IrqRoute::Kind::IoApic: reached = ioapic_.set_pin(route.pin, level, source); break;
    case kvm::IrqRoute::Kind::Msi:
      if (level) reached = apics_.deliver(decode_msi(route.msi), nullptr);
      break;
    }
    if (reached >= 0) result = std::max(result, 0) + reached;
  }
  return result;
}

int IrqChip::set_irq_line(u32 gsi, bool level, unsigned source) {
  const std::scoped_lock guard(lock_);
  const int result = set_line(gsi, level, source);
  settle();
  return result;
}

// SDM vol. 3, 11.11. The level of a level-triggered MSI is taken as "assert", as KVM does.
ApicMessage IrqChip::decode_msi(const kvm_msi& msi) const {
  u32 destination = static_cast<u32>(field(msi.address_lo, 19, 12));
  if (wide_ids()) destination |= msi.address_hi & 0xffff'ff00;
  return ApicMessage{.destination = destination,
                     .vector = static_cast<u8>(msi.data),
                     .mode = static_cast<DeliveryMode>(msi.data >> 8 & 7),
                     .logical = (msi.address_lo >> 2 & 1) != 0,
                     .level_triggered = (msi.data >> 15 & 1) != 0,
                     .redirection_hint = (msi.address_lo >> 3 & 1) != 0};
}

int IrqChip::send_msi(const kvm_msi& msi) {
  if ((msi.flags & ~static_cast<u32>(KVM_MSI_VALID_DEVID)) != 0) return -EINVAL;
  if (wide_ids() && (msi.address_hi & 0xff) != 0) return -EINVAL;
  return apics_.deliver(decode_msi(msi), nullptr);
}

int IrqChip::set_routing(std::span<const kvm_irq_routing_entry> entries) {
  if (wide_ids()) {
    const auto invalid = [](const kvm_irq_routing_entry& e) {
      return e.type == KVM_IRQ_ROUTING_MSI && (e.u.msi.address_hi & 0xff) != 0;
    };
    if (std::any_of(entries.begin(), entries.end(), invalid)) return -EINVAL;
  }
  const auto has_chip = [](const kvm_irq_routing_entry& e) { return e.type == KVM_IRQ_ROUTING_IRQCHIP; };
  if (!has_pic() && std::any_of(entries.begin(), entries.end(), has_chip)) return -EINVAL;
  const std::scoped_lock guard(lock_);
  const int result = routing_.set_routing(entries);
  watch_eoi_vectors();
  return result;
}

void IrqChip::set_x2apic_api(bool wide_ids, bool no_broadcast_quirk) {
  if (wide_ids) wide_ids_.store(true, std::memory_order_relaxed);
  if (no_broadcast_quirk) apics_.set_device_broadcast_quirk(false);
}

int IrqChip::pic_acknowledge() {
  const std::scoped_lock guard(lock_);
  const u8 vector = pic_.acknowledge();
  settle();
  return vector;
}

void IrqChip::broadcast_eoi(u8 vector, bool level_triggered) {
  if (!has_pic()) return;
  const std::scoped_lock guard(lock_);
  // First, or a line that is still up would interrupt again at once.
  let_go_resampled(0, ioapic_.pins_of(vector));
  ioapic_.end_of_interrupt(vector, level_triggered);
  settle();
}

bool IrqChip::wants_edge_eoi(u8 vector) const {
  return (eoi_vectors_[vector / 64u].load(std::memory_order_relaxed) >> (vector & 63) & 1) != 0;
}

// What KVM collects in a vCPU's EOI exit bitmap: the vectors that level-triggered pins of the I/O APIC in
// user space can send to it, or have sent to it before they were changed.
bool IrqChip::reports_eoi(const Lapic& at, u8 vector, bool level_triggered) const {
  if (has_pic() || !wants_edge_eoi(vector)) return false;
  if (level_triggered) return true;
  const auto routes = routing_.routes();
  for (u32 gsi = 0; gsi < std::min(*user_pins_, kvm::max_irq_routes); ++gsi) {
    for (const kvm::IrqRoute& route : routes->of(gsi)) {
      if (route.kind != kvm::IrqRoute::Kind::Msi) continue;
      const ApicMessage message = decode_msi(route.msi);
      if (message.level_triggered && message.vector == vector && apics_.is_target(message, at)) return true;
    }
  }
  return false;
}

// The guest has acknowledged these: resampled irqfds let their line go, and hear of it.
void IrqChip::let_go_resampled(u32 pic_lines, u32 ioapic_pins) {
  if (irqfds_ == nullptr || (pic_lines | ioapic_pins) == 0) return;
  const auto routes = routing_.routes();
  const auto let_go = [&](int gsi) {
    if (gsi < 0 || !irqfds_->watches(static_cast<u32>(gsi))) return;
    set_line(static_cast<u32>(gsi), false, resampler_source);
    irqfds_->acknowledged(static_cast<u32>(gsi));
  };
  for (u32 pin = 0; pin < kvm::ioapic_pins; ++pin) {
    if ((pic_lines >> pin & 1) != 0) let_go(routes->gsi_of_pic(pin));
    if ((ioapic_pins >> pin & 1) != 0) let_go(routes->gsi_of_ioapic(pin));
  }
}

void IrqChip::resampled_changed() {
  const std::scoped_lock guard(lock_);
  watch_eoi_vectors();
}

// What follows from an access: acknowledgements and unmasking reach the PIT, a storm is put off, and the
// vCPUs that listen to the PIC hear of a new request.
void IrqChip::settle() {
  const u16 pic_ended = pic_.take_ended();
  const u16 pic_unmasked = pic_.take_unmasked();
  const u32 ioapic_ended = ioapic_.take_ended();
  const u32 ioapic_unmasked = ioapic_.take_unmasked();
  let_go_resampled(pic_ended, 0);
  if (pit_ && (pic_ended | pic_unmasked | ioapic_ended | ioapic_unmasked) != 0) {
    const auto routes = routing_.routes();
    const auto touches_pit = [&routes](u32 pic_lines, u32 ioapic_lines) {
      for (u32 pin = 0; pin < kvm::ioapic_pins; ++pin) {
        if ((pic_lines >> pin & 1) != 0 && routes->gsi_of_pic(pin) == pit_gsi) return true;
        if ((ioapic_lines >> pin & 1) != 0 && routes->gsi_of_ioapic(pin) == pit_gsi) return true;
      }
      return false;
    };
    // Ticks from the time when the guest did not want any are not owed.
    if (touches_pit(pic_unmasked, ioapic_unmasked)) restart_reinjection();
    if (touches_pit(pic_ended, ioapic_ended)) pit_acknowledged();
  }
  if (ioapic_.take_storm()) timers_.arm(storm_timer_, clock_.now_ns() + IoApic::storm_delay_ns);
  const bool output = pic_.output();
  const bool was = pic_output_.exchange(output, std::memory_order_acq_rel);
  if (output && !was) {
    apics_.for_each([](Lapic& apic) {
      if (apic.accepts_pic()) apic.notify();
    });
  }
}

// -- PIT

int IrqChip::create_pit(const kvm_pit_config& config) {
  if ((config.flags & ~static_cast<u32>(KVM_PIT_SPEAKER_DUMMY)) != 0) return -EINVAL;
  const std::scoped_lock guard(lock_);
  if (pit_) return -EEXIST;
  if (!has_pic()) return -ENOENT;
  pit_.emplace(clock_.now_ns());
  speaker_port_ = (config.flags & KVM_PIT_SPEAKER_DUMMY) != 0;
  watch_eoi_vectors();
  return 0;
}

void IrqChip::watch_eoi_vectors() {
  std::array<u64, 4> vectors{};
  const auto routes = routing_.routes();
  for (u32 gsi = 0; gsi < std::min(user_pins_.value_or(0), kvm::max_irq_routes); ++gsi) {
    for (const kvm::IrqRoute& route : routes->of(gsi)) {
      if (route.kind != kvm::IrqRoute::Kind::Msi) continue;
      const ApicMessage message = decode_msi(route.msi);
      if (message.level_triggered) vectors[message.vector / 64u] |= bit(message.vector & 63);
    }
  }
  for (u32 pin = 0; pin < IoApic::pins; ++pin) {
    const int gsi = routes->gsi_of_ioapic(pin);
    if (gsi < 0) continue;
    const bool pit = gsi == pit_gsi && pit_ && reinject_;
    if (!pit && (irqfds_ == nullptr || !irqfds_->watches(static_cast<u32>(gsi)))) continue;
    const u8 vector = ioapic_.vector(pin);
    vectors[vector / 64u] |= bit(vector & 63);
  }
  for (unsigned i = 0; i < vectors.size(); ++i) eoi_vectors_[i].store(vectors[i], std::memory_order_relaxed);
}

void IrqChip::restart_reinjection() {
  pit_pending_ = 0;
  pit_acked_ = true;
}

void IrqChip::pit_rescheduled() {
  restart_reinjection();
  timers_.arm(pit_timer_, pit_->next_tick_ns());
}

void IrqChip::pit_expired(u64 now_ns) {
  const std::scoped_lock guard(lock_);
  if (!pit_) return;
  const u64 ticks = pit_->take_ticks(now_ns);
  timers_.arm(pit_timer_, pit_->next_tick_ns());
  if (ticks == 0) return;
  if (reinject_) {
    pit_pending_ += ticks;
    if (!std::exchange(pit_acked_, false)) return; // the guest still has the last one
  }
  pit_pulse();
  settle();
}

void IrqChip::pit_acknowledged() {
  pit_acked_ = true;
  if (!reinject_ || pit_pending_ == 0 || --pit_pending_ == 0) return;
  pit_acked_ = false;
  pit_pulse();
}

void IrqChip::pit_pulse() {
  set_line(pit_gsi, true, pit_source);
  set_line(pit_gsi, false, pit_source);
  // Old kernels wire the timer to LINT0 as an NMI, for their watchdog.
  apics_.for_each([](Lapic& apic) {
    if (apic.lint0_is_nmi()) apic.raise_lint(0);
  });
}

int IrqChip::get_pit_state(kvm_pit_state2& out) {
  const std::scoped_lock guard(lock_);
  if (!pit_) return -ENXIO;
  pit_->get_state(out);
  return 0;
}

int IrqChip::set_pit_state(const kvm_pit_state2& in) {
  const std::scoped_lock guard(lock_);
  if (!pit_) return -ENXIO;
  pit_->set_state(in, clock_.now_ns());
  pit_rescheduled();
  return 0;
}

int IrqChip::set_pit_reinject(bool on) {
  const std::scoped_lock guard(lock_);
  if (!pit_) return -ENXIO;
  reinject_ = on;
  restart_reinjection();
  watch_eoi_vectors();
  return 0;
}

// -- State

int IrqChip::get_state(kvm_irqchip& chip) {
  if (!has_pic()) return -ENXIO;
  const std::scoped_lock guard(lock_);
  switch (chip.chip_id) {
  case KVM_IRQCHIP_PIC_MASTER:
  case KVM_IRQCHIP_PIC_SLAVE: pic_.get_state(chip.chip_id - KVM_IRQCHIP_PIC_MASTER, chip.chip.pic); return 0;
  case KVM_IRQCHIP_IOAPIC: ioapic_.get_state(chip.chip.ioapic); return 0;
  default: return -EINVAL;
  }
}

int IrqChip::set_state(const kvm_irqchip& chip) {
  if (!has_pic()) return -ENXIO;
  const std::scoped_lock guard(lock_);
  switch (chip.chip_id) {
  case KVM_IRQCHIP_PIC_MASTER:
  case KVM_IRQCHIP_PIC_SLAVE: pic_.set_state(chip.chip_id - KVM_IRQCHIP_PIC_MASTER, chip.chip.pic); break;
  case KVM_IRQCHIP_IOAPIC:
    ioapic_.set_state(chip.chip.ioapic);
    ioapic_base_.store(ioapic_.base(), std::memory_order_relaxed);
    break;
  default: return -EINVAL;
  }
  watch_eoi_vectors();
  settle();
  return 0;
}

} // namespace ring3::x86
