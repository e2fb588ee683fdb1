// SPDX-License-Identifier: Apache-2.0
// An x86 VM: memory, vCPUs and the in-kernel interrupt controllers.
#pragma once

#include "kvm/api.h"
#include "kvm/clock.h"
#include "kvm/coalesced_ring.h"
#include "kvm/code_watch.h"
#include "kvm/ioeventfd.h"
#include "kvm/irqfd.h"
#include "kvm/memory_slots.h"
#include "kvm/page_workers.h"
#include "kvm/state_api.h"
#include "kvm/stats.h"
#include "kvm/timer_queue.h"
#include "kvm/uapi_6_12.h"
#include "kvm/vcpu_record.h"
#include "x86/api/engine.h"
#include "x86/api/guest_tsc.h"
#include "x86/api/vm_settings.h"
#include "x86/irqchip/irqchip.h"
#include "x86/pv/kvm_clock.h"

#include <linux/kvm_para.h>
#include <memory>
#include <mutex>
#include <vector>

namespace ring3::x86 {

class Vcpu;

class Vm final : public kvm::VmApi, public kvm::VmStateApi, private kvm::CodeWatch::Listener {
 public:
  // `type`: one of supported_types. KVM_X86_SW_PROTECTED_VM can have private memory.
  explicit Vm(std::unique_ptr<kvm::Clock> clock, u64 type = kvm::vm_type_default,
              Engine engine = default_engine);
  ~Vm() override;

  static constexpr u32 max_vcpus = 1024;
  static constexpr u32 max_vcpu_ids = 4096;
  static constexpr u64 max_tsc_khz = 0x7fffffff;
  static constexpr u32 supported_types =
      1u << kvm::vm_type_default | 1u << kvm::vm_type_sw_protected; // KVM_CAP_VM_TYPES

  int set_user_memory_region(const kvm_userspace_memory_region& region) override;
  void keep_memory_private() override { settings_.memory_is_private.store(true, std::memory_order_relaxed); }
  int create_irqchip() override;
  int create_pit(const kvm_pit_config& config) override;
  int irq_line(u32 gsi, bool level) override;
  int signal_msi(const kvm_msi& msi) override;
  int create_vcpu(u32 id, kvm::VcpuApi*& out) override;
  int get_dirty_log(u32 slot, std::span<u64> bitmap) override;

  int get_irqchip(kvm_irqchip& chip) override;
  int set_irqchip(const kvm_irqchip& chip) override;
  int get_pit(kvm_pit_state2& out) override;
  int set_pit(const kvm_pit_state2& in) override;
  int set_gsi_routing(std::span<const kvm_irq_routing_entry> entries) override;

  // --- events and the log of dirty pages (vm_events.cpp); 0 or KVM's -errno ---
  int coalesced_zone(const kvm_coalesced_mmio_zone& zone, bool add);
  int ioeventfd(const kvm_ioeventfd& args) { return ioeventfds_.control(args); }
  int irqfd(const kvm_irqfd& args); // -EINVAL without the in-kernel irqchip
  // KVM_CLEAR_DIRTY_LOG; the bitmap has a bit for each of the pages.
  int clear_dirty_log(const kvm_clear_dirty_log& args, std::span<const u64> bitmap);
  int set_manual_dirty_protect(u64 flags); // KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2
  int enable_dirty_ring(u32 bytes);        // KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL
  int reset_dirty_rings();                 // the number of entries taken back
  int open_stats();                        // KVM_GET_STATS_FD: a new descriptor
  // Brings the statistics up to date that are not counted as things happen: pages_4k and pages_2m. Any
  // thread.
  void refresh_stats();
  // All counters, "vm":{...},"vcpus":[{...}], with the instructions that each vCPU has retired.
  std::string stats_json();

  kvm::IoEventFds& ioeventfds() { return ioeventfds_; }
  kvm::CoalescedRing& coalesced() { return coalesced_; }

  // --- private memory (vm_memory.cpp); 0 or KVM's -errno ---
  // KVM_SET_USER_MEMORY_REGION2.
  int set_user_memory_region(const kvm::UserspaceMemoryRegion2& region,
                             const kvm::PrivateMemory& memory = {});
  int set_memory_attributes(const kvm::MemoryAttributes& args);
  // KVM_CREATE_GUEST_MEMFD in the empty memory file `fd`, which the caller keeps.
  int create_guest_memfd(const kvm::CreateGuestMemfd& args, int fd, std::shared_ptr<kvm::GuestMemfd>& out);
  // fallocate(2) on its file, or the end of its last descriptor: vCPUs look at the memory anew.
  int fallocate(kvm::GuestMemfd& memory, int fd, int mode, s64 offset, s64 length);
  void close_guest_memfd(kvm::GuestMemfd& memory);

  // KVM_CREATE_VCPU with its shared pages in a file of kvm::RunPages::file_size(dirty_ring_bytes()) bytes,
  // which the caller keeps; -1: memory that only this process sees.
  int create_vcpu(u32 id, int shared_fd, Vcpu*& out);

  const kvm::Clock& clock() const { return *clock_; }
  const kvm::MemorySlots& slots() const { return slots_; }
  kvm::CodeWatch& code_watch() { return code_watch_; }
  Engine engine() const { return engine_; }
  // Its number in this process.
  u32 number() const { return number_; }
  kvm::TimerQueue& timers() { return timers_; }
  kvm::PageWorkers& page_workers() { return page_workers_; }
  // Null if the VMM has all interrupt controllers itself.
  IrqChip* irqchip() { return irqchip_.get(); }
  // PIC and I/O APIC are ours as well as the local APICs.
  bool has_pic() const { return irqchip_ != nullptr && irqchip_->has_pic(); }

  VmSettings& settings() { return settings_; }

  // KVM_GET_CLOCK and KVM_SET_CLOCK (api.rst 4.29, 4.30).
  KvmClock& kvm_clock() { return kvm_clock_; }
  int get_clock(kvm_clock_data& out) const { return kvm_clock_.get(out); }
  int set_clock(const kvm_clock_data& in);
  // Every vCPU shows its guest the clock anew before it runs on.
  void update_clocks();

  // --- what a VMM tunes (vm_control.cpp); 0 or KVM's -errno ---
  int enable_capability(const kvm_enable_cap& cap);
  // KVM_X86_SET_MSR_FILTER: on return every vCPU goes by the new one.
  int set_msr_filter(const kvm_msr_filter& filter, MsrFilter::CopyIn copy);
  int set_tss_addr(u64 address);
  int set_identity_map_addr(u64 address);
  int set_nr_mmu_pages(u64 pages);
  // The frequency that new vCPUs get; 0: the host's. -EINVAL once there is a vCPU.
  int set_tsc_khz(u64 khz);
  u64 tsc_khz() const { return tsc_khz_.load(std::memory_order_relaxed); }
  TscSync& tsc_sync() { return tsc_sync_; }
  int set_boot_cpu_id(u64 id); // KVM_SET_BOOT_CPU_ID: -EBUSY once there is a vCPU
  int reinject_control(const kvm_reinject_control& control);
  // Size of each vCPU's dirty ring (KVM_CAP_DIRTY_LOG_RING); 0: none.
  u64 dirty_ring_bytes() const { return slots_.dirty_log().ring_bytes(); }
  u32 boot_cpu_id() const { return boot_cpu_id_; }
  u64 apic_bus_cycle_ns() const { return apic_bus_cycle_ns_; }
  // Words of the bitmap that get_dirty_log() fills for this slot; 0 for what is not logged.
  std::size_t dirty_words(u32 slot) const { return slots_.dirty_words(slot); }
  // The KVM_X86_QUIRK_* that can be switched off. KVM_X86_QUIRK_SLOT_ZAP_ALL, as a VMM sees it: on, a slot
  // that goes takes all translations with it; off, it only has to be out of reach. Here they all go in both
  // cases.
  static constexpr u64 supported_quirks = KVM_X86_QUIRK_FIX_HYPERCALL_INSN | KVM_X86_QUIRK_OUT_7E_INC_RIP |
                                          KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT |
                                          KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | kvm::quirk_slot_zap_all;
  // What KVM_CAP_X86_DISABLE_EXITS says. MWAIT waits for nothing here, and there are no C-states.
  static constexpr u64 supported_disable_exits = KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_HLT;

  // The hypercalls that can be made user space's (KVM_CAP_EXIT_HYPERCALL).
  static constexpr u64 supported_hypercall_exits = u64{1} << KVM_HC_MAP_GPA_RANGE;

  // Ends the VM: its state has no meaning any more. Every call, KVM_RUN first, is -EIO from now on. Any
  // thread.
  void kill();
  bool dead() const { return dead_.load(std::memory_order_acquire); }

  // Every vCPU forgets what it has made of code.
  void forget_code();
  // Every vCPU but `from` forgets its permission to store to new code without being noticed.
  void protect_code_pages(const Vcpu* from);

 private:
  int limit_vcpu_ids(u64 count);
  int set_apic_bus_cycle(u64 ns); // KVM_CAP_X86_APIC_BUS_CYCLES_NS
  // KVM's promise about its memory calls: when they return, no vCPU uses the old layout. lock_ held.
  void wait_for_new_layout();
  int create_split_irqchip(u64 reserved_pins);
  // After bits of the dirty log were cleared: returns when no vCPU stores without marking any more. lock_
  // held.
  void revoke_writes();
  void count_pages(); // lock_ held
  void drive_line(u32 gsi, bool level, kvm::IrqFds::Source source);

  const Engine engine_;
  const u32 number_ = kvm::next_vm_number();
  std::unique_ptr<kvm::Clock> clock_;
  TscSync tsc_sync_;
  std::atomic<u64> tsc_khz_;
  KvmClock kvm_clock_;
  VmSettings settings_;
  kvm::MemorySlots slots_;
  void code_changed() override;

  kvm::CodeWatch code_watch_;
  kvm::TimerQueue timers_;
  kvm::PageWorkers page_workers_;
  std::unique_ptr<IrqChip> irqchip_;
  u32 boot_cpu_id_ = 0;
  u64 apic_bus_cycle_ns_ = ApicTimer::default_bus_cycle_ns;
  u32 vcpu_id_limit_ = 0;   // KVM_CAP_MAX_VCPU_ID; 0: not set
  mutable std::mutex lock_; // vcpus_ while it grows, and memory-slot changes
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  // Readers on hot paths walk this instead: entries are set once, count grows.
  std::unique_ptr<std::atomic<Vcpu*>[]> vcpu_table_;
  std::atomic<u32> vcpu_count_{0};
  std::atomic<bool> dead_{false};

  kvm::IoEventFds ioeventfds_;
  kvm::CoalescedRing coalesced_;
  kvm::Stats<kvm::VmStats> stats_{kvm::StatsLayout::vm(), kvm::StatsFile::vm_id()}; // under lock_
  // Last, so that its thread ends before what it interrupts.
  kvm::IrqFds irqfds_;
};

} // namespace ring3::x86
