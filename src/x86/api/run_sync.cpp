// SPDX-License-Identifier: Apache-2.0
// What passes through kvm_run besides exits (api.rst 5): registers that are synchronised (KVM_CAP_SYNC_REGS,
// api.rst 6.74), and what a VMM with interrupt controllers of its own needs to know and to say.
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/machine_check.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ring3::x86 {

namespace {

constexpr u64 sync_fields = KVM_SYNC_X86_VALID_FIELDS;

// The page is the VMM's too, and it may write while we read: one copy, which is then checked and used. The
// compiler must not go back to the page for it.
template <class T> T read_once(const T& shared) {
  T copy;
  std::memcpy(&copy, &shared, sizeof copy);
  asm volatile("" : "+m"(copy));
  return copy;
}

} // namespace

// In KVM's order. What was taken is not dirty any more; what is wrong stays so.
int Vcpu::take_synced_registers(kvm_run& run) {
  const u64 valid = read_once(run.kvm_valid_regs);
  const u64 dirty = read_once(run.kvm_dirty_regs);
  if (((valid | dirty) & ~sync_fields) != 0) return -EINVAL;
  if ((dirty & KVM_SYNC_X86_REGS) != 0) {
    set_regs(read_once(run.s.regs.regs));
    run.kvm_dirty_regs &= ~KVM_SYNC_X86_REGS;
  }
  if ((dirty & KVM_SYNC_X86_SREGS) != 0) {
    if (set_sregs(read_once(run.s.regs.sregs)) != 0) return -EINVAL;
    run.kvm_dirty_regs &= ~KVM_SYNC_X86_SREGS;
  }
  if ((dirty & KVM_SYNC_X86_EVENTS) != 0) {
    if (set_vcpu_events(read_once(run.s.regs.events)) != 0) return -EINVAL;
    run.kvm_dirty_regs &= ~KVM_SYNC_X86_EVENTS;
  }
  return 0;
}

void Vcpu::show_synced_registers(kvm_run& run) {
  const u64 valid = read_once(run.kvm_valid_regs);
  if ((valid & KVM_SYNC_X86_REGS) != 0) get_regs(run.s.regs.regs);
  if ((valid & KVM_SYNC_X86_SREGS) != 0) get_sregs(run.s.regs.sregs);
  if ((valid & KVM_SYNC_X86_EVENTS) != 0) get_vcpu_events(run.s.regs.events);
}

int Vcpu::begin_run(kvm_run& run) {
  running_ = true;
  run.flags = 0;
  if (const int result = take_synced_registers(run); result != 0) return result;
  if (lapic_ == nullptr) {
    const u64 tpr = read_once(run.cr8);
    if (tpr > 15) return -EINVAL;
    user_apic_.cr8 = static_cast<u8>(tpr);
  }
  return 0;
}

void Vcpu::end_run(kvm_run& run) {
  if (!running_) return;
  running_ = false;
  show_synced_registers(run);
  run.if_flag = (cpu_.state.system_flags & rflags::if_) != 0;
  run.cr8 = cr8();
  run.apic_base = apic_base();
  run.ready_for_interrupt_injection = vm_.has_pic() || ready_for_user_interrupt();
}

int Vcpu::run() {
  if (vm_.dead()) return -EIO;
  kvm_run& page = run_page();
  int result = begin_run(page);
  if (result == 0) result = vcpu_.run();
  // KVM's one exit that is an error as well.
  if (result == 0 && page.exit_reason == kvm::exit_memory_fault) result = -EFAULT;
  end_run(page);
  return vm_.dead() ? -EIO : result;
}

// --- interrupts from controllers in user space ---

// Is there room for one, and would the guest's local APIC let it through?
bool Vcpu::accepts_user_interrupt() const {
  return !user_interrupt_ && (lapic_ == nullptr || lapic_->accepts_pic());
}

bool Vcpu::ready_for_user_interrupt() const {
  return cpu_.can_take_interrupt() && accepts_user_interrupt() && !queued_;
}

bool Vcpu::wants_interrupt_window(const kvm_run& run) const {
  return read_once(run.request_interrupt_window) != 0 && !vm_.has_pic() && accepts_user_interrupt();
}

int Vcpu::interrupt(u32 vector) {
  if (vector > 255) return -EINVAL;
  if (vm_.has_pic()) return -ENXIO;
  // With a local APIC here, this is the PIC's output, one at a time. Without, the VMM is responsible for the
  // order, and the last one counts.
  if (lapic_ != nullptr && user_interrupt_) return -EEXIST;
  user_interrupt_ = static_cast<u8>(vector);
  event_pending();
  return 0;
}

// The end of an interrupt that the I/O APIC in user space must hear of. This thread.
void Vcpu::report_eoi(u8 vector) {
  user_eois_[vector / 64u] |= bit(vector & 63);
  vcpu_.post_quietly(kvm::request::event);
}

bool Vcpu::exit_for_eoi(kvm_run& run) {
  for (unsigned i = 0; i < user_eois_.size(); ++i) {
    if (user_eois_[i] == 0) continue;
    const auto n = static_cast<unsigned>(std::countr_zero(user_eois_[i]));
    user_eois_[i] &= user_eois_[i] - 1;
    run.exit_reason = KVM_EXIT_IOAPIC_EOI;
    run.eoi.vector = static_cast<u8>(64 * i + n);
    return true;
  }
  return false;
}

// --- a local APIC in user space: of it, a CPU has CR8 and IA32_APIC_BASE ---

u8 Vcpu::cr8() const { return lapic_ != nullptr ? lapic_->cr8() : user_apic_.cr8; }

void Vcpu::set_cr8(u8 value) {
  if (lapic_ != nullptr) return lapic_->set_cr8(value);
  const u8 before = std::exchange(user_apic_.cr8, value);
  // An interrupt may be let through that user space has held back.
  if (value < before) cpu_.request_exit(CpuExit::lower_tpr);
}

u64 Vcpu::apic_base() const { return lapic_ != nullptr ? lapic_->base_msr() : user_apic_.base; }

bool Vcpu::set_apic_base(u64 value, bool host) {
  if (lapic_ == nullptr) {
    const LapicFeatures features = lapic_features();
    if (!Lapic::may_set_base(user_apic_.base, value, features, host)) return false;
    user_apic_.base = value;
    cpu_.state.apic_enabled = (value & Lapic::enable_bit) != 0;
    return true;
  }
  const u64 old = lapic_->base_msr();
  if (!lapic_->set_base_msr(value, host)) return false;
  // The APIC page may have moved: it shadows memory.
  if (lapic_->base_msr() != old) cpu_.mmu.flush_all();
  cpu_.state.apic_enabled = lapic_->enabled();
  return true;
}

LapicFeatures Vcpu::lapic_features() const {
  LapicFeatures f{};
  f.max_phys_bits = static_cast<u8>(cpu_.cpuid.max_phys_bits());
  f.x2apic = cpu_.cpuid.has(feature::x2apic);
  f.tsc_deadline = cpu_.cpuid.has(feature::tsc_deadline);
  f.cmci = (cpu_.state.mcg_cap & mcg::cmci_p) != 0;
  // Only an I/O APIC in user space can have the register that goes with it.
  f.directed_eoi = f.x2apic && !vm_.has_pic();
  return f;
}

} // namespace ring3::x86
