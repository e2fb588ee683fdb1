// SPDX-License-Identifier: Apache-2.0
// KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG (api.rst 4.87).
#include "x86/api/vcpu.h"

#include <cerrno>

namespace ring3::x86 {

u64 Vcpu::linear_rip() const {
  const CpuState& s = cpu_.state;
  return s.code64() ? s.rip() : (s.segment(Seg::cs).base + s.rip()) & low_mask(32);
}

int Vcpu::set_guest_debug(const kvm_guest_debug& in) {
  // Like KVM this takes bits that it does not know: KVM_CAP_SET_GUEST_DEBUG2 says which ones do something.
  if ((in.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0) {
    if ((queued_ && queued_->pending) || triple_fault_pending_) return -EBUSY;
    if ((in.control & KVM_GUESTDBG_INJECT_DB) != 0) {
      queued_ = QueuedEvent{EventType::exception, static_cast<u8>(Vector::db), std::nullopt, true};
    } else {
      // The guest's own INT3, at which the debugger stopped it, is to happen after all: its handler returns
      // behind it.
      if (int3_stop_ == linear_rip()) cpu_.state.regs[reg_rip] = (cpu_.state.rip() + 1) & cpu_.ip_mask();
      queued_ = QueuedEvent{EventType::software_exception, static_cast<u8>(Vector::bp), std::nullopt, true};
    }
    int3_stop_.reset();
  }
  GuestDebug debugger;
  if ((in.control & KVM_GUESTDBG_ENABLE) != 0) {
    debugger.single_step = (in.control & KVM_GUESTDBG_SINGLESTEP) != 0;
    debugger.software_breakpoints = (in.control & KVM_GUESTDBG_USE_SW_BP) != 0;
    debugger.hardware_breakpoints = (in.control & KVM_GUESTDBG_USE_HW_BP) != 0;
    debugger.block_interrupts = (in.control & KVM_GUESTDBG_BLOCKIRQ) != 0;
    for (unsigned i = 0; i < 4; ++i) debugger.db[i] = in.arch.debugreg[i];
    debugger.dr7 = in.arch.debugreg[7];
  }
  cpu_.debugger = debugger;
  cpu_.debug_registers_changed();
  event_pending(); // interrupts may have been let through
  return 0;
}

kvm::Entry Vcpu::exit_to_debugger(kvm_run& run) {
  // After a step over HLT the guest waits; without our local APIC that is what user space must know.
  if (cpu_.state.activity == Activity::halted && lapic_ == nullptr) return halted();
  const DebugStop& stop = cpu_.debug_stop;
  run.exit_reason = KVM_EXIT_DEBUG;
  run.debug.arch = {};
  run.debug.arch.exception = static_cast<u32>(stop.vector);
  run.debug.arch.pc = linear_rip();
  run.debug.arch.dr6 = stop.dr6;
  run.debug.arch.dr7 = cpu_.active_dr7();
  if (stop.vector == Vector::bp) {
    int3_stop_ = linear_rip();
  } else {
    int3_stop_.reset();
  }
  return kvm::Entry::user;
}

} // namespace ring3::x86
