// SPDX-License-Identifier: Apache-2.0
#include "x86/api/vcpu.h"

#include "x86/api/vm.h"
#include "x86/cpu/msr_table.h"
#include "x86/decode/block_cache.h"
#include "x86/jit/jit.h"

#include <algorithm>
#include <cstring>
#include <sched.h>
#include <utility>

namespace ring3::x86 {

// The architecture's half of the run loop, kept off the public face of Vcpu.
class Vcpu::Arch final : public kvm::ArchVcpu {
 public:
  explicit Arch(Vcpu& v) : v_(v) {}
  void complete_user_exit(kvm_run& run) override { v_.complete_user_exit(run); }
  bool instruction_open() const override { return v_.cpu_.replaying(); }
  void take_requests(u32 requests) override { v_.take_requests(requests); }
  bool runnable() override { return v_.runnable(); }
  kvm::Entry enter(kvm_run& run) override { return v_.enter(run); }
  void leaving() override { v_.leaving(v_.run_page()); }
  bool halts_in_kernel() const override { return v_.halts_here(); }
  u64 next_deadline() const override {
    return std::min(v_.timers_.next_deadline(), v_.vm_.timers().next_deadline());
  }
  void run_timers() override { v_.poll(); }

 private:
  Vcpu& v_;
};

Vcpu::Vcpu(Vm& vm, u32 id, std::unique_ptr<kvm::RunPages> pages)
    : vm_(vm), vcpu_(vm.number(), id, vm.clock(), vm.slots(), std::move(pages)),
      cpu_(vm.slots(), vm.code_watch(), *this, vcpu_.exit_word()),
      pv_(cpu_.mmu, vm.slots(), vm.clock(), vm.kvm_clock(), *this, vcpu_.exit_word()),
      tsc_khz_(vm.tsc_khz()) {
  vcpu_.attach(std::make_unique<Arch>(*this));
  if (vm.engine() != Engine::interpreter) {
    static_assert(sizeof(jit::Statistics) <= kvm::record_format::Record::executor_bytes);
    auto& statistics = jit::Statistics::in(vcpu_.record().executor(jit::Statistics::layout()));
    cpu_.set_executor(std::make_unique<jit::Jit>(cpu_, vm.engine() == Engine::lockstep, &statistics));
  }
  cpu_.mmu.set_dirty_ring(vcpu_.dirty_ring());
  cpu_.state.tsc_offset = tsc_offset_for(0); // in step with the others, and 0 for the first
  if (id == vm.boot_cpu_id()) user_apic_.base |= Lapic::bootstrap_bit;
  if (vm.irqchip() != nullptr) {
    lapic_ =
        std::make_unique<Lapic>(id, id == vm.boot_cpu_id(), *vm.irqchip(), vm.clock(), timers_, *this, *this);
    lapic_->set_bus_cycle(vm.apic_bus_cycle_ns());
    pv_.attach(*lapic_, vm.page_workers(), [this] { event_pending(); });
    lapic_->set_features(lapic_features());
    if (id != vm.boot_cpu_id()) cpu_.state.activity = Activity::wait_for_init;
  }
}

Vcpu::~Vcpu() = default;

// --- Platform ---

bool Vcpu::port_read(u16 port, u8 size, u32& value) {
  return lapic_ != nullptr && vm_.irqchip()->pio_read(port, size, value);
}
bool Vcpu::port_write(u16 port, u8 size, u32 value) {
  if (lapic_ != nullptr && vm_.irqchip()->pio_write(port, size, value)) return true;
  const std::span data(reinterpret_cast<const std::byte*>(&value), size);
  return write_event(kvm::IoSpace::pio, port, data);
}
// Writes that need no exit to user space: it hears of them by an eventfd, or later.
bool Vcpu::write_event(kvm::IoSpace space, u64 address, std::span<const std::byte> data) {
  return vm_.ioeventfds().write(space, address, data) || vm_.coalesced().write(space, address, data);
}

bool Vcpu::mmio_read(GuestPhys a, std::span<std::byte> data) {
  if (lapic_ == nullptr) return false;
  if (lapic_->claims_mmio(a.value)) {
    pv_.settle_eoi();
    lapic_->mmio_read(static_cast<u32>(a.page_offset()), data.data(), static_cast<u32>(data.size()));
    return true;
  }
  return vm_.irqchip()->mmio_read(a.value, data.data(), static_cast<u32>(data.size()));
}
bool Vcpu::mmio_write(GuestPhys a, std::span<const std::byte> data) {
  if (lapic_ != nullptr && lapic_->claims_mmio(a.value)) {
    pv_.settle_eoi();
    lapic_->mmio_write(static_cast<u32>(a.page_offset()), data.data(), static_cast<u32>(data.size()));
    return true;
  }
  if (lapic_ != nullptr && vm_.irqchip()->mmio_write(a.value, data.data(), static_cast<u32>(data.size())))
    return true;
  return write_event(kvm::IoSpace::mmio, a.value, data);
}
bool Vcpu::claims_page(GuestPhys page) const { return lapic_ != nullptr && lapic_->claims_mmio(page.value); }

u64 Vcpu::tsc() const { return scale_ticks(vm_.clock().tsc(), tsc_khz_, vm_.clock().tsc_khz()); }
bool Vcpu::tsc_is_host() const { return vm_.clock().tsc_is_host() && tsc_khz_ == vm_.clock().tsc_khz(); }
u64 Vcpu::tsc_offset_for(u64 value) { return vm_.tsc_sync().offset_for(value, tsc_khz_); }
u64 Vcpu::clock_ns_at(u64 tsc) const {
  // From now: the two clocks need not keep the same pace for ever. What has passed is due at once.
  const u64 ticks = tsc - cpu_.guest_tsc();
  if (static_cast<s64>(ticks) <= 0) return 0;
  const u64 ns = scale_ticks(ticks, 1'000'000, tsc_khz_) + 1;
  const u64 now = vm_.clock().now_ns();
  return ns > ~now ? ~u64{0} : now + ns;
}
u64 Vcpu::tsc_at(u64 host_tsc) const {
  return scale_ticks(host_tsc, tsc_khz_, vm_.clock().tsc_khz()) + cpu_.state.tsc_offset;
}

bool Vcpu::read_apic_msr(u32 index, u64& value) {
  if (index == msr::apic_base) {
    value = apic_base();
    return true;
  }
  if (lapic_ == nullptr) {
    value = 0;
    return index == msr::tsc_deadline;
  }
  if (index == msr::tsc_deadline) {
    value = lapic_->tsc_deadline();
    return true;
  }
  pv_.settle_eoi();
  return lapic_->read_x2apic_msr(index, value);
}
bool Vcpu::write_apic_msr(u32 index, u64 value, bool host) {
  if (index == msr::apic_base) return set_apic_base(value, host);
  if (lapic_ == nullptr) return index == msr::tsc_deadline; // as KVM: there is no timer to arm
  pv_.settle_eoi();
  if (index == msr::tsc_deadline) {
    lapic_->set_tsc_deadline(value);
    return true;
  }
  return lapic_->write_x2apic_msr(index, value);
}
void Vcpu::tsc_changed() {
  pv_.tsc_changed();
  if (lapic_ != nullptr) lapic_->tsc_changed();
}

void Vcpu::pause() {
  if (settings().exits_disabled(KVM_X86_DISABLE_EXITS_PAUSE)) return;
  // Whoever holds what we wait for may need our core.
  sched_yield();
}

void Vcpu::poll() {
  vcpu_.publish(cpu_.instructions);
  const u64 now = vm_.clock().now_ns();
  if (timers_.next_deadline() <= now) timers_.run_expired(now);
  if (vm_.timers().next_deadline() <= now) vm_.timers().run_expired(now);
  pv_.poll(now);
}

std::optional<s64> Vcpu::hypercall(u64 number, const std::array<u64, 4>& arguments, bool long_mode) {
  ++vcpu_.stats().hypercalls;
  return pv_.hypercall({number, arguments, long_mode}, vm_.irqchip(),
                       settings().hypercall_exits.load(std::memory_order_relaxed), vcpu_.id());
}

// KVM's conditions: the event that the guest would get now must not be lost, nor come where it cannot be.
std::optional<u32> Vcpu::put_off_access(GuestPhys page, const std::byte* host) {
  const bool paging = (cpu_.state.cr0 & cr0::pg) != 0;
  if (!paging || cpu_.state.in_smm || queued_ || !cpu_.can_take_interrupt()) return std::nullopt;
  return pv_.put_off_access(cpu_.state.cpl, page, host);
}

const VmSettings& Vcpu::settings() const { return vm_.settings(); }

void Vcpu::code_page_found() { vm_.protect_code_pages(this); }

// --- posted events ---

void Vcpu::post_nmi() {
  nmis_posted_.fetch_add(1);
  event_pending();
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

void Vcpu::post_unhalt() {
  unhalt_posted_.store(true);
  event_pending();
}

void Vcpu::take_init() {
  smi_posted_.store(false); // as KVM
  cpu_.reset(true);
  pv_.reset();
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
  if ((requests & Cpu::exit_window) != 0)
    ++(nmis_posted_.load(std::memory_order_relaxed) != 0 ? vcpu_.stats().nmi_window_exits
                                                         : vcpu_.stats().irq_window_exits);
  // First: it has to be known what could be written until now.
  if ((requests & (kvm::request::code_page | kvm::request::protect)) != 0 && !cpu_.mmu.protect_new_code())
    vm_.forget_code();
  if ((requests & kvm::request::slots) != 0) {
    cpu_.mmu.reload_slots();
    cpu_.forget_code();
    cpu_.flags_changed();
  }
  if ((requests & kvm::request::protect) != 0) cpu_.mmu.protect_all();
  if (pv_.prepare(requests, tsc_khz())) vm_.update_clocks();
  if (cpu_.state.in_smm) {
    startup_posted_.store(-1); // INIT waits for RSM, SIPI is lost
    return;
  }
  if (init_posted_.exchange(false)) take_init();
  if (startup_posted_.load() >= 0) take_startup();
}

bool Vcpu::interrupt_waiting() const {
  if (lapic_ == nullptr) return user_interrupt_.has_value();
  if (lapic_->highest_pending() >= 0) return true;
  return (user_interrupt_ || vm_.irqchip()->pic_pending()) && lapic_->accepts_pic();
}

bool Vcpu::runnable() {
  switch (cpu_.state.activity) {
  case Activity::running: return true;
  case Activity::halted: {
    const bool wakes = nmis_posted_.load() != 0 || smi_waiting() ||
                       (cpu_.can_take_interrupt() && interrupt_waiting()) || unhalt_posted_.load();
    if (wakes) {
      cpu_.state.activity = Activity::running;
      unhalt_posted_.store(false);
    }
    if (halts_here()) return wakes;
    // User space decides when a halted CPU runs again: by calling KVM_RUN.
    cpu_.state.activity = Activity::running;
    return true;
  }
  default: return false;
  }
}

bool Vcpu::deliver_vector(u8 vector) {
  ++vcpu_.stats().irq_injections;
  return deliver_or_fault(EventType::external, vector);
}

bool Vcpu::deliver_or_fault(EventType type, u8 vector) {
  if (cpu_.deliver_event(type, vector, std::nullopt)) return true;
  if (!cpu_.fault_pending) {
    requeue_if_memory_fault(type, vector);
    return false;
  }
  const Fault f = cpu_.fault;
  cpu_.fault_pending = false;
  return cpu_.deliver_fault(f);
}

bool Vcpu::deliver_nmi() {
  ++vcpu_.stats().nmi_injections;
  if (cpu_.deliver_nmi()) return true;
  requeue_if_memory_fault(EventType::nmi, 2);
  return false;
}

bool Vcpu::deliver_queued() {
  const QueuedEvent e = *queued_;
  queued_.reset();
  if (e.pending) begin_exception(e);
  if (e.type == EventType::exception) {
    QueuedEvent again = e;
    again.pending = false;
    if (cpu_.deliver_fault(Fault{.vector = static_cast<Vector>(e.vector),
                                 .error_code = e.error.value_or(0),
                                 .cr2 = cpu_.state.cr2,
                                 .reinjected = true}))
      return true;
    if (cpu_.exit_pending && cpu_.exit == CpuExit::memory_fault) queued_ = again;
    return false;
  }
  if (e.type == EventType::nmi) return deliver_nmi();
  if (e.type == EventType::software_exception) return deliver_or_fault(e.type, e.vector);
  return deliver_vector(e.vector);
}

bool Vcpu::deliver_pending() {
  cpu_.exit_pending = false;
  if (cpu_.replaying()) {
    // First finish the instruction that user space has just answered.
    if (nmis_posted_.load() != 0 || smi_waiting() || interrupt_waiting() ||
        wants_interrupt_window(run_page()))
      vcpu_.post_quietly(kvm::request::event);
    return true;
  }
  cpu_.window_wanted = false;
  if (queued_ && !deliver_queued()) return false;
  if (cpu_.debugger.block_interrupts) return true;
  if (smi_posted_.load()) {
    if (!smi_waiting()) {
      cpu_.window_wanted = true;
    } else if (!deliver_smi()) {
      return false;
    }
  }
  if (nmis_posted_.load() != 0) {
    // One NMI is latched while another is being handled, and no more (SDM vol. 3, 6.7.1).
    const bool now = cpu_.can_take_nmi();
    const u32 most = cpu_.state.nmi_blocked ? 1 : 2;
    u32 n = nmis_posted_.load();
    while (!nmis_posted_.compare_exchange_weak(n, std::min(n, most) - (now ? 1 : 0))) {
    }
    if (now && !deliver_nmi()) return false;
    if (nmis_posted_.load() != 0) cpu_.window_wanted = true;
  }
  if (!interrupt_waiting()) return true;
  if (!cpu_.can_take_interrupt()) {
    cpu_.window_wanted = true;
    return true;
  }
  if (user_interrupt_ && (lapic_ == nullptr || lapic_->accepts_pic())) {
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
  has_run_ = true;
  cpu_.memory_is_private = settings().memory_is_private.load(std::memory_order_relaxed);
  cpu_.synchronize_code();
  if (std::exchange(triple_fault_pending_, false)) {
    run.exit_reason = KVM_EXIT_SHUTDOWN;
    return kvm::Entry::user;
  }
  if (exit_for_eoi(run)) return kvm::Entry::user;
  if (!deliver_pending()) return finish(cpu_.exit, run);
  if (!cpu_.replaying() && wants_interrupt_window(run)) {
    if (ready_for_user_interrupt()) {
      run.exit_reason = KVM_EXIT_IRQ_WINDOW_OPEN;
      return kvm::Entry::user;
    }
    cpu_.window_wanted = true;
  }
  pv_.offer_eoi();
  executing_ = true;
  const CpuExit why = cpu_.run();
  executing_ = false;
  vcpu_.publish(cpu_.instructions);
  return finish(why, run);
}

// Without our local APIC, HLT is user space's business, and for KVM the vCPU goes on running.
kvm::Entry Vcpu::halted() {
  if (!halts_here()) cpu_.state.activity = Activity::running;
  return kvm::Entry::halted;
}

kvm::Entry Vcpu::finish(CpuExit why, kvm_run& run) {
  switch (why) {
  case CpuExit::request: return kvm::Entry::again;
  case CpuExit::halt: return halted();
  case CpuExit::lower_tpr: run.exit_reason = KVM_EXIT_SET_TPR; return kvm::Entry::user;
  case CpuExit::io:
  case CpuExit::mmio:
  case CpuExit::hypercall:
  case CpuExit::msr: return exit_to_user(run);
  case CpuExit::debug: return exit_to_debugger(run);
  case CpuExit::memory_fault:
    fill_memory_fault(run, cpu_.lost_page, kvm::memory_exit_flag_private);
    return kvm::Entry::user;
  case CpuExit::shutdown:
    run.exit_reason = KVM_EXIT_SHUTDOWN;
    cpu_.state.activity = Activity::shutdown;
    return kvm::Entry::user;
  default: return fail_emulation(run);
  }
}

namespace {
constexpr u64 vapic_port = 0x7e;
}

kvm::Entry Vcpu::exit_to_user(kvm_run& run) {
  const ExternalAccess& e = cpu_.external;
  if (e.kind == ExternalAccess::Kind::memory && leaves_emulation_to_user_space()) return fail_emulation(run);
  external_open_ = true;
  switch (e.kind) {
  case ExternalAccess::Kind::port:
    run.exit_reason = KVM_EXIT_IO;
    run.io.direction = e.write ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    run.io.size = e.size;
    run.io.port = static_cast<u16>(e.address);
    run.io.count = e.count;
    run.io.data_offset = kvm::RunPages::pio_offset;
    std::memcpy(vcpu_.pages().pio(), &e.data, sizeof e.data);
    // QEMU looks at what stands behind this instruction to find the option ROM that it is from.
    if (e.write && !e.string && e.address == vapic_port &&
        vm_.settings().has_quirk(KVM_X86_QUIRK_OUT_7E_INC_RIP)) {
      external_open_ = false;
      cpu_.complete_external(0);
      if (!cpu_.finish_instruction() && cpu_.exit == CpuExit::shutdown) return finish(cpu_.exit, run);
    }
    break;
  case ExternalAccess::Kind::hypercall: {
    const bool wide = cpu_.code64();
    const auto argument = [&](Gpr r) { return cpu_.state.regs[r] & low_mask(wide ? 64 : 32); };
    run.exit_reason = KVM_EXIT_HYPERCALL;
    run.hypercall.nr = argument(rax);
    run.hypercall.args[0] = argument(rbx);
    run.hypercall.args[1] = argument(rcx);
    run.hypercall.args[2] = argument(rdx);
    run.hypercall.longmode = wide ? 1 : 0; // KVM_EXIT_HYPERCALL_LONG_MODE
    break;
  }
  case ExternalAccess::Kind::msr:
    run.exit_reason = e.write ? KVM_EXIT_X86_WRMSR : KVM_EXIT_X86_RDMSR;
    run.msr = {};
    run.msr.reason = e.reason;
    run.msr.index = static_cast<u32>(e.address);
    run.msr.data = e.data;
    break;
  case ExternalAccess::Kind::memory:
    run.exit_reason = KVM_EXIT_MMIO;
    run.mmio.phys_addr = e.address;
    run.mmio.len = e.size;
    run.mmio.is_write = e.write ? 1 : 0;
    std::memcpy(run.mmio.data, &e.data, sizeof run.mmio.data);
    break;
  }
  return kvm::Entry::user;
}

void Vcpu::complete_user_exit(kvm_run& run) {
  if (!external_open_) return;
  external_open_ = false;
  u64 data = 0;
  bool refused = false;
  switch (cpu_.external.kind) {
  case ExternalAccess::Kind::port: {
    const std::byte* const pio = vcpu_.pages().pio();
    if (cpu_.external.count > 1)
      return cpu_.complete_external({pio, std::size_t{cpu_.external.size} * cpu_.external.count});
    std::memcpy(&data, pio, sizeof data);
    break;
  }
  case ExternalAccess::Kind::hypercall: data = run.hypercall.ret; break;
  case ExternalAccess::Kind::msr:
    data = run.msr.data;
    refused = run.msr.error != 0;
    break;
  case ExternalAccess::Kind::memory: std::memcpy(&data, run.mmio.data, sizeof data); break;
  }
  cpu_.complete_external(data, refused);
}

bool Vcpu::is_guest_memory(const void* host) const {
  GuestPhys ignored;
  return cpu_.mmu.uses_host(host, ignored);
}

void Vcpu::guest_memory_lost(const void* host) {
  // Otherwise it was an event on its way in, or an ioctl: no instruction to go back to.
  cpu_.abandon_in_the_middle(std::exchange(executing_, false));
  if (running_) report_lost_memory(host);
  end_run(run_page());
  vcpu_.out_of_guest();
}

// --- events from user space ---

int Vcpu::nmi() {
  post_nmi();
  return 0;
}

} // namespace ring3::x86
