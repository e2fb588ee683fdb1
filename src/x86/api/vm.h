// SPDX-License-Identifier: Apache-2.0
// An x86 VM: memory, vCPUs and the in-kernel interrupt controllers.
#pragma once

#include "kvm/api.h"
#include "kvm/clock.h"
#include "kvm/code_watch.h"
#include "kvm/memory_slots.h"
#include "kvm/state_api.h"
#include "kvm/timer_queue.h"
#include "x86/irqchip/irqchip.h"

#include <memory>
#include <mutex>
#include <vector>

namespace ring3::x86 {

class Vcpu;

class Vm final : public kvm::VmApi, public kvm::VmStateApi {
 public:
  explicit Vm(std::unique_ptr<kvm::Clock> clock);
  ~Vm() override;

  static constexpr u32 max_vcpus = 1024;
  static constexpr u64 tsc_khz = 1'000'000; // the TSC counts nanoseconds of the Clock

  int set_user_memory_region(const kvm_userspace_memory_region& region) override;
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

  const kvm::Clock& clock() const { return *clock_; }
  const kvm::MemorySlots& slots() const { return slots_; }
  kvm::CodeWatch& code_watch() { return code_watch_; }
  kvm::TimerQueue& timers() { return timers_; }
  IrqChip* irqchip() { return irqchip_.get(); }

  // Every vCPU but `from` forgets its permission to store without being noticed.
  void protect_code_pages(const Vcpu* from);

 private:
  std::unique_ptr<kvm::Clock> clock_;
  kvm::MemorySlots slots_;
  kvm::CodeWatch code_watch_;
  kvm::TimerQueue timers_;
  std::unique_ptr<IrqChip> irqchip_;
  mutable std::mutex lock_; // vcpus_ while it grows, and memory-slot changes
  std::vector<std::unique_ptr<Vcpu>> vcpus_;
  // Readers on hot paths walk this instead: entries are set once, count grows.
  std::unique_ptr<std::atomic<Vcpu*>[]> vcpu_table_;
  std::atomic<u32> vcpu_count_{0};
};

} // namespace ring3::x86
