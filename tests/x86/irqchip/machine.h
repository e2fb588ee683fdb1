// SPDX-License-Identifier: Apache-2.0
// A small machine for the tests: a clock that stands still, vCPUs that only count what is posted to them.
#pragma once

#include "base/bits.h"
#include "x86/irqchip/irqchip.h"

#include <atomic>
#include <deque>
#include <gtest/gtest.h>

namespace ring3::x86::test {

class FakeClock final : public kvm::Clock {
 public:
  u64 now_ns() const override { return now.load(); }
  u64 wall_ns() const override { return now.load(); }
  std::atomic<u64> now{1'000'000'000};
};

// The guest's TSC runs at 2 GHz from clock 0.
class FakeTsc final : public GuestTsc {
 public:
  u64 clock_ns_at(u64 tsc) const override { return tsc / 2; }
  u64 tsc_at(u64 host_tsc) const override { return host_tsc * 2; }
};

struct FakeEvents final : VcpuEvents {
  void event_pending() override { ++events; }
  void post_nmi() override { ++nmis; }
  void post_smi() override { ++smis; }
  void post_init() override { ++inits; }
  void post_startup(u8 vector) override { startup = vector; }
  void post_unhalt() override { ++unhalts; }
  std::atomic<int> events{0}, nmis{0}, smis{0}, inits{0}, startup{-1}, unhalts{0};
};

struct Machine {
  struct Vcpu {
    Vcpu(u32 id, Machine& m) : apic(id, id == 0, m.chip, m.clock, timers, events, m.tsc) {}
    FakeEvents events;
    kvm::TimerQueue timers;
    Lapic apic;
  };

  explicit Machine(u32 vcpus = 1) {
    for (u32 id = 0; id < vcpus; ++id) {
      Vcpu& v = cpus.emplace_back(id, *this);
      EXPECT_EQ(chip.attach(v.apic), 0);
      write(id, 0xf0, 0x1ff);
    }
  }

  Lapic& apic(u32 cpu = 0) { return cpus[cpu].apic; }
  void write(u32 cpu, u32 offset, u32 value) { apic(cpu).mmio_write(offset, &value, 4); }
  u32 read(u32 cpu, u32 offset) {
    u32 value = 0;
    apic(cpu).mmio_read(offset, &value, 4);
    return value;
  }
  u64 msr(u32 cpu, u32 number) {
    u64 value = 0;
    EXPECT_TRUE(apic(cpu).read_x2apic_msr(number, value)) << std::hex << number;
    return value;
  }
  bool set_msr(u32 cpu, u32 number, u64 value) { return apic(cpu).write_x2apic_msr(number, value); }
  void enter_x2apic(u32 cpu) { EXPECT_TRUE(apic(cpu).set_base_msr(apic(cpu).base_msr() | 0xc00)); }
  // Delivers the next interrupt, or says -1.
  int take(u32 cpu = 0) {
    const int vector = apic(cpu).highest_pending();
    if (vector >= 0) apic(cpu).acknowledge(vector);
    return vector;
  }
  void eoi(u32 cpu = 0) { write(cpu, 0xb0, 0); }
  void advance(u64 ns) {
    clock.now += ns;
    timers.run_expired(clock.now);
    for (Vcpu& v : cpus) v.timers.run_expired(clock.now);
  }
  void out(u16 port, u8 value) { EXPECT_TRUE(chip.pio_write(port, 1, value)); }
  u8 in(u16 port) {
    u32 value = 0;
    EXPECT_TRUE(chip.pio_read(port, 1, value));
    return static_cast<u8>(value);
  }
  void ioapic_write(u32 number, u32 value) {
    EXPECT_TRUE(chip.mmio_write(IoApic::default_base, &number, 4));
    EXPECT_TRUE(chip.mmio_write(IoApic::default_base + 0x10, &value, 4));
  }
  u32 ioapic_read(u32 number) {
    u32 value = 0;
    EXPECT_TRUE(chip.mmio_write(IoApic::default_base, &number, 4));
    EXPECT_TRUE(chip.mmio_read(IoApic::default_base + 0x10, &value, 4));
    return value;
  }
  void redirect(u32 pin, u64 entry) {
    ioapic_write(0x10 + 2 * pin + 1, static_cast<u32>(entry >> 32));
    ioapic_write(0x10 + 2 * pin, static_cast<u32>(entry));
  }
  // The usual PC set-up: vectors at 0x20 and 0x28, everything open.
  void init_pic(u8 icw4 = 1) {
    for (const u16 base : {u16{0x20}, u16{0xa0}}) {
      const auto data = static_cast<u16>(base + 1);
      out(base, 0x11);
      out(data, base == 0x20 ? 0x20 : 0x28);
      out(data, base == 0x20 ? 4 : 2);
      out(data, icw4);
      out(data, 0);
    }
  }

  FakeClock clock;
  FakeTsc tsc;
  kvm::TimerQueue timers;
  IrqChip chip{clock, timers};
  std::deque<Vcpu> cpus;
};

} // namespace ring3::x86::test
