// SPDX-License-Identifier: Apache-2.0
// The state classes of KVM beyond what starting a guest takes: what debuggers, snapshots and migration read
// and write. The same rules as kvm/api.h: 0 or -errno as KVM, vCPU calls from the vCPU's thread.
#pragma once

#include "base/types.h"

#include <cstddef>
#include <linux/kvm.h>
#include <span>

namespace ring3::kvm {

class VcpuStateApi {
 public:
  virtual ~VcpuStateApi() = default;

  virtual int get_fpu(kvm_fpu& out) = 0;
  // -EINVAL for reserved MXCSR bits: no processor can hold them.
  virtual int set_fpu(const kvm_fpu& in) = 0;
  // KVM_GET_XSAVE and KVM_GET_XSAVE2: the standard format; `area` is at least xsave_size() bytes.
  virtual u32 xsave_size() const = 0;
  virtual int get_xsave(std::span<std::byte> area) = 0;
  virtual int set_xsave(std::span<const std::byte> area) = 0;
  virtual int get_xcrs(kvm_xcrs& out) = 0;
  virtual int set_xcrs(const kvm_xcrs& in) = 0;
  virtual int get_debugregs(kvm_debugregs& out) = 0;
  virtual int set_debugregs(const kvm_debugregs& in) = 0;
  // Pending and injected events, shadows and NMI masking (api.rst 4.31, 4.32).
  virtual int get_vcpu_events(kvm_vcpu_events& out) = 0;
  virtual int set_vcpu_events(const kvm_vcpu_events& in) = 0;
  // -EINVAL without the in-kernel irqchip.
  virtual int get_lapic(kvm_lapic_state& out) = 0;
  virtual int set_lapic(const kvm_lapic_state& in) = 0;
  // Guest-linear to guest-physical with the current page tables; no accessed bits are set.
  virtual int translate(kvm_translation& t) = 0;
};

class VmStateApi {
 public:
  virtual ~VmStateApi() = default;

  // -ENXIO without the object.
  virtual int get_irqchip(kvm_irqchip& chip) = 0;
  virtual int set_irqchip(const kvm_irqchip& chip) = 0;
  virtual int get_pit(kvm_pit_state2& out) = 0;
  virtual int set_pit(const kvm_pit_state2& in) = 0;
  virtual int set_gsi_routing(std::span<const kvm_irq_routing_entry> entries) = 0;
};

} // namespace ring3::kvm
