// SPDX-License-Identifier: Apache-2.0
// KVM_RUN: the one place where requests, events, sleeping, guest execution and the return to user space meet.
#include "kvm/vcpu.h"

#include <cerrno>

namespace ring3::kvm {

int Vcpu::leave(int result) {
  in_guest_.store(false, std::memory_order_seq_cst);
  return result;
}

int Vcpu::run() {
  arch_->complete_user_exit(*run_);
  run_->exit_reason = KVM_EXIT_UNKNOWN;
  in_guest_.store(true, std::memory_order_seq_cst);
  for (;;) {
    u32 requests = exit_word_.exchange(0, std::memory_order_seq_cst);
    if (slots_.generation() != slots_seen_.load(std::memory_order_relaxed)) requests |= request::slots;
    const u64 generation = slots_.generation();
    arch_->take_requests(requests);
    slots_seen_.store(generation, std::memory_order_seq_cst);

    if ((requests & request::kick) != 0 || run_->immediate_exit != 0) {
      ++stats_.signal_exits;
      run_->exit_reason = KVM_EXIT_INTR;
      return leave(-EINTR);
    }
    arch_->run_timers();
    if (!arch_->runnable()) {
      // While asleep this vCPU touches no guest memory.
      in_guest_.store(false, std::memory_order_seq_cst);
      sleep();
      in_guest_.store(true, std::memory_order_seq_cst);
      continue;
    }
    const u64 start = clock_.now_ns();
    const Entry entry = arch_->enter(*run_);
    stats_.guest_ns += clock_.now_ns() - start;
    ++stats_.exits;
    switch (entry) {
    case Entry::again: ++stats_.request_exits; break;
    case Entry::halted:
      ++stats_.halt_exits;
      if (!arch_->halts_in_kernel()) {
        run_->exit_reason = KVM_EXIT_HLT;
        return leave(0);
      }
      break;
    case Entry::user:
      if (run_->exit_reason == KVM_EXIT_IO) ++stats_.io_exits;
      if (run_->exit_reason == KVM_EXIT_MMIO) ++stats_.mmio_exits;
      return leave(0);
    }
  }
}

} // namespace ring3::kvm
