// SPDX-License-Identifier: Apache-2.0
#include "kvm/vcpu.h"

#include "kvm/timer_queue.h"

#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <new>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ring3::kvm {

Vcpu::Vcpu(u32 id, const Clock& clock, const MemorySlots& slots)
    : id_(id), clock_(clock), slots_(slots), pages_(new std::byte[2 * 4096]()),
      run_(new (pages_.get()) kvm_run{}) {}

Vcpu::~Vcpu() = default;

void Vcpu::post(u32 requests) {
  exit_word_.fetch_or(requests, std::memory_order_seq_cst);
  if (sleeping_.load(std::memory_order_seq_cst)) {
    syscall(SYS_futex, &exit_word_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  }
}

void Vcpu::sleep() {
  const u64 start = clock_.now_ns();
  const u64 deadline = arch_->next_deadline();
  if (deadline <= start) return;
  timespec timeout{};
  timespec* limit = nullptr;
  if (deadline != TimerQueue::never) {
    const u64 ns = deadline - start;
    timeout.tv_sec = static_cast<time_t>(ns / 1'000'000'000);
    timeout.tv_nsec = static_cast<long>(ns % 1'000'000'000);
    limit = &timeout;
  }
  sleeping_.store(true, std::memory_order_seq_cst);
  if (exit_word_.load(std::memory_order_seq_cst) == 0) {
    syscall(SYS_futex, &exit_word_, FUTEX_WAIT_PRIVATE, 0, limit, nullptr, 0);
  }
  sleeping_.store(false, std::memory_order_seq_cst);
  stats_.halt_ns += clock_.now_ns() - start;
}

void Vcpu::wait_for_slots(u64 generation) {
  while (in_guest_.load(std::memory_order_seq_cst) &&
         slots_seen_.load(std::memory_order_seq_cst) < generation) {
    sched_yield();
  }
}

} // namespace ring3::kvm
