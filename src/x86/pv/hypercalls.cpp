// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/hypercalls.h"

#include "base/bits.h"
#include "x86/irqchip/irqchip.h"
#include "x86/pv/kvm_clock.h"

#include <linux/kvm_para.h>
#include <sched.h>

namespace ring3::x86 {

namespace {

constexpr s64 no_such_call = -KVM_ENOSYS;
constexpr u64 second = 1'000'000'000;

Lapic* find_apic(const HypercallContext& c, u64 id) {
  return c.irqchip == nullptr || (id >> 32) != 0 ? nullptr : c.irqchip->find_apic(static_cast<u32>(id));
}

// KVM_HC_SCHED_YIELD. The host lets no process say whom to run, so this gives way to whoever waits for the
// core.
void yield_to(const HypercallContext& c, u64 apic_id) {
  if (apic_id != c.caller && find_apic(c, apic_id) != nullptr) sched_yield();
}

// KVM_HC_KICK_CPU: ends the target's HLT, or its next one.
s64 kick_cpu(const HypercallContext& c, u64 apic_id) {
  if (Lapic* const target = find_apic(c, apic_id)) target->unhalt();
  yield_to(c, apic_id);
  return 0;
}

// KVM_HC_SEND_IPI: one message to the APIC IDs in two maps of 64 bits, or of 32, that start at `first`.
// Returns how many took it.
s64 send_ipi(const HypercallContext& c, const Hypercall& call) {
  const auto& [low, high, first, icr] = call.arguments;
  constexpr u64 logical_destination = bit(11);
  constexpr u64 shorthands = bit(18) | bit(19);
  if ((icr & (logical_destination | shorthands)) != 0) return -KVM_EINVAL;
  if (c.irqchip == nullptr) return -KVM_EOPNOTSUPP;
  const ApicMessage message{.vector = static_cast<u8>(icr),
                            .mode = static_cast<DeliveryMode>(icr >> 8 & 7),
                            .level_triggered = (icr & bit(15)) != 0,
                            .level_assert = (icr & bit(14)) != 0};
  const u32 width = call.long_mode ? 64 : 32;
  s64 count = 0;
  for (u32 i = 0; i < 2 * width; ++i) {
    const u64 map = i < width ? low : high;
    if ((map >> (i % width) & 1) == 0) continue;
    Lapic* const target = find_apic(c, u64{static_cast<u32>(first)} + i);
    if (target != nullptr && target->accept(message)) ++count;
  }
  return count;
}

// KVM_HC_CLOCK_PAIRING: the host's wall clock and the caller's TSC at one moment.
s64 pair_clocks(const HypercallContext& c, u64 address, u64 clock_type) {
  if (clock_type != KVM_CLOCK_PAIRING_WALLCLOCK) return -KVM_EOPNOTSUPP;
  const HostTime now = read_host_time(c.clock);
  kvm_clock_pairing pairing{};
  pairing.sec = static_cast<s64>(now.wall_ns / second);
  pairing.nsec = static_cast<s64>(now.wall_ns % second);
  pairing.tsc = c.tsc.tsc_at(now.tsc);
  return c.mmu.write_phys(GuestPhys{address}, &pairing, sizeof pairing, Mmu::View::host) ? 0 : -KVM_EFAULT;
}

// KVM_HC_MAP_GPA_RANGE means something to user space only. Nothing: it is asked.
std::optional<s64> map_gpa_range(const HypercallContext& c, u64 address, u64 pages) {
  if ((c.exits & bit(KVM_HC_MAP_GPA_RANGE)) == 0) return no_such_call;
  const u64 frame = address >> page_shift;
  if ((address & page_offset_mask) != 0 || pages == 0 || frame + pages <= frame) return -KVM_EINVAL;
  return std::nullopt;
}

} // namespace

std::optional<s64> kvm_hypercall(const HypercallContext& c, const Hypercall& call) {
  const auto& a = call.arguments;
  switch (call.number) {
  // Events are looked at on the way to the next instruction anyway.
  case KVM_HC_VAPIC_POLL_IRQ: return 0;
  case KVM_HC_KICK_CPU: return c.features.has(KVM_FEATURE_PV_UNHALT) ? kick_cpu(c, a[1]) : no_such_call;
  case KVM_HC_CLOCK_PAIRING: return pair_clocks(c, a[0], a[1]);
  case KVM_HC_SEND_IPI: return c.features.has(KVM_FEATURE_PV_SEND_IPI) ? send_ipi(c, call) : no_such_call;
  case KVM_HC_SCHED_YIELD:
    if (!c.features.has(KVM_FEATURE_PV_SCHED_YIELD)) return no_such_call;
    yield_to(c, a[0]);
    return 0;
  case KVM_HC_MAP_GPA_RANGE: return map_gpa_range(c, a[0], a[1]);
  default: return no_such_call;
  }
}

} // namespace ring3::x86
