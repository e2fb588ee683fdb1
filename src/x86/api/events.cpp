// SPDX-License-Identifier: Apache-2.0
// KVM_GET/SET_VCPU_EVENTS, DEBUGREGS, LAPIC and KVM_TRANSLATE (api.rst 4.31 to 4.34, 4.57, 4.58, 4.17).
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"

#include <cerrno>

namespace ring3::x86 {

int Vcpu::get_debugregs(kvm_debugregs& out) {
  const CpuState& s = cpu_.state;
  out = {};
  for (unsigned i = 0; i < 4; ++i) out.db[i] = s.dr[i];
  out.dr6 = s.dr6;
  out.dr7 = s.dr7;
  return 0;
}

int Vcpu::set_debugregs(const kvm_debugregs& in) {
  if (in.flags != 0) return -EINVAL;
  if ((in.dr6 >> 32) != 0 || (in.dr7 >> 32) != 0) return -EINVAL;
  CpuState& s = cpu_.state;
  for (unsigned i = 0; i < 4; ++i) s.dr[i] = in.db[i];
  s.dr6 = (in.dr6 & 0xe00f) | dr6::fixed1;
  s.dr7 = (in.dr7 & 0xffff2bff) | 0x400;
  cpu_.debug_registers_changed();
  return 0;
}

// Between two calls of KVM_RUN this CPU has no exception half delivered: faults are delivered where they are
// found. So only what SET put there can be read back as injected.
int Vcpu::get_vcpu_events(kvm_vcpu_events& out) {
  out = {};
  const bool payloads = settings().exception_payload.load(std::memory_order_relaxed);
  if (queued_) {
    if (queued_->is_exception()) {
      // #BP and #OF come again when their instruction does: nobody is told how long it is.
      const bool told = queued_->vector != 3 && queued_->vector != 4;
      out.exception.injected = told && (!queued_->pending || !payloads);
      out.exception.pending = told && queued_->pending;
      out.exception_has_payload = queued_->payload.has_value();
      out.exception_payload = queued_->payload.value_or(0);
      out.exception.nr = queued_->vector;
      out.exception.has_error_code = queued_->error.has_value();
      out.exception.error_code = queued_->error.value_or(0);
    } else if (queued_->type == EventType::nmi) {
      out.nmi.injected = 1;
    } else {
      out.interrupt.injected = 1;
      out.interrupt.nr = queued_->vector;
      out.interrupt.soft = queued_->type == EventType::software_interrupt;
    }
  } else if (lapic_ == nullptr && user_interrupt_) {
    out.interrupt.injected = 1;
    out.interrupt.nr = *user_interrupt_;
  }
  out.interrupt.shadow = static_cast<u8>((cpu_.state.sti_shadow ? KVM_X86_SHADOW_INT_STI : 0) |
                                         (cpu_.state.mov_ss_shadow ? KVM_X86_SHADOW_INT_MOV_SS : 0));
  out.nmi.pending = nmis_posted_.load() != 0;
  out.nmi.masked = cpu_.state.nmi_blocked;
  const int startup = startup_posted_.load();
  out.sipi_vector = startup >= 0 ? static_cast<u32>(startup) : 0;
  get_smm_events(out);
  out.flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM;
  if (payloads) out.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
  if (settings().triple_fault_event.load(std::memory_order_relaxed)) {
    out.triple_fault.pending = triple_fault_pending_;
    out.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  }
  return 0;
}

int Vcpu::set_vcpu_events(const kvm_vcpu_events& in) {
  constexpr u32 known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR |
                        KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD |
                        KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  if ((in.flags & ~known) != 0) return -EINVAL;
  const bool payloads = (in.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0;
  if (payloads && !settings().exception_payload.load()) return -EINVAL;
  const bool triple_fault = (in.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0;
  if (triple_fault && !settings().triple_fault_event.load()) return -EINVAL;
  const bool pending = payloads && in.exception.pending != 0; // and then not injected
  const bool exception = pending || in.exception.injected != 0;
  if (exception && (in.exception.nr > 31 || in.exception.nr == 2)) return -EINVAL;
  // INIT waits while there is SMM, so a CPU that has taken one cannot be there.
  const bool smm = (in.flags & KVM_VCPUEVENT_VALID_SMM) != 0;
  if (smm && (in.smi.smm != 0 || in.smi.pending != 0) && cpu_.state.activity == Activity::wait_for_sipi)
    return -EINVAL;
  if (triple_fault) triple_fault_pending_ = in.triple_fault.pending != 0;
  queued_.reset();
  if (lapic_ == nullptr) user_interrupt_.reset();
  if (exception) {
    queued_ = QueuedEvent{EventType::exception, in.exception.nr, std::nullopt, pending};
    if (pending && in.exception_has_payload != 0) queued_->payload = in.exception_payload;
    if (in.exception.has_error_code != 0) queued_->error = in.exception.error_code;
  } else if (in.nmi.injected != 0) {
    queued_ = QueuedEvent{EventType::nmi, 2, std::nullopt};
  } else if (in.interrupt.injected != 0) {
    const EventType type = in.interrupt.soft != 0 ? EventType::software_interrupt : EventType::external;
    queued_ = QueuedEvent{type, in.interrupt.nr, std::nullopt};
  }
  if ((in.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0) {
    cpu_.state.sti_shadow = (in.interrupt.shadow & KVM_X86_SHADOW_INT_STI) != 0;
    cpu_.state.mov_ss_shadow = (in.interrupt.shadow & KVM_X86_SHADOW_INT_MOV_SS) != 0;
    cpu_.update_careful();
  }
  if ((in.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0) nmis_posted_.store(in.nmi.pending != 0 ? 1 : 0);
  cpu_.state.nmi_blocked = in.nmi.masked != 0;
  if ((in.flags & KVM_VCPUEVENT_VALID_SIPI_VECTOR) != 0 && cpu_.state.activity == Activity::wait_for_sipi) {
    startup_posted_.store(static_cast<int>(in.sipi_vector & 0xff));
  }
  if (smm) set_smm_events(in);
  event_pending();
  return 0;
}

// What happens to the CPU when an exception does, before its handler is entered.
void Vcpu::begin_exception(const QueuedEvent& e) {
  CpuState& s = cpu_.state;
  switch (static_cast<Vector>(e.vector)) {
  case Vector::db:
    if (e.payload) {
      // The payload is active high where DR6 has RTM and BLD active low; bit 12 says only that a breakpoint
      // was enabled.
      constexpr u64 rtm = bit(16);
      constexpr u64 bld = bit(11);
      s.dr6 = (s.dr6 & ~u64{0xf}) | rtm;
      s.dr6 &= ~(*e.payload & dr6::fixed1);
      s.dr6 |= *e.payload & ~dr6::fixed1;
      s.dr6 = (s.dr6 & ~bit(12) & low_mask(32)) | (dr6::fixed1 & ~(rtm | bld));
    }
    if ((s.dr7 & bit(13)) != 0) {
      s.dr7 &= ~bit(13);
      cpu_.debug_registers_changed();
    }
    return; // RF is the business of who queued it
  case Vector::bp:
  case Vector::of:
  case Vector::df:
  case Vector::mc: return;
  case Vector::pf:
    if (e.payload) s.cr2 = *e.payload;
    break;
  default: break;
  }
  s.system_flags |= rflags::rf;
  cpu_.flags_changed();
}

int Vcpu::get_lapic(kvm_lapic_state& out) {
  if (lapic_ == nullptr) return -EINVAL;
  lapic_->get_state(out, vm_.irqchip()->wide_ids());
  return 0;
}

int Vcpu::set_lapic(const kvm_lapic_state& in) {
  if (lapic_ == nullptr) return -EINVAL;
  const int result = lapic_->set_state(in, vm_.irqchip()->wide_ids());
  if (result == 0) event_pending();
  return result;
}

int Vcpu::translate(kvm_translation& t) {
  GuestPhys pa;
  cpu_.mmu.refresh_slots();
  const bool valid = cpu_.mmu.probe(GuestVirt{t.linear_address}, pa);
  t.physical_address = valid ? pa.value : ~u64{0};
  t.valid = valid;
  t.writeable = 1; // as KVM, which does not look
  t.usermode = 0;
  return 0;
}

} // namespace ring3::x86
