// SPDX-License-Identifier: Apache-2.0
// System-management mode as the VMM sees it: KVM_SMI, the SMM part of the vCPU events, the flag in kvm_run
// (api.rst 4.31, 4.32, 5).
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/smm.h"

#include <cerrno>

namespace ring3::x86 {

void Vcpu::leaving(kvm_run& run) {
  pv_.leave();
  run.flags = cpu_.state.in_smm ? KVM_RUN_X86_SMM : 0;
}

int Vcpu::smi() {
  post_smi();
  return 0;
}
void Vcpu::post_smi() {
  smi_posted_.store(true);
  event_pending();
}

bool Vcpu::smi_waiting() const { return smi_posted_.load() && cpu_.can_take_smi(); }

bool Vcpu::deliver_smi() {
  smi_posted_.store(false);
  if (enter_smm(cpu_)) return true;
  // The interrupted state is in no place where it could be found again.
  vm_.kill();
  cpu_.request_exit(CpuExit::request);
  return false;
}

void Vcpu::get_smm_events(kvm_vcpu_events& out) const {
  out.smi.smm = cpu_.state.in_smm;
  out.smi.pending = smi_posted_.load();
  out.smi.smm_inside_nmi = cpu_.state.smm_in_nmi;
  out.smi.latched_init = lapic_ != nullptr && init_posted_.load();
}

void Vcpu::set_smm_events(const kvm_vcpu_events& in) {
  set_smm(cpu_, in.smi.smm != 0);
  if (in.smi.smm != 0) cpu_.state.smm_in_nmi = in.smi.smm_inside_nmi != 0;
  smi_posted_.store(in.smi.pending != 0);
  if (lapic_ != nullptr) init_posted_.store(in.smi.latched_init != 0);
}

} // namespace ring3::x86
