// SPDX-License-Identifier: Apache-2.0
#include "x86/api/vcpu.h"

#include "x86/api/vm.h"
#include "x86/cpu/msr_table.h"
#include "x86/decode/block_cache.h"
#include "x86/pv/hypercalls.h"

#include <algorithm>
#include <cstring>
#include <sched.h>

namespace ring3::x86 {

// The architecture's half of the run loop, kept off the public face of Vcpu.
class Vcpu::Arch final : public kvm::ArchVcpu {
 public:
  explicit Arch(Vcpu& v) : v_(v) {}
  void complete_user_exit(kvm_run& run) override { v_.complete_user_exit(run); }
  void take_requests(u32 requests) override { v_.take_requests(requests); }
  bool runnable() override { return v_.runnable(); }
  kvm::Entry enter(kvm_run& run) override { return v_.enter(run); }
  bool halts_in_kernel() const override { return v_.lapic_ != nullptr; }
  u64 next_deadline() const override {
    return std::min(v_.timers_.next_deadline(), v_.vm_.timers().next_deadline());
  }
  void run_timers() override { v_.poll(); }

 private:
  Vcpu& v_;
};

Vcpu::Vcpu(Vm& vm, u32 id)
    : vm_(vm), vcpu_(id, vm.clock(), vm.slots()),
      cpu_(vm.slots(), vm.code_watch(), *this, vcpu_.exit_word()) {
  vcpu_.attach(std::make_unique<Arch>(*this));
  if (vm.irqchip() != nullptr) {
    lapic_ = std::make_unique<Lapic>(id, id == 0, *vm.irqchip(), vm.clock(), timers_, *this, *this);
    if (id != 0) cpu_.state.activity = Activity::wait_for_init;
  }
}

Vcpu::~Vcpu() = default;

// --- Platform ---

bool Vcpu::port_read(u16 port, u8 size, u32& value) {
  return lapic_ != nullptr && vm_.irqchip()->pio_read(port, size, value);
}
bool Vcpu::port_write(u16 port, u8 size, u32 value) {
  return lapic_ != nullptr && vm_.irqchip()->pio_write(port, size, value);
}

bool Vcpu::mmio_read(GuestPhys a, std::span<std::byte> data) {
  if (lapic_ == nullptr) return false;
  if (lapic_->claims_mmio(a.value)) {
    lapic_->mmio_read(static_cast<u32>(a.page_offset()), data.data(), static_cast<u32>(data.size()));
    return true;
  }
  return vm_.irqchip()->mmio_read(a.value, data.data(), static_cast<u32>(data.size()));
}
bool Vcpu::mmio_write(GuestPhys a, std::span<const std::byte> data) {
  if (lapic_ == nullptr) return false;
  if (lapic_->claims_mmio(a.value)) {
    lapic_->mmio_write(static_cast<u32>(a.page_offset()), data.data(), static_cast<u32>(data.size()));
    return true;
  }
  return vm_.irqchip()->mmio_write(a.value, data.data(), static_cast<u32>(data.size()));
}
bool Vcpu::claims_page(GuestPhys page) const { return lapic_ != nullptr && lapic_->claims_mmio(page.value); }

u64 Vcpu::tsc() const { return vm_.clock().now_ns(); }
u64 Vcpu::tsc_khz() const { return Vm::tsc_khz; }
u64 Vcpu::clock_ns_at(u64 tsc) const {
  // The guest's TSC is the Clock plus an offset, both in nanoseconds; a deadline before time began is due at
  // once.
  const u64 ns = tsc - cpu_.state.tsc_offset;
  return static_cast<s64>(ns) < 0 ? 0 : ns;
}

u8 Vcpu::cr8() const { return lapic_ != nullptr ? lapic_->cr8() : u8{0}; }
void Vcpu::set_cr8(u8 value) {
  if (lapic_ != nullptr) lapic_->set_cr8(value);
}

bool Vcpu::read_apic_msr(u32 index, u64& value) {
  if (lapic_ == nullptr) {
    value = 0;
    return index == msr::apic_base;
  }
  if (index == msr::apic_base) {
    value = lapic_->base_msr();
    return true;
  }
  if (index == msr::tsc_deadline) {
    value = lapic_->tsc_deadline();
    return true;
  }
  return lapic_->read_x2apic_msr(index, value);
}
bool Vcpu::write_apic_msr(u32 index, u64 value, bool host) {
  if (lapic_ == nullptr) return false;
  if (index == msr::apic_base) {
    const u64 old = lapic_->base_msr();
    if (!lapic_->set_base_msr(value, host)) return false;
    // The APIC page may have moved: it shadows memory.
    if (lapic_->base_msr() != old) cpu_.mmu.flush_all();
    cpu_.state.apic_enabled = lapic_->enabled();
    return true;
  }
  if (index == msr::tsc_deadline) {
    lapic_->set_tsc_deadline(value);
    return true;
  }
  return lapic_->write_x2apic_msr(index, value);
}
void Vcpu::tsc_changed() {
  if (lapic_ != nullptr) lapic_->tsc_changed();
}

void Vcpu::pause() {
  // Whoever holds what we wait for may need our core.
  if ((++pauses_ & 63) == 0) sched_yield();
}

void Vcpu::poll() {
  const u64 now = vm_.clock().now_ns();
  if (timers_.next_deadline() <= now) timers_.run_expired(now);
  if (vm_.timers().next_deadline() <= now) vm_.timers().run_expired(now);
}

u64 Vcpu::hypercall(u64 number, const std::array<u64, 4>& arguments) {
  return static_cast<u64>(kvm_hypercall(vm_.irqchip(), number, arguments));
}

void Vcpu::code_page_found() { vm_.protect_code_pages(this); }

// --- posted events ---

void Vcpu::post_nmi() {
  nmis_posted_.fetch_add(1);
  event_pending();
}
void Vcpu::post_smi() {
  // There is no SMM; an SMI is lost, as on a board whose firmware has masked it.
}
void Vcpu::post_init() {
  startup_posted_.store(-1);
  init_posted_.store(true);
  event_pending();
}
void Vcpu::post_startup(u8 vector) {
  startup_posted_.store(vector);
  event_pending();
}

void Vcpu::take_init() {
  cpu_.reset(true);
  if (lapic_ != nullptr) lapic_->reset(true);
  const bool bootstrap = lapic_ == nullptr || (lapic_->base_msr() & bit(8)) != 0;
  cpu_.state.activity = bootstrap ? Activity::running : Activity::wait_for_sipi;
}

void Vcpu::take_startup() {
  const int vector = startup_posted_.exchange(-1);
  if (vector < 0 || cpu_.state.activity != Activity::wait_for_sipi) return;
  Segment& cs = cpu_.state.segment(Seg::cs);
  cs.selector = static_cast<u16>(vector << 8);
  cs.base = static_cast<u64>(vector) << 12;
  cpu_.state.regs[reg_rip] = 0;
  cpu_.state.activity = Activity::running;
  cpu_.mode_changed();
}

// --- the run loop's half ---

void Vcpu::take_requests(u32 requests) {
  if ((requests & kvm::request::slots) != 0) {
    cpu_.mmu.reload_slots();
    cpu_.blocks().flush();
    cpu_.flags_changed();
  }
  if ((requests & kvm::request::protect) != 0) cpu_.mmu.protect_all();
  if (init_posted_.exchange(false)) take_init();
  if (startup_posted_.load() >= 0) take_startup();
}

bool Vcpu::interrupt_waiting() const {
  if (user_interrupt_) return true;
  if (lapic_ == nullptr) return false;
  return lapic_->highest_pending() >= 0 || (vm_.irqchip()->pic_pending() && lapic_->accepts_pic());
}

bool Vcpu::runnable() {
  switch (cpu_.state.activity) {
  case Activity::running: return true;
  case Activity::halted: {
    const bool wakes = nmis_posted_.load() != 0 || (cpu_.can_take_interrupt() && interrupt_waiting());
    if (wakes) cpu_.state.activity = Activity::running;
    // Without our irqchip, user space decides when a halted CPU runs again: by calling KVM_RUN.
    if (lapic_ == nullptr) cpu_.state.activity = Activity::running;
    return wakes || lapic_ == nullptr;
  }
  default: return false;
  }
}

bool Vcpu::deliver_vector(u8 vector) {
  if (cpu_.deliver_interrupt(vector)) return true;
  if (!cpu_.fault_pending) return false;
  const Fault f = cpu_.fault;
  cpu_.fault_pending = false;
  return cpu_.deliver_fault(f);
}

bool Vcpu::deliver_queued() {
  const QueuedEvent e = *queued_;
  queued_.reset();
  if (e.type == EventType::exception) {
    Fault f{.vector = static_cast<Vector>(e.vector), .error_code = e.error.value_or(0)};
    f.cr2 = cpu_.state.cr2;
    return cpu_.deliver_fault(f);
  }
  if (e.type == EventType::nmi) return cpu_.deliver_nmi();
  return deliver_vector(e.vector);
}

bool Vcpu::deliver_pending() {
  cpu_.exit_pending = false;
  if (cpu_.replaying()) {
    // First finish the instruction that user space has just answered.
    if (nmis_posted_.load() != 0 || interrupt_waiting()) vcpu_.post_quietly(kvm::request::event);
    return true;
  }
  cpu_.window_wanted = false;
  if (queued_ && !deliver_queued()) return false;
  if (nmis_posted_.load() != 0) {
    // One NMI is latched while another is being handled, and no more (SDM vol. 3, 6.7.1).
    const bool now = cpu_.can_take_nmi();
    const u32 most = cpu_.state.nmi_blocked ? 1 : 2;
    u32 n = nmis_posted_.load();
    while (!nmis_posted_.compare_exchange_weak(n, std::min(n, most) - (now ? 1 : 0))) {
    }
    if (now && !cpu_.deliver_nmi()) return false;
    if (nmis_posted_.load() != 0) cpu_.window_wanted = true;
  }
  if (!interrupt_waiting()) return true;
  if (!cpu_.can_take_interrupt()) {
    cpu_.window_wanted = true;
    return true;
  }
  if (user_interrupt_) {
    const u8 vector = *user_interrupt_;
    user_interrupt_.reset();
    return deliver_vector(vector);
  }
  if (vm_.irqchip()->pic_pending() && lapic_->accepts_pic()) {
    const int vector = vm_.irqchip()->pic_acknowledge();
    if (vector >= 0) return deliver_vector(static_cast<u8>(vector));
  }
  const int vector = lapic_->highest_pending();
  if (vector < 0) return true;
  lapic_->acknowledge(vector);
  if (!deliver_vector(static_cast<u8>(vector))) return false;
  if (interrupt_waiting()) cpu_.window_wanted = true;
  return true;
}

kvm::Entry Vcpu::enter(kvm_run& run) {
  cpu_.synchronize_code();
  if (!deliver_pending()) return finish(cpu_.exit, run);
  return finish(cpu_.run(), run);
}

kvm::Entry Vcpu::finish(CpuExit why, kvm_run& run) {
  switch (why) {
  case CpuExit::request: return kvm::Entry::again;
  case CpuExit::halt: return kvm::Entry::halted;
  case CpuExit::io:
  case CpuExit::mmio: return exit_to_user(run);
  case CpuExit::shutdown:
    run.exit_reason = KVM_EXIT_SHUTDOWN;
    cpu_.state.activity = Activity::shutdown;
    return kvm::Entry::user;
  default:
    run.exit_reason = KVM_EXIT_INTERNAL_ERROR;
    run.internal.suberror = KVM_INTERNAL_ERROR_EMULATION;
    run.internal.ndata = 1;
    run.internal.data[0] = cpu_.state.rip();
    return kvm::Entry::user;
  }
}

kvm::Entry Vcpu::exit_to_user(kvm_run& run) {
  const ExternalAccess& e = cpu_.external;
  external_open_ = true;
  if (e.io) {
    run.exit_reason = KVM_EXIT_IO;
    run.io.direction = e.write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    run.io.size = e.size;
    run.io.port = static_cast<u16>(e.address);
    run.io.count = 1;
    run.io.data_offset = kvm::Vcpu::io_data_offset;
    std::memcpy(reinterpret_cast<std::byte*>(&run) + kvm::Vcpu::io_data_offset, &e.data, sizeof e.data);
  } else {
    run.exit_reason = KVM_EXIT_MMIO;
    run.mmio.phys_addr = e.address;
    run.mmio.len = e.size;
    run.mmio.is_write = e.write ? 1 : 0;
    std::memcpy(run.mmio.data, &e.data, sizeof run.mmio.data);
  }
  return kvm::Entry::user;
}

void Vcpu::complete_user_exit(kvm_run& run) {
  if (!external_open_) return;
  external_open_ = false;
  u64 data = 0;
  if (cpu_.external.io) {
    std::memcpy(&data, reinterpret_cast<std::byte*>(&run) + kvm::Vcpu::io_data_offset, sizeof data);
  } else {
    std::memcpy(&data, run.mmio.data, sizeof data);
  }
  cpu_.complete_external(data);
}

// --- events from user space ---

int Vcpu::interrupt(u32 vector) {
  if (vector > 255) return -EINVAL;
  if (lapic_ != nullptr) return -ENXIO;
  if (user_interrupt_) return -EEXIST;
  user_interrupt_ = static_cast<u8>(vector);
  event_pending();
  return 0;
}
int Vcpu::nmi() {
  post_nmi();
  return 0;
}

} // namespace ring3::x86
