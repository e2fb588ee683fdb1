// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/hypercalls.h"

#include "x86/irqchip/irqchip.h"

#include <linux/kvm_para.h>

namespace ring3::x86 {

namespace {

constexpr s64 no_such_call = -KVM_ENOSYS;

// KVM_HC_SEND_IPI: one vector to the APIC IDs of a 128-bit map that starts at `first`. Returns how many took
// it.
s64 send_ipi(IrqChip* irqchip, u64 map_low, u64 map_high, u64 first, u64 icr) {
  if (irqchip == nullptr) return no_such_call;
  ApicMessage message;
  message.vector = static_cast<u8>(icr);
  message.mode = static_cast<DeliveryMode>(icr >> 8 & 7);
  if (message.mode != DeliveryMode::Fixed && message.mode != DeliveryMode::Nmi) return -KVM_EINVAL;
  const auto base = static_cast<u32>(first);
  s64 count = 0;
  for (u32 i = 0; i < 128; ++i) {
    const u64 map = i < 64 ? map_low : map_high;
    if ((map >> (i & 63) & 1) == 0) continue;
    Lapic* target = irqchip->find_apic(base + i);
    if (target != nullptr && target->accept(message)) ++count;
  }
  return count;
}

} // namespace

s64 kvm_hypercall(IrqChip* irqchip, u64 number, const std::array<u64, 4>& a) {
  switch (number) {
  case KVM_HC_SEND_IPI: return send_ipi(irqchip, a[0], a[1], a[2], a[3]);
  default: return no_such_call;
  }
}

} // namespace ring3::x86
