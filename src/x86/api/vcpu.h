// SPDX-License-Identifier: Apache-2.0
// An x86 vCPU: the CPU, its local APIC and timers, what other threads post to it, and KVM's view of its
// state.
#pragma once

#include "kvm/api.h"
#include "kvm/arch.h"
#include "kvm/state_api.h"
#include "kvm/timer_queue.h"
#include "kvm/vcpu.h"
#include "x86/cpu/cpu.h"
#include "x86/irqchip/lapic.h"

#include <memory>
#include <optional>

namespace ring3::x86 {

class Vm;

class Vcpu final : public kvm::VcpuApi,
                   public kvm::VcpuStateApi,
                   public Platform,
                   public VcpuEvents,
                   public GuestTsc {
 public:
  Vcpu(Vm& vm, u32 id);
  ~Vcpu() override;

  kvm::Vcpu& generic() { return vcpu_; }

  // --- kvm::VcpuApi ---
  int run() override { return vcpu_.run(); }
  kvm_run& run_page() override { return vcpu_.run_page(); }
  void kick() override { vcpu_.post(kvm::request::kick); }
  int get_regs(kvm_regs& out) override;
  int set_regs(const kvm_regs& in) override;
  int get_sregs(kvm_sregs& out) override;
  int set_sregs(const kvm_sregs& in) override;
  int set_cpuid(std::span<const kvm_cpuid_entry2> entries) override;
  int get_mp_state(kvm_mp_state& out) override;
  int set_mp_state(const kvm_mp_state& in) override;
  int get_msrs(std::span<kvm_msr_entry> entries) override;
  int set_msrs(std::span<const kvm_msr_entry> entries) override;
  int interrupt(u32 vector) override;
  int nmi() override;
  u64 instructions() const override { return cpu_.instructions; }

  // --- kvm::VcpuStateApi ---
  int get_fpu(kvm_fpu& out) override;
  int set_fpu(const kvm_fpu& in) override;
  u32 xsave_size() const override;
  int get_xsave(std::span<std::byte> area) override;
  int set_xsave(std::span<const std::byte> area) override;
  int get_xcrs(kvm_xcrs& out) override;
  int set_xcrs(const kvm_xcrs& in) override;
  int get_debugregs(kvm_debugregs& out) override;
  int set_debugregs(const kvm_debugregs& in) override;
  int get_vcpu_events(kvm_vcpu_events& out) override;
  int set_vcpu_events(const kvm_vcpu_events& in) override;
  int get_lapic(kvm_lapic_state& out) override;
  int set_lapic(const kvm_lapic_state& in) override;
  int translate(kvm_translation& t) override;

  // --- Platform: what the CPU reaches ---
  bool port_read(u16 port, u8 size, u32& value) override;
  bool port_write(u16 port, u8 size, u32 value) override;
  bool mmio_read(GuestPhys a, std::span<std::byte> data) override;
  bool mmio_write(GuestPhys a, std::span<const std::byte> data) override;
  bool claims_page(GuestPhys page) const override;
  u64 tsc() const override;
  u8 cr8() const override;
  void set_cr8(u8 value) override;
  bool read_apic_msr(u32 index, u64& value) override;
  bool write_apic_msr(u32 index, u64 value, bool host) override;
  void tsc_changed() override;
  u64 tsc_khz() const override;
  void pause() override;
  void poll() override;
  u64 hypercall(u64 number, const std::array<u64, 4>& arguments) override;
  void code_page_found() override;

  // --- VcpuEvents: what the local APIC and other CPUs post ---
  void event_pending() override { vcpu_.post(kvm::request::event); }
  void post_nmi() override;
  void post_smi() override;
  void post_init() override;
  void post_startup(u8 vector) override;

  // --- GuestTsc ---
  u64 clock_ns_at(u64 tsc) const override;

  Lapic* lapic() { return lapic_.get(); }

 private:
  class Arch;
  void take_requests(u32 requests);
  bool runnable();
  kvm::Entry enter(kvm_run& run);
  void complete_user_exit(kvm_run& run);
  void take_init();
  void take_startup();
  // False: the guest shut down or needs user space while an event was delivered.
  bool deliver_pending();
  bool deliver_vector(u8 vector);
  bool deliver_queued();
  bool interrupt_waiting() const;
  kvm::Entry exit_to_user(kvm_run& run);
  kvm::Entry finish(CpuExit why, kvm_run& run);

  Vm& vm_;
  kvm::Vcpu vcpu_;
  kvm::TimerQueue timers_;
  std::unique_ptr<Lapic> lapic_; // null without the in-kernel irqchip
  Cpu cpu_;
  unsigned pauses_ = 0;
  bool external_open_ = false;       // the last exit waits for its answer
  std::optional<u8> user_interrupt_; // KVM_INTERRUPT

  // An event that KVM_SET_VCPU_EVENTS says is on its way in: delivered before anything else.
  struct QueuedEvent {
    EventType type;
    u8 vector;
    std::optional<u32> error;
  };
  std::optional<QueuedEvent> queued_;

  // Posted by any thread, taken by ours.
  std::atomic<bool> init_posted_{false};
  std::atomic<int> startup_posted_{-1};
  std::atomic<u32> nmis_posted_{0};
};

} // namespace ring3::x86
