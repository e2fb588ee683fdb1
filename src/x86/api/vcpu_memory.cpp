// SPDX-License-Identifier: Apache-2.0
// KVM_RUN's way out when guest memory is missing, and KVM_PRE_FAULT_MEMORY (api.rst 4.143, 7.34
// KVM_CAP_MEMORY_FAULT_INFO).
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"

#include <cerrno>
#include <cstring>
#include <sys/mman.h>

namespace ring3::x86 {

void Vcpu::fill_memory_fault(kvm_run& run, GuestPhys page, u64 flags) {
  run.exit_reason = kvm::exit_memory_fault;
  const kvm::MemoryFault fault{.flags = flags, .gpa = page.value, .size = page_size};
  std::memcpy(run.padding, &fault, sizeof fault);
}

void Vcpu::report_lost_memory(const void* host) {
  GuestPhys page;
  if (cpu_.mmu.uses_host(host, page)) fill_memory_fault(run_page(), page.page(), 0);
}

void Vcpu::requeue_if_memory_fault(EventType type, u8 vector) {
  if (cpu_.exit_pending && cpu_.exit == CpuExit::memory_fault)
    queued_ = QueuedEvent{type, vector, std::nullopt};
}

namespace {

// Has the host's kernel map a page for reading; there is no page table of ours to fill. 0 or -EFAULT.
int map_page(std::byte* host) {
  constexpr int populate_read = 22; // MADV_POPULATE_READ, Linux 5.14
  if (madvise(host, page_size, populate_read) == 0) return 0;
  if (errno != EINVAL) return -EFAULT;
  static_cast<void>(guest_load<u8>(host));
  return 0;
}

} // namespace

int Vcpu::pre_fault_memory(kvm::PreFaultMemory& range) {
  if (range.flags != 0) return -EINVAL;
  if (((range.gpa | range.size) & page_offset_mask) != 0 || range.gpa + range.size <= range.gpa)
    return -EINVAL;
  cpu_.mmu.refresh_slots();
  const u64 wanted = range.size;
  int result = 0;
  for (; range.size != 0; range.gpa += page_size, range.size -= page_size) {
    if ((vcpu_.exit_word().load(std::memory_order_relaxed) & kvm::request::kick) != 0) {
      result = -EINTR; // as KVM: a signal; the range may be as large as the address space
      break;
    }
    const Backing b = cpu_.mmu.backing(GuestPhys{range.gpa});
    result = b.host != nullptr ? map_page(b.host) : b.unreachable ? -EFAULT : -ENOENT;
    if (result != 0) break;
    cpu_.mmu.note_mapped(b, GuestPhys{range.gpa});
  }
  return range.size == wanted ? result : 0;
}

} // namespace ring3::x86
