// SPDX-License-Identifier: Apache-2.0
#include "x86/api/vm.h"

#include "base/host_pages.h"
#include "kvm/residency.h"
#include "x86/api/system.h"
#include "x86/api/vcpu.h"

#include <cerrno>

namespace ring3::x86 {

std::unique_ptr<kvm::VmApi> create_vm(Engine engine) {
  return std::make_unique<Vm>(std::make_unique<kvm::HostClock>(), kvm::vm_type_default, engine);
}

Vm::Vm(std::unique_ptr<kvm::Clock> clock, u64 type, Engine engine)
    : engine_(engine), clock_(std::move(clock)), tsc_sync_(*clock_), tsc_khz_(clock_->tsc_khz()),
      kvm_clock_(*clock_), slots_(type == kvm::vm_type_sw_protected),
      vcpu_table_(std::make_unique<std::atomic<Vcpu*>[]>(max_vcpus)),
      irqfds_([this](u32 gsi, bool level, kvm::IrqFds::Source source) { drive_line(gsi, level, source); },
              [this] { irqchip_->resampled_changed(); }) {
  kvm::Residency::of_process().prepare();
  static_cast<void>(HostPages::told()); // while nothing keeps the process from asking
  code_watch_.set_listener(this);
}

Vm::~Vm() = default;

int Vm::create_irqchip() {
  const std::scoped_lock guard(lock_);
  if (irqchip_) return -EEXIST;
  if (!vcpus_.empty()) return -EINVAL;
  auto chip = std::make_unique<IrqChip>(*clock_, timers_);
  chip->set_irqfds(irqfds_);
  irqchip_ = std::move(chip); // complete: other calls look at it without the lock
  return 0;
}

int Vm::create_split_irqchip(u64 reserved_pins) {
  const std::scoped_lock guard(lock_);
  if (reserved_pins > kvm::max_irq_routes) return -EINVAL;
  if (irqchip_ || !vcpus_.empty()) return -EEXIST; // KVM's word for both
  auto chip = std::make_unique<IrqChip>(*clock_, timers_, static_cast<u32>(reserved_pins));
  chip->set_irqfds(irqfds_);
  irqchip_ = std::move(chip);
  return 0;
}

int Vm::create_pit(const kvm_pit_config& config) {
  const std::scoped_lock guard(lock_);
  if (!irqchip_) return -ENOENT;
  return irqchip_->create_pit(config);
}

int Vm::irq_line(u32 gsi, bool level) {
  if (!irqchip_) return -ENXIO;
  return irqchip_->set_irq_line(gsi, level);
}

int Vm::signal_msi(const kvm_msi& msi) {
  if (!irqchip_) return -EINVAL;
  return irqchip_->send_msi(msi);
}

int Vm::create_vcpu(u32 id, kvm::VcpuApi*& out) {
  Vcpu* made = nullptr;
  const int result = create_vcpu(id, -1, made);
  if (result == 0) out = made;
  return result;
}

int Vm::create_vcpu(u32 id, int shared_fd, Vcpu*& out) {
  if (id >= max_vcpu_ids) return -EINVAL;
  const std::scoped_lock guard(lock_);
  for (const auto& v : vcpus_) {
    if (v->generic().id() == id) return -EEXIST;
  }
  if (vcpus_.size() >= max_vcpus || (vcpu_id_limit_ != 0 && id >= vcpu_id_limit_)) return -EINVAL;
  auto pages = std::make_unique<kvm::RunPages>(shared_fd, dirty_ring_bytes());
  if (!pages->valid()) return -ENOMEM;
  auto vcpu = std::make_unique<Vcpu>(*this, id, std::move(pages));
  if (irqchip_) {
    if (const int result = irqchip_->attach(*vcpu->lapic()); result != 0) return result;
  }
  coalesced_.attach(vcpu->generic().pages().coalesced());
  out = vcpu.get();
  const u32 n = vcpu_count_.load(std::memory_order_relaxed);
  vcpu_table_[n].store(vcpu.get(), std::memory_order_release);
  vcpus_.push_back(std::move(vcpu));
  vcpu_count_.store(n + 1, std::memory_order_release);
  return 0;
}

int Vm::get_dirty_log(u32 slot, std::span<u64> bitmap) {
  const std::scoped_lock guard(lock_);
  bool cleared = false;
  const int result = slots_.get_dirty_log(slot, bitmap, cleared);
  if (cleared) revoke_writes();
  return result;
}

int Vm::get_irqchip(kvm_irqchip& chip) { return irqchip_ ? irqchip_->get_state(chip) : -ENXIO; }
int Vm::set_irqchip(const kvm_irqchip& chip) { return irqchip_ ? irqchip_->set_state(chip) : -ENXIO; }
int Vm::get_pit(kvm_pit_state2& out) { return irqchip_ ? irqchip_->get_pit_state(out) : -ENXIO; }
int Vm::set_pit(const kvm_pit_state2& in) { return irqchip_ ? irqchip_->set_pit_state(in) : -ENXIO; }
int Vm::set_gsi_routing(std::span<const kvm_irq_routing_entry> entries) {
  return irqchip_ ? irqchip_->set_routing(entries) : -EINVAL;
}

int Vm::set_clock(const kvm_clock_data& in) {
  const int result = kvm_clock_.set(in);
  if (result == 0) update_clocks();
  return result;
}

void Vm::update_clocks() {
  const u32 n = vcpu_count_.load(std::memory_order_acquire);
  for (u32 i = 0; i < n; ++i) {
    // Halted ones too: a guest may read another vCPU's structure.
    vcpu_table_[i].load(std::memory_order_acquire)->generic().post(pv_request::clock);
  }
}

void Vm::kill() {
  dead_.store(true, std::memory_order_release);
  const u32 n = vcpu_count_.load(std::memory_order_acquire);
  for (u32 i = 0; i < n; ++i) vcpu_table_[i].load(std::memory_order_acquire)->kick();
}

// Translated blocks that are linked to one another look at their exit words only.
void Vm::code_changed() {
  const u32 n = vcpu_count_.load(std::memory_order_acquire);
  for (u32 i = 0; i < n; ++i)
    vcpu_table_[i].load(std::memory_order_acquire)->generic().post_quietly(kvm::request::code);
}

// Taking the slots again, vCPUs forget all that they have made of code.
void Vm::forget_code() {
  const u32 n = vcpu_count_.load(std::memory_order_acquire);
  for (u32 i = 0; i < n; ++i)
    vcpu_table_[i].load(std::memory_order_acquire)->generic().post_quietly(kvm::request::slots);
}

void Vm::protect_code_pages(const Vcpu* from) {
  const u32 n = vcpu_count_.load(std::memory_order_acquire);
  for (u32 i = 0; i < n; ++i) {
    Vcpu* v = vcpu_table_[i].load(std::memory_order_acquire);
    if (v != from) v->generic().post_quietly(kvm::request::code_page);
  }
}

} // namespace ring3::x86
