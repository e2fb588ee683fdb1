// SPDX-License-Identifier: Apache-2.0
#include "kvm/vcpu.h"

#include "kvm/timer_queue.h"

#include <cerrno>
#include <climits>
#include <ctime>
#include <linux/futex.h>
#include <new>
#include <sys/syscall.h>
#include <unistd.h>

namespace ring3::kvm {

namespace {

void copy_counters(const VcpuStats& from, VcpuStats& to) {
  constexpr std::size_t count = sizeof(VcpuStats) / sizeof(Counter);
  const auto* const source = reinterpret_cast<const Counter*>(&from);
  auto* const target = reinterpret_cast<Counter*>(&to);
  for (std::size_t i = 0; i < count; ++i) target[i].set(source[i].value());
}

} // namespace

Vcpu::Vcpu(u32 vm, u32 id, const Clock& clock, const MemorySlots& slots, std::unique_ptr<RunPages> pages)
    : id_(id), clock_(clock), slots_(slots), pages_(std::move(pages)), run_(&pages_->run()), record_(vm, id) {
  if (const auto entries = pages_->dirty_ring(); !entries.empty())
    dirty_ring_.emplace(entries, exit_word_, request::dirty_ring);
}

Vcpu::~Vcpu() = default;

// A VMM's file has a layout of its own, and few VMMs ask. From then on the vCPU counts there.
int Vcpu::open_stats() {
  if (!stats_file_) {
    try {
      stats_file_.emplace(StatsLayout::vcpu(), StatsFile::vcpu_id(id_));
    } catch (const std::bad_alloc&) {
      return -ENOMEM;
    }
    copy_counters(record_.stats(), **stats_file_);
    stats_.store(&**stats_file_, std::memory_order_relaxed);
  }
  return stats_file_->open();
}

void Vcpu::copy_stats() { copy_counters(**stats_file_, record_.stats()); }

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
  stats().blocking.set(1);
  sleeping_.store(true, std::memory_order_seq_cst);
  if (exit_word_.load(std::memory_order_seq_cst) == 0) {
    syscall(SYS_futex, &exit_word_, FUTEX_WAIT_PRIVATE, 0, limit, nullptr, 0);
  }
  sleeping_.store(false, std::memory_order_seq_cst);
  stats().blocking.set(0);
  const u64 slept = clock_.now_ns() - start;
  stats().halt_wait_ns += slept;
  stats().halt_wait_hist.add(slept);
  if (exit_word_.load(std::memory_order_relaxed) != 0) ++stats().halt_wakeup;
}

void Vcpu::wake_waiters() {
  answers_.fetch_add(1, std::memory_order_seq_cst);
  syscall(SYS_futex, &answers_, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// The answer comes at the end of a block, unless the vCPU's thread does not run: then it needs our processor
// more than we do.
void Vcpu::wait_until_seen(const std::atomic<u64>& seen, u64 number) {
  const auto done = [&] {
    return !in_guest_.load(std::memory_order_seq_cst) || seen.load(std::memory_order_seq_cst) >= number;
  };
  for (int spin = 0; spin < 200; ++spin) {
    if (done()) return;
  }
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  for (;;) {
    const u32 answers = answers_.load(std::memory_order_seq_cst);
    if (done()) break;
    syscall(SYS_futex, &answers_, FUTEX_WAIT_PRIVATE, answers, nullptr, nullptr, 0);
  }
  waiters_.fetch_sub(1, std::memory_order_seq_cst);
}

void Vcpu::wait_for_slots(u64 generation) { wait_until_seen(slots_seen_, generation); }
void Vcpu::wait_for_revoked_writes(u64 valid_from) { wait_until_seen(writes_valid_from_, valid_from); }

} // namespace ring3::kvm
