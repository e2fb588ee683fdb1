// SPDX-License-Identifier: Apache-2.0
// KVM_RUN: the one place where requests, events, sleeping, guest execution and the return to user space meet.
#include "kvm/vcpu.h"

#include <cerrno>

namespace ring3::kvm {

int Vcpu::leave(int result) {
  arch_->leaving();
  if (stats_file_) [[unlikely]]
    copy_stats();
  out_of_guest();
  return result;
}

int Vcpu::run() {
  arch_->complete_user_exit(*run_);
  in_guest_.store(true, std::memory_order_seq_cst);
  for (;;) {
    u32 requests = exit_word_.exchange(0, std::memory_order_seq_cst);
    if (slots_.generation() != slots_seen_.load(std::memory_order_relaxed)) requests |= request::slots;
    const u64 generation = slots_.generation();
    const u64 valid_from = slots_.dirty_log().writes_valid_from();
    if (valid_from != writes_valid_from_.load(std::memory_order_relaxed)) requests |= request::protect;
    if ((requests & request::event) != 0) ++stats().req_event;
    arch_->take_requests(requests);
    slots_seen_.store(generation, std::memory_order_seq_cst);
    writes_valid_from_.store(valid_from, std::memory_order_seq_cst);
    answer();

    const bool kicked = (requests & request::kick) != 0;
    if (kicked || run_->immediate_exit != 0) {
      // An instruction that user space has answered is finished first: VMMs enter with immediate_exit for
      // just that, before they read or save registers (api.rst 5, immediate_exit).
      if (arch_->instruction_open()) {
        exit_word_.fetch_or(request::kick, std::memory_order_seq_cst);
        const bool next_exit = arch_->enter(*run_) == Entry::user;
        if (!kicked) exit_word_.fetch_and(~request::kick, std::memory_order_seq_cst);
        if (next_exit) return leave(0);
        if (kicked) exit_word_.fetch_and(~request::kick, std::memory_order_seq_cst);
      }
      ++stats().signal_exits;
      // As KVM: immediate_exit leaves the last reason, which VMMs may still want to look at.
      if (kicked) run_->exit_reason = KVM_EXIT_INTR;
      return leave(-EINTR);
    }
    run_->exit_reason = KVM_EXIT_UNKNOWN;
    if (dirty_ring_ && dirty_ring_->full()) {
      run_->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
      return leave(0);
    }
    arch_->run_timers();
    if (!arch_->runnable()) {
      out_of_guest();
      sleep();
      in_guest_.store(true, std::memory_order_seq_cst);
      continue;
    }
    const u64 start = clock_.now_ns();
    const Entry entry = arch_->enter(*run_);
    stats().guest_ns += clock_.now_ns() - start;
    ++stats().exits;
    switch (entry) {
    case Entry::again: break;
    case Entry::halted:
      ++stats().halt_exits;
      if (!arch_->halts_in_kernel()) {
        run_->exit_reason = KVM_EXIT_HLT;
        return leave(0);
      }
      break;
    case Entry::user:
      if (run_->exit_reason == KVM_EXIT_IO) ++stats().io_exits;
      if (run_->exit_reason == KVM_EXIT_MMIO) ++stats().mmio_exits;
      if (run_->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN) ++stats().request_irq_exits;
      return leave(0);
    }
  }
}

} // namespace ring3::kvm
