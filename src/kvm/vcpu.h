// SPDX-License-Identifier: Apache-2.0
// One virtual CPU as every architecture has it: the shared kvm_run page, requests from other threads, the run
// loop, and where its time went.
#pragma once

#include "base/types.h"
#include "kvm/arch.h"
#include "kvm/clock.h"
#include "kvm/dirty_ring.h"
#include "kvm/memory_slots.h"
#include "kvm/run_pages.h"
#include "kvm/stats.h"
#include "kvm/vcpu_record.h"

#include <atomic>
#include <linux/kvm.h>
#include <memory>
#include <optional>

namespace ring3::kvm {

// Bits of the exit word: the one thing that guest execution polls. Bits 0-7 belong to the architecture.
namespace request {
constexpr u32 event = 1u << 8;       // an interrupt, NMI, INIT or SIPI may be pending
constexpr u32 slots = 1u << 9;       // the memory slots changed
constexpr u32 protect = 1u << 10;    // forget write permissions
constexpr u32 dirty_ring = 1u << 11; // the dirty ring is nearly full: out to user space
constexpr u32 code = 1u << 12;       // somebody wrote to code: what was derived from it may be stale
constexpr u32 code_page = 1u << 13;  // some page became code: no longer write it unnoticed
constexpr u32 kick = 1u << 31;       // return to user space with -EINTR
} // namespace request

class Vcpu {
 public:
  // `vm`: next_vm_number(). `pages` is valid() and shared with the VMM as it likes.
  Vcpu(u32 vm, u32 id, const Clock& clock, const MemorySlots& slots, std::unique_ptr<RunPages> pages);
  ~Vcpu();
  Vcpu(const Vcpu&) = delete;
  Vcpu& operator=(const Vcpu&) = delete;

  void attach(std::unique_ptr<ArchVcpu> arch) { arch_ = std::move(arch); }

  u32 id() const { return id_; }
  const RunPages& pages() const { return *pages_; }
  kvm_run& run_page() { return *run_; }
  std::atomic<u32>& exit_word() { return exit_word_; }

  // KVM_RUN. On the vCPU's thread.
  int run();

  // Sets request bits and wakes the vCPU if it sleeps. Any thread; async-signal-safe.
  void post(u32 requests);

  // The same without waking it: it will see the bits when it runs again.
  void post_quietly(u32 requests) { exit_word_.fetch_or(requests, std::memory_order_seq_cst); }

  // Waits until this vCPU no longer uses a memory-slot table older than `generation`. Any thread but its own.
  void wait_for_slots(u64 generation);

  // From now on this vCPU touches no guest memory: run() ends, or was left by a jump, or sleeps.
  void out_of_guest() {
    in_guest_.store(false, std::memory_order_seq_cst);
    answer();
  }

  // Waits until this vCPU has forgotten the permissions to store that DirtyLog::revoke_writes() made void.
  // Any thread but its own.
  void wait_for_revoked_writes(u64 valid_from);

  // Null without dirty rings.
  DirtyRing* dirty_ring() { return dirty_ring_ ? &*dirty_ring_ : nullptr; }

  // Written by this vCPU's thread.
  VcpuStats& stats() { return *stats_.load(std::memory_order_relaxed); }
  // KVM_GET_STATS_FD: a new descriptor or -errno. Not while run() is under way.
  int open_stats();
  // What other processes see of this vCPU.
  VcpuRecord& record() { return record_; }
  // They see this now. `instructions`: that were retired. This vCPU's thread.
  void publish(u64 instructions) {
    record_.instructions().set(instructions);
    if (stats_file_) [[unlikely]]
      copy_stats();
  }

 private:
  int leave(int result);
  // Wakes those who wait for this vCPU to have seen something, or to be out of the guest.
  void answer() {
    if (waiters_.load(std::memory_order_seq_cst) != 0) wake_waiters();
  }
  void wake_waiters();
  void wait_until_seen(const std::atomic<u64>& seen, u64 number);
  // Sleeps until a request is posted or the next deadline is due.
  void sleep();
  void copy_stats();

  const u32 id_;
  const Clock& clock_;
  const MemorySlots& slots_;
  std::unique_ptr<ArchVcpu> arch_;
  std::unique_ptr<RunPages> pages_;
  kvm_run* run_;
  std::atomic<u32> exit_word_{0};
  std::atomic<bool> sleeping_{false};
  std::atomic<bool> in_guest_{false};
  std::atomic<u64> slots_seen_{0};
  std::atomic<u64> writes_valid_from_{0};
  std::atomic<u32> waiters_{0};
  std::atomic<u32> answers_{0}; // the waiters' futex
  std::optional<DirtyRing> dirty_ring_;
  VcpuRecord record_;
  std::optional<Stats<VcpuStats>> stats_file_;      // once the VMM has asked for it
  std::atomic<VcpuStats*> stats_{&record_.stats()}; // in the record, or in that file
};

} // namespace ring3::kvm
