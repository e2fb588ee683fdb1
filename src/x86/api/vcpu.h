// SPDX-License-Identifier: Apache-2.0
// An x86 vCPU: the CPU, its local APIC and timers, what other threads post to it, and KVM's view of its
// state.
#pragma once

#include "kvm/api.h"
#include "kvm/arch.h"
#include "kvm/io_space.h"
#include "kvm/state_api.h"
#include "kvm/timer_queue.h"
#include "kvm/vcpu.h"
#include "x86/api/vm_settings.h"
#include "x86/cpu/cpu.h"
#include "x86/irqchip/lapic.h"
#include "x86/pv/paravirt.h"

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
  Vcpu(Vm& vm, u32 id, std::unique_ptr<kvm::RunPages> pages);
  ~Vcpu() override;

  kvm::Vcpu& generic() { return vcpu_; }

  // --- kvm::VcpuApi ---
  int run() override; // run_sync.cpp
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
  std::vector<std::string> executor_stats() const override {
    return cpu_.executor() != nullptr ? cpu_.executor()->stats_lines() : std::vector<std::string>{};
  }
  // A member of a JSON object behind a comma, or nothing.
  std::string executor_stats_json() const {
    return cpu_.executor() != nullptr ? ',' + cpu_.executor()->stats_json() : std::string{};
  }

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
  bool tsc_is_host() const override;
  u8 cr8() const override;
  void set_cr8(u8 value) override;
  bool read_apic_msr(u32 index, u64& value) override;
  bool write_apic_msr(u32 index, u64 value, bool host) override;
  void tsc_changed() override;
  u64 tsc_khz() const override { return tsc_khz_; }
  u64 tsc_offset_for(u64 value) override;
  void pause() override;
  void poll() override;
  bool has_pv_msr(u32 index) const override { return pv_.has_msr(index); }
  bool read_pv_msr(u32 index, u64& value) override { return pv_.read_msr(index, value); }
  bool write_pv_msr(u32 index, u64 value) override { return pv_.write_msr(index, value); }
  std::optional<s64> hypercall(u64 number, const std::array<u64, 4>& arguments, bool long_mode) override;
  std::optional<u32> put_off_access(GuestPhys page, const std::byte* host) override;
  const VmSettings& settings() const override;
  void code_page_found() override;

  // --- VcpuEvents: what the local APIC and other CPUs post ---
  void event_pending() override { vcpu_.post(kvm::request::event); }
  void post_nmi() override;
  void post_smi() override;
  void post_init() override;
  void post_startup(u8 vector) override;
  void post_unhalt() override;
  void report_eoi(u8 vector) override;

  // --- GuestTsc ---
  u64 clock_ns_at(u64 tsc) const override;
  u64 tsc_at(u64 host_tsc) const override;

  // KVM_KVMCLOCK_CTRL (api.rst 4.70): 0, or -EINVAL if the guest has no kvmclock.
  int kvmclock_ctrl() { return pv_.notify_paused(); }
  // KVM_CAP_ENFORCE_PV_FEATURE_CPUID.
  void enforce_pv_cpuid(bool on) { pv_.features().enforce(on); }

  Lapic* lapic() { return lapic_.get(); }

  // --- what a VMM tunes and asks (vcpu_control.cpp); 0 or KVM's -errno ---
  std::vector<kvm_cpuid_entry2> cpuid_entries() const { return cpu_.cpuid.current(cpu_.state); }
  int get_sregs2(kvm_sregs2& out);
  int set_sregs2(const kvm_sregs2& in);
  // KVM_SET_TSC_KHZ: the counter jumps to what it would be at this rate; 0: the host's rate.
  int set_tsc_khz(u64 khz);
  // The offset between the Clock's TSC, at this vCPU's rate, and the guest's (KVM_VCPU_TSC_OFFSET, modulo
  // 2^64; devices/vcpu.rst, 4.1).
  u64 tsc_offset() const { return cpu_.state.tsc_offset; }
  void set_tsc_offset(u64 offset);
  int tpr_access_reporting(kvm_tpr_access_ctl& control);
  int set_vapic_addr(u64 address);
  // KVM_PRE_FAULT_MEMORY (vcpu_memory.cpp): `range` is what is left of it. 0 if any page was done.
  int pre_fault_memory(kvm::PreFaultMemory& range);
  int enable_capability(const kvm_enable_cap& cap);
  // KVM_X86_SETUP_MCE and KVM_X86_SET_MCE (machine_check.cpp).
  int setup_mce(u64 cap);
  int set_mce(const kvm_x86_mce& in);
  // KVM_SET_GUEST_DEBUG (guest_debug.cpp): -EBUSY if an exception is to be injected and another one is
  // already.
  int set_guest_debug(const kvm_guest_debug& in);

  // KVM_SMI (vcpu_smm.cpp): one is latched while the vCPU is in SMM.
  int smi();

  // Is this an address of memory that the VMM gave to a slot? Async-signal-safe on a thread that runs a vCPU.
  bool is_guest_memory(const void* host) const;
  // The host's registers where the thread is about to be taken out: the guest's may be in them.
  // Async-signal-safe.
  void recover_registers(const HostRegisters& host) {
    if (cpu_.executor() != nullptr) cpu_.executor()->recover(host);
  }
  // The thread was taken out of the middle of an instruction because such memory is not there any more.
  // KVM_RUN, if it was that, is over and says where in kvm_run (KVM_CAP_MEMORY_FAULT_INFO).
  void guest_memory_lost(const void* host);
  // Takes a kick() back that run() has not answered yet. The vCPU's thread.
  void forget_kick() { vcpu_.exit_word().fetch_and(~kvm::request::kick); }

 private:
  class Arch;
  // An event that KVM_SET_VCPU_EVENTS says is on its way in: delivered before anything else.
  struct QueuedEvent {
    EventType type;
    u8 vector;
    std::optional<u32> error;
    // An exception of which nothing has happened yet; its payload then is what CR2 or DR6 becomes.
    bool pending = false;
    std::optional<u64> payload{};
    bool is_exception() const {
      return type == EventType::exception || type == EventType::software_exception;
    }
  };
  bool write_event(kvm::IoSpace space, u64 address, std::span<const std::byte> data);
  void take_requests(u32 requests);
  bool runnable();
  kvm::Entry enter(kvm_run& run);
  void complete_user_exit(kvm_run& run);
  // User space goes on elsewhere than with the instruction whose access it was asked for.
  void abandon_instruction() {
    external_open_ = false;
    cpu_.forget_replay();
  }
  void leaving(kvm_run& run);
  bool smi_waiting() const;
  // Is a HLT waited out in KVM_RUN? Else it is an exit.
  bool halts_here() const {
    return lapic_ != nullptr || settings().exits_disabled(KVM_X86_DISABLE_EXITS_HLT);
  }
  bool deliver_smi();
  void get_smm_events(kvm_vcpu_events& out) const;
  void set_smm_events(const kvm_vcpu_events& in);
  void take_init();
  void take_startup();
  // False: the guest shut down or needs user space while an event was delivered.
  bool deliver_pending();
  bool deliver_vector(u8 vector);
  bool deliver_or_fault(EventType type, u8 vector);
  bool deliver_nmi();
  bool deliver_queued();
  void requeue_if_memory_fault(EventType type, u8 vector);
  void begin_exception(const QueuedEvent& e);
  bool interrupt_waiting() const;
  template <class Sregs> void get_common_sregs(Sregs& out);
  template <class Sregs> int set_common_sregs(const Sregs& in);
  bool pae_paging() const;
  kvm::Entry exit_to_user(kvm_run& run);
  // KVM_EXIT_INTERNAL_ERROR for the instruction at RIP (emulation_failure.cpp).
  kvm::Entry fail_emulation(kvm_run& run);
  bool leaves_emulation_to_user_space();
  std::size_t instruction_bytes(std::span<u8> out);
  void report_lost_memory(const void* host);
  static void fill_memory_fault(kvm_run& run, GuestPhys page, u64 flags);
  // run_sync.cpp
  int begin_run(kvm_run& run);
  void end_run(kvm_run& run);
  int take_synced_registers(kvm_run& run);
  void show_synced_registers(kvm_run& run);
  bool accepts_user_interrupt() const;
  bool ready_for_user_interrupt() const;
  bool wants_interrupt_window(const kvm_run& run) const;
  bool exit_for_eoi(kvm_run& run);
  u64 apic_base() const;
  bool set_apic_base(u64 value, bool host);
  LapicFeatures lapic_features() const;
  void machine_check_changed();
  kvm::Entry exit_to_debugger(kvm_run& run);
  kvm::Entry halted();
  kvm::Entry finish(CpuExit why, kvm_run& run);
  u64 linear_rip() const;

  Vm& vm_;
  kvm::Vcpu vcpu_;
  kvm::TimerQueue timers_;
  std::unique_ptr<Lapic> lapic_; // null without the in-kernel irqchip
  struct {
    u64 base = Lapic::default_base | Lapic::enable_bit;
    u8 cr8 = 0;
  } user_apic_; // what there is to know here of a local APIC in user space
  Cpu cpu_;
  Paravirt pv_;
  u64 tsc_khz_;
  bool has_run_ = false;
  bool executing_ = false;
  bool external_open_ = false;       // the last exit waits for its answer
  bool running_ = false;             // between begin_run() and end_run()
  std::optional<u8> user_interrupt_; // KVM_INTERRUPT
  std::array<u64, 4> user_eois_{};   // vectors whose end user space has to hear of

  std::optional<QueuedEvent> queued_;
  bool triple_fault_pending_ = false; // said by KVM_SET_VCPU_EVENTS: KVM_RUN is a shutdown
  std::optional<u64> int3_stop_;      // linear address of the INT3 at which a debugger stopped us

  // Posted by any thread, taken by ours.
  std::atomic<bool> init_posted_{false};
  std::atomic<int> startup_posted_{-1};
  std::atomic<bool> unhalt_posted_{false};
  std::atomic<u32> nmis_posted_{0};
  std::atomic<bool> smi_posted_{false};
};

} // namespace ring3::x86
