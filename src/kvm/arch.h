// SPDX-License-Identifier: Apache-2.0
// What kvm/ asks of an architecture. One ArchVcpu belongs to each Vcpu and runs on its thread.
#pragma once

#include "base/types.h"

#include <linux/kvm.h>

namespace ring3::kvm {

// How a stay in the guest ended.
enum class Entry : u8 {
  again,  // handled: look at requests and go back in
  halted, // the guest waits for an event
  user,   // kvm_run is filled in: return to the caller of KVM_RUN
};

class ArchVcpu {
 public:
  virtual ~ArchVcpu() = default;

  // The answer to the exit that kvm_run describes is in it now.
  virtual void complete_user_exit(kvm_run& run) = 0;
  // Did user space answer an exit in the middle of an instruction, which enter() would now finish?
  virtual bool instruction_open() const = 0;
  // Requests are pending: drop what is stale, take what was posted. Called before every entry too.
  virtual void take_requests(u32 requests) = 0;
  // May the guest execute? False: it waits for an event (halted, waiting for SIPI).
  virtual bool runnable() = 0;
  // Delivers what can be delivered now and executes. On Entry::user the exit is in `run`.
  virtual Entry enter(kvm_run& run) = 0;
  // KVM_RUN is about to return. Guest memory may still be used.
  virtual void leaving() = 0;
  // Without an interrupt controller of ours, HLT is for user space (KVM_EXIT_HLT).
  virtual bool halts_in_kernel() const = 0;
  // Earliest moment, on the Clock's scale, at which something may become due; TimerQueue::never if none.
  virtual u64 next_deadline() const = 0;
  // Runs what is due.
  virtual void run_timers() = 0;
};

} // namespace ring3::kvm
