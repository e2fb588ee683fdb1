// SPDX-License-Identifier: Apache-2.0
// What a VMM asks of KVM, as C++ calls with KVM's own structures (Documentation/virt/kvm/api.rst). The ioctl
// codec of the shim and the built-in VMM are both written against this header and against nothing else of the
// hypervisor.
//
// Every int result is 0 (or a count where said) on success and -errno on failure, with KVM's errno for the
// same mistake. Threads: VmApi calls may come from any thread. VcpuApi calls come from the thread that runs
// the vCPU, except kick().
#pragma once

#include "base/types.h"

#include <linux/kvm.h>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace ring3::kvm {

class VcpuApi {
 public:
  virtual ~VcpuApi() = default;

  // KVM_RUN (api.rst 4.10): runs until an exit is for user space. 0: see run_page().exit_reason. -EINTR:
  // kicked or run_page().immediate_exit. Completes the PIO or MMIO that the last exit left open.
  virtual int run() = 0;
  virtual kvm_run& run_page() = 0;
  // The data of a KVM_EXIT_IO lies at (char*)&run_page() + io.data_offset, as in KVM.

  // Makes a run() in progress, or else the next one, return -EINTR soon. Any thread; async-signal-safe.
  virtual void kick() = 0;

  virtual int get_regs(kvm_regs& out) = 0;
  virtual int set_regs(const kvm_regs& in) = 0;
  virtual int get_sregs(kvm_sregs& out) = 0;
  virtual int set_sregs(const kvm_sregs& in) = 0;
  virtual int set_cpuid(std::span<const kvm_cpuid_entry2> entries) = 0;
  virtual int get_mp_state(kvm_mp_state& out) = 0;
  virtual int set_mp_state(const kvm_mp_state& in) = 0;
  // Both return the number of entries done; the first bad one ends the call (api.rst 4.18, 4.19).
  virtual int get_msrs(std::span<kvm_msr_entry> entries) = 0;
  virtual int set_msrs(std::span<const kvm_msr_entry> entries) = 0;
  // KVM_INTERRUPT and KVM_NMI.
  virtual int interrupt(u32 vector) = 0;
  virtual int nmi() = 0;

  // Instructions this vCPU has retired since it was made.
  virtual u64 instructions() const = 0;
  // What executes them has to say about itself, in lines. Any thread.
  virtual std::vector<std::string> executor_stats() const = 0;
};

class VmApi {
 public:
  virtual ~VmApi() = default;

  virtual int set_user_memory_region(const kvm_userspace_memory_region& region) = 0;
  // The VMM writes the guest's memory only before a vCPU has run. Else, code that vCPUs have executed is
  // compared with memory again and again. Before the first vCPU is made.
  virtual void keep_memory_private() = 0;
  // KVM_CREATE_IRQCHIP: PIC pair, I/O APIC and one local APIC a vCPU, before any vCPU exists.
  virtual int create_irqchip() = 0;
  virtual int create_pit(const kvm_pit_config& config) = 0;
  // KVM_IRQ_LINE for a GSI of the default routing (0-15: PIC and I/O APIC; 16-23: I/O APIC).
  virtual int irq_line(u32 gsi, bool level) = 0;
  virtual int signal_msi(const kvm_msi& msi) = 0;
  // KVM_CREATE_VCPU. The VM keeps ownership; the pointer lives as long as the VM. vCPU 0 starts runnable at
  // the reset vector, the others wait for INIT and SIPI.
  virtual int create_vcpu(u32 id, VcpuApi*& out) = 0;
  virtual int get_dirty_log(u32 slot, std::span<u64> bitmap) = 0;
};

} // namespace ring3::kvm
