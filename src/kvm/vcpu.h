// SPDX-License-Identifier: Apache-2.0
// One virtual CPU as every architecture has it: the shared kvm_run page, requests from other threads, the run
// loop, and where its time went.
#pragma once

#include "base/types.h"
#include "kvm/arch.h"
#include "kvm/clock.h"
#include "kvm/memory_slots.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>

namespace ring3::kvm {

// Bits of the exit word: the one thing that guest execution polls. Bits 0-7 belong to the architecture.
namespace request {
constexpr u32 event = 1u << 8;    // an interrupt, NMI, INIT or SIPI may be pending
constexpr u32 slots = 1u << 9;    // the memory slots changed
constexpr u32 protect = 1u << 10; // some page became code: forget write permissions
constexpr u32 kick = 1u << 31;    // return to user space with -EINTR
} // namespace request

struct VcpuStats {
  u64 exits = 0, io_exits = 0, mmio_exits = 0, halt_exits = 0, signal_exits = 0, request_exits = 0;
  u64 guest_ns = 0; // time spent executing the guest
  u64 halt_ns = 0;  // time spent waiting for events
};

class Vcpu {
 public:
  Vcpu(u32 id, const Clock& clock, const MemorySlots& slots);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  void attach(std::unique_ptr<ArchVcpu> arch) { arch_ = std::move(arch); }

  u32 id() const { return id_; }
  kvm_run& run_page() { return *run_; }
  // Where KVM_EXIT_IO data lies in the run page.
  static constexpr u64 io_data_offset = 4096;
  std::atomic<u32>& exit_word() { return exit_word_; }

  // KVM_RUN. On the vCPU's thread.
  int run();

  // Sets request bits and wakes the vCPU if it sleeps. Any thread; async-signal-safe.
  void post(u32 requests);

  // The same without waking it: it will see the bits when it runs again.
  void post_quietly(u32 requests) { exit_word_.fetch_or(requests, std::memory_order_seq_cst); }

  // Waits until this vCPU no longer uses a memory-slot table older than `generation`. Any thread but its own.
  void wait_for_slots(u64 generation);

  const VcpuStats& stats() const { return stats_; }

 private:
  int leave(int result);
  // Sleeps until a request is posted or the next deadline is due.
  void sleep();

  const u32 id_;
  const Clock& clock_;
  const MemorySlots& slots_;
  std::unique_ptr<ArchVcpu> arch_;
  std::unique_ptr<std::byte[]> pages_; // kvm_run, then the PIO data page
  kvm_run* run_;
  std::atomic<u32> exit_word_{0};
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> in_guest_{false};
  std::atomic<u64> slots_seen_{0};
  VcpuStats stats_;
};

} // namespace ring3::kvm
