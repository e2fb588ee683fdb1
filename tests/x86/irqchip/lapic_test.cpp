// SPDX-License-Identifier: Apache-2.0
#include "machine.h"

#include <cerrno>
#include <random>
#include <thread>

namespace ring3::x86 {
namespace {

using test::Machine;

void post(Lapic& apic, u8 vector, bool level = false) {
  apic.accept(ApicMessage{.vector = vector, .level_triggered = level});
}

TEST(Lapic, PowerUpState) {
  Machine m(2);
  EXPECT_EQ(m.apic(0).base_msr(), 0xfee00900u);
  EXPECT_EQ(m.apic(1).base_msr(), 0xfee00800u);
  m.apic(1).reset(false);
  EXPECT_EQ(m.read(1, 0x20), 1u << 24);
  EXPECT_EQ(m.read(1, 0x30), 0x50014u);
  EXPECT_EQ(m.read(1, 0xf0), 0xffu);
  EXPECT_EQ(m.read(1, 0xe0), ~0u);
  EXPECT_EQ(m.read(1, 0x350), 0x10000u);
  EXPECT_EQ(m.read(0, 0x350), 0x700u);
  EXPECT_TRUE(m.apic(0).accepts_pic());
  EXPECT_FALSE(m.apic(1).accepts_pic());
}

TEST(Lapic, Priorities) {
  Machine m;
  post(m.apic(), 0x41);
  post(m.apic(), 0x55);
  post(m.apic(), 0x52);
  EXPECT_EQ(m.take(), 0x55);
  EXPECT_EQ(m.take(), -1) << "0x52 is of the same class";
  EXPECT_EQ(m.read(0, 0xa0), 0x50u);
  post(m.apic(), 0x60);
  EXPECT_EQ(m.take(), 0x60);
  m.eoi();
  m.eoi();
  EXPECT_EQ(m.take(), 0x52);
  m.eoi();
  m.apic().set_cr8(4);
  EXPECT_EQ(m.read(0, 0x80), 0x40u);
  EXPECT_EQ(m.take(), -1);
  const int events = m.cpus[0].events.events;
  m.apic().set_cr8(3);
  EXPECT_GT(m.cpus[0].events.events, events);
  EXPECT_EQ(m.take(), 0x41);
  m.eoi();
  m.eoi(); // nothing in service
  EXPECT_EQ(m.take(), -1);
}

TEST(Lapic, DisabledBySoftwareOrHardware) {
  Machine m;
  m.write(0, 0x320, 0x40);
  m.write(0, 0xf0, 0xff);
  EXPECT_EQ(m.read(0, 0x320), 0x10040u) << "software disable masks";
  m.write(0, 0x320, 0x40);
  EXPECT_EQ(m.read(0, 0x320), 0x10040u) << "and keeps masked";
  post(m.apic(), 0x50);
  EXPECT_EQ(m.take(), -1);
  EXPECT_TRUE(m.apic().set_base_msr(0xfee00100));
  EXPECT_EQ(m.read(0, 0x30), ~0u);
  EXPECT_TRUE(m.apic().accepts_pic());
  EXPECT_TRUE(m.apic().claims_mmio(0xfee00fff));
  EXPECT_FALSE(m.apic().claims_mmio(0xfee01000));
}

TEST(Lapic, BaseTransitions) {
  Machine m;
  Lapic& a = m.apic();
  a.set_features({.max_phys_bits = 40});
  EXPECT_FALSE(a.set_base_msr(0xfee00900 | u64{1} << 40));
  EXPECT_FALSE(a.set_base_msr(0xfee00901));
  EXPECT_FALSE(a.set_base_msr(0xfee00500)) << "x2APIC without enable";
  EXPECT_TRUE(a.set_base_msr(0xfee00d00));
  EXPECT_FALSE(a.set_base_msr(0xfee00900)) << "x2APIC to xAPIC";
  EXPECT_TRUE(a.set_base_msr(0xfee00100));
  EXPECT_FALSE(a.set_base_msr(0xfee00d00)) << "disabled to x2APIC";
  EXPECT_TRUE(a.set_base_msr(0xfee00d00, true));
  EXPECT_TRUE(a.set_base_msr(0xfee00900, true));
  a.set_features({.x2apic = false});
  EXPECT_FALSE(a.set_base_msr(0xfee00d00));
  EXPECT_TRUE(a.set_base_msr(0x12345900));
  EXPECT_TRUE(a.claims_mmio(0x12345030));
}

TEST(Lapic, X2ApicMsrRules) {
  Machine m(2);
  u64 v = 0;
  EXPECT_FALSE(m.apic(1).read_x2apic_msr(0x802, v)) << "xAPIC mode";
  m.enter_x2apic(1);
  EXPECT_EQ(m.msr(1, 0x802), 1u);
  EXPECT_EQ(m.msr(1, 0x80d), 2u);
  for (const u32 number : {0x80eu, 0x831u, 0x80bu, 0x83fu, 0x8ffu, 0x82fu, 0x804u})
    EXPECT_FALSE(m.apic(1).read_x2apic_msr(number, v)) << std::hex << number;
  for (const u32 number : {0x802u, 0x803u, 0x80au, 0x80du, 0x80eu, 0x810u, 0x820u, 0x831u, 0x839u})
    EXPECT_FALSE(m.set_msr(1, number, 0)) << std::hex << number;
  EXPECT_FALSE(m.set_msr(1, 0x80b, 1));
  EXPECT_FALSE(m.set_msr(1, 0x828, 1));
  EXPECT_FALSE(m.set_msr(1, 0x808, 0x100));
  EXPECT_FALSE(m.set_msr(1, 0x80f, 0x11ff)) << "no directed EOI";
  EXPECT_FALSE(m.set_msr(1, 0x832, 0x100));
  EXPECT_FALSE(m.set_msr(1, 0x838, u64{1} << 32));
  EXPECT_FALSE(m.set_msr(1, 0x830, 1 << 13));
  EXPECT_FALSE(m.set_msr(1, 0x83f, 0x100));
  EXPECT_TRUE(m.set_msr(1, 0x83f, 0x77));
  EXPECT_EQ(m.take(1), 0x77);
  EXPECT_TRUE(m.set_msr(1, 0x80b, 0));
  EXPECT_TRUE(m.set_msr(1, 0x830, 0x00000000'00000044));
  EXPECT_EQ(m.take(0), 0x44);
  EXPECT_TRUE(m.set_msr(1, 0x830, 0x00000001'00000045));
  EXPECT_EQ(m.msr(1, 0x830), 0x00000001'00000045u);
  EXPECT_EQ(m.take(1), 0x45);
  EXPECT_EQ(m.read(1, 0x20), ~0u) << "the page is off";
}

TEST(Lapic, ErrorStatus) {
  Machine m;
  m.write(0, 0x370, 0x33);
  m.write(0, 0x310, 0);
  m.write(0, 0x300, 5); // an illegal vector
  EXPECT_EQ(m.take(), 0x33);
  m.eoi();
  EXPECT_EQ(m.read(0, 0x280), 0u) << "only a write shows it";
  m.write(0, 0x280, 0);
  EXPECT_EQ(m.read(0, 0x280), 0x20u);
  post(m.apic(), 3);
  m.write(0, 0x280, 0);
  EXPECT_EQ(m.read(0, 0x280), 0x40u);
  m.write(0, 0x280, 0);
  EXPECT_EQ(m.read(0, 0x280), 0u);
  m.write(0, 0x370, 0x03); // an error vector that is itself an error
  post(m.apic(), 3);
  m.write(0, 0x280, 0);
  EXPECT_EQ(m.read(0, 0x280), 0x40u);
}

TEST(Lapic, AccessShapes) {
  Machine m;
  u8 bytes[16] = {};
  m.apic().mmio_read(0x32, bytes, 2);
  EXPECT_EQ(bytes[0], 5);
  m.apic().mmio_read(0x32, bytes, 4); // crosses the register
  EXPECT_EQ(bytes[0], 0);
  m.apic().mmio_read(0xfff, bytes, 16);
  m.apic().mmio_write(0x81, bytes, 4);
  m.apic().mmio_write(0x80, bytes, 1);
  m.apic().mmio_write(0xff0, bytes, 4);
  EXPECT_EQ(m.read(0, 0x80), 0u);
}

TEST(LapicTimer, OneShotAndDivide) {
  Machine m;
  m.write(0, 0x320, 0x40);
  m.write(0, 0x3e0, 0xb); // by 1
  m.write(0, 0x380, 1'000'000);
  EXPECT_EQ(m.read(0, 0x390), 1'000'000u);
  m.advance(400'000);
  EXPECT_EQ(m.read(0, 0x390), 600'000u);
  EXPECT_EQ(m.take(), -1);
  m.write(0, 0x3e0, 0); // by 2: what remains takes twice as long
  EXPECT_EQ(m.read(0, 0x390), 600'000u);
  m.advance(1'199'999);
  EXPECT_EQ(m.take(), -1);
  m.advance(1);
  EXPECT_EQ(m.take(), 0x40);
  m.eoi();
  EXPECT_EQ(m.read(0, 0x390), 0u);
  EXPECT_EQ(m.read(0, 0x380), 1'000'000u);
  m.advance(10'000'000);
  EXPECT_EQ(m.take(), -1);
  m.write(0, 0x380, 10);
  m.write(0, 0x380, 0);
  m.advance(1000);
  EXPECT_EQ(m.take(), -1) << "0 stops it";
}

TEST(LapicTimer, TheBusMayBeSlower) {
  Machine m;
  m.apic().set_bus_cycle(40); // 25 MHz
  m.write(0, 0x320, 0x40);
  m.write(0, 0x3e0, 0xb); // by 1
  m.write(0, 0x380, 1'000'000);
  m.advance(39'999'999);
  EXPECT_EQ(m.take(), -1);
  EXPECT_EQ(m.read(0, 0x390), 0u) << "less than a tick is left";
  m.advance(1);
  EXPECT_EQ(m.take(), 0x40);
  m.eoi();
  m.write(0, 0x380, 1'000'000);
  m.advance(4'000'000);
  EXPECT_EQ(m.read(0, 0x390), 900'000u);
  m.write(0, 0x3e0, 3); // by 16
  EXPECT_EQ(m.read(0, 0x390), 900'000u);
  m.advance(u64{900'000} * 16 * 40 - 1);
  EXPECT_EQ(m.take(), -1);
  m.advance(1);
  EXPECT_EQ(m.take(), 0x40);
}

// With the longest bus cycle that a VMM can choose, the longest period ends beyond the end of time.
TEST(LapicTimer, LongestPeriodNeverEnds) {
  Machine m;
  m.advance(1'000'000'000);
  m.apic().set_bus_cycle(~u64{0} / (u64{0xffffffff} * 128));
  m.write(0, 0x320, 0x20040);
  m.write(0, 0x3e0, 0xa); // divide by 128
  m.write(0, 0x380, 0xffffffff);
  EXPECT_GT(m.cpus[0].timers.next_deadline(), u64{1} << 62);
  m.advance(1'000'000'000);
  EXPECT_EQ(m.take(), -1);
}

TEST(LapicTimer, PeriodicDoesNotDrift) {
  Machine m;
  m.write(0, 0x320, 0x20040);
  m.write(0, 0x3e0, 0xb);
  m.write(0, 0x380, 1'000'000);
  int ticks = 0;
  for (int i = 0; i < 100; ++i) {
    m.advance(300'000); // late by up to 300 us each time
    if (m.take() == 0x40) {
      ++ticks;
      m.eoi();
    }
  }
  EXPECT_EQ(ticks, 30);
  m.advance(50'500'000);
  EXPECT_EQ(m.take(), 0x40) << "missed ticks are one";
  m.eoi();
  EXPECT_EQ(m.read(0, 0x390), 500'000u);
  m.write(0, 0x320, 0x40); // to one-shot: stops after the present period
  m.advance(500'000);
  EXPECT_EQ(m.take(), 0x40);
  m.eoi();
  m.advance(5'000'000);
  EXPECT_EQ(m.take(), -1);
}

TEST(LapicTimer, TinyPeriodIsStretched) {
  Machine m;
  m.write(0, 0x320, 0x20040);
  m.write(0, 0x380, 1);
  EXPECT_GE(m.cpus[0].timers.next_deadline(), m.clock.now + ApicTimer::min_period_ns);
  m.advance(ApicTimer::min_period_ns * 3 / 2);
  EXPECT_LE(m.read(0, 0x390), 1u);
}

TEST(LapicTimer, TscDeadline) {
  Machine m;
  m.apic().set_tsc_deadline(4'000'000'000);
  EXPECT_EQ(m.apic().tsc_deadline(), 0u) << "not in that mode";
  m.write(0, 0x320, 0x40040);
  m.write(0, 0x380, 1000);
  EXPECT_EQ(m.read(0, 0x390), 0u);
  m.apic().set_tsc_deadline(4'000'000'000); // 2 s on the clock; now is 1 s
  EXPECT_EQ(m.cpus[0].timers.next_deadline(), 2'000'000'000u);
  m.advance(1'000'000'000);
  EXPECT_EQ(m.take(), 0x40);
  m.eoi();
  EXPECT_EQ(m.apic().tsc_deadline(), 0u);
  m.apic().set_tsc_deadline(5); // long past: at once
  EXPECT_EQ(m.take(), 0x40);
  m.eoi();
  m.apic().set_tsc_deadline(40'000'000'000);
  m.write(0, 0x320, 0x40); // leaving the mode disarms
  EXPECT_EQ(m.cpus[0].timers.next_deadline(), kvm::TimerQueue::never);
  m.write(0, 0x320, 0x40040);
  m.apic().set_tsc_deadline(~u64{0});
  m.apic().set_tsc_deadline(0);
  EXPECT_EQ(m.cpus[0].timers.next_deadline(), kvm::TimerQueue::never);
}

TEST(LapicIpi, PhysicalLogicalAndShorthands) {
  Machine m(4);
  const auto send = [&m](u32 from, u32 destination, u32 low) {
    m.write(from, 0x310, destination << 24);
    m.write(from, 0x300, low);
  };
  const auto takers = [&m] {
    u32 set = 0;
    for (u32 cpu = 0; cpu < 4; ++cpu)
      if (m.take(cpu) >= 0) {
        set |= 1u << cpu;
        m.eoi(cpu);
      }
    return set;
  };
  send(0, 2, 0x50);
  EXPECT_EQ(takers(), 4u);
  send(0, 0xff, 0x50);
  EXPECT_EQ(takers(), 15u);
  send(1, 0, 0x40050);
  EXPECT_EQ(takers(), 2u);
  send(1, 0, 0x80050);
  EXPECT_EQ(takers(), 15u);
  send(1, 0, 0xc0050);
  EXPECT_EQ(takers(), 13u);
  send(1, 9, 0x50);
  EXPECT_EQ(takers(), 0u);
  for (u32 cpu = 0; cpu < 4; ++cpu) m.write(cpu, 0xd0, 1u << (24 + cpu));
  send(0, 0b1010, 0x850);
  EXPECT_EQ(takers(), 10u);
  for (u32 cpu = 0; cpu < 4; ++cpu) {
    m.write(cpu, 0xe0, 0);
    m.write(cpu, 0xd0, (cpu / 2) << 28 | (1u << (24 + cpu % 2)));
  }
  send(0, 0x13, 0x850);
  EXPECT_EQ(takers(), 12u);
  m.write(3, 0x20, 9u << 24); // the xAPIC ID can be changed
  send(0, 9, 0x50);
  EXPECT_EQ(takers(), 8u);
  send(0, 3, 0x50);
  EXPECT_EQ(takers(), 0u);
  // INIT, its de-assert, SIPI, NMI, SMI.
  send(0, 1, 0xc500);
  send(0, 1, 0x8500);
  send(0, 1, 0x0699);
  send(0, 1, 0x0400);
  send(0, 1, 0x0200);
  const test::FakeEvents& e = m.cpus[1].events;
  EXPECT_EQ(e.inits, 1);
  EXPECT_EQ(e.startup, 0x99);
  EXPECT_EQ(e.nmis, 1);
  EXPECT_EQ(e.smis, 1);
}

TEST(LapicIpi, LowestPriority) {
  Machine m(3);
  for (u32 cpu = 0; cpu < 3; ++cpu) m.write(cpu, 0xd0, 1u << (24 + cpu));
  m.write(0, 0x80, 0x30);
  int counts[3] = {};
  for (int i = 0; i < 10; ++i) {
    m.write(2, 0x310, 7u << 24);
    m.write(2, 0x300, 0x951);
    for (u32 cpu = 0; cpu < 3; ++cpu)
      if (m.take(cpu) == 0x51) {
        ++counts[cpu];
        m.eoi(cpu);
      }
  }
  EXPECT_EQ(counts[0], 0) << "its task priority is higher";
  EXPECT_EQ(counts[1], 5);
  EXPECT_EQ(counts[2], 5);
}

TEST(LapicIpi, ManyX2Apics) {
  Machine m(1024);
  for (u32 cpu = 0; cpu < 1024; ++cpu) m.enter_x2apic(cpu);
  EXPECT_TRUE(m.set_msr(0, 0x830, u64{1023} << 32 | 0x50));
  EXPECT_EQ(m.take(1023), 0x50);
  EXPECT_TRUE(m.set_msr(0, 0x830, u64{(63 << 16) | 0x4001} << 32 | 0x851));
  EXPECT_TRUE(m.set_msr(1023, 0x80b, 0));
  EXPECT_EQ(m.take(63 * 16), 0x51);
  EXPECT_EQ(m.take(63 * 16 + 14), 0x51);
  EXPECT_EQ(m.take(63 * 16 + 1), -1);
  EXPECT_TRUE(m.set_msr(5, 0x830, u64{0xffffffff} << 32 | 0x60));
  int n = 0;
  for (u32 cpu = 0; cpu < 1024; ++cpu) n += m.take(cpu) == 0x60;
  EXPECT_EQ(n, 1024);
  // An x2APIC sender's 0xff is CPU 255; a device's is everyone.
  EXPECT_TRUE(m.set_msr(5, 0x830, u64{0xff} << 32 | 0x70));
  EXPECT_EQ(m.take(255), 0x70);
  EXPECT_EQ(m.take(254), -1);
  kvm_msi msi{};
  msi.address_lo = 0xfeeff000;
  msi.data = 0x80;
  EXPECT_EQ(m.chip.send_msi(msi), 1024);
  msi.address_hi = 0x300;
  m.chip.set_x2apic_api(true, true);
  EXPECT_EQ(m.chip.send_msi(msi), 1) << "0x3ff is one CPU";
  msi.address_hi = 0x301;
  EXPECT_EQ(m.chip.send_msi(msi), -EINVAL);
}

TEST(LapicIpi, HotPlugInXapicMode) {
  Machine m(300);
  m.enter_x2apic(0);
  EXPECT_TRUE(m.set_msr(0, 0x830, u64{299} << 32 | 0x4500));
  EXPECT_EQ(m.cpus[299].events.inits, 1);
  EXPECT_EQ(m.cpus[299 - 256].events.inits, 0);
}

TEST(Lapic, AttachErrors) {
  Machine m(2);
  test::Machine::Vcpu twin(1, m);
  EXPECT_EQ(m.chip.attach(twin.apic), -EEXIST);
  test::Machine::Vcpu far(5000, m);
  EXPECT_EQ(m.chip.attach(far.apic), -EINVAL);
}

TEST(Lapic, InitKeepsModeAndId) {
  Machine m(2);
  m.write(1, 0x20, 7u << 24);
  post(m.apic(1), 0x50);
  m.apic(1).reset(true);
  EXPECT_EQ(m.read(1, 0x20), 7u << 24);
  EXPECT_EQ(m.read(1, 0xf0), 0xffu);
  EXPECT_EQ(m.take(1), -1);
  m.enter_x2apic(1);
  m.apic(1).reset(true);
  EXPECT_TRUE(m.apic(1).x2apic_mode());
  EXPECT_EQ(m.msr(1, 0x80d), 2u);
}

TEST(Lapic, StateRoundTrip) {
  Machine m(2);
  m.write(1, 0x320, 0x20040);
  m.write(1, 0x3e0, 0xb);
  m.write(1, 0x380, 10'000'000);
  m.advance(4'000'000);
  post(m.apic(1), 0x50, true);
  EXPECT_EQ(m.take(1), 0x50);
  post(m.apic(1), 0x61);
  kvm_lapic_state s{};
  m.apic(1).get_state(s);
  m.apic(1).reset(false);
  EXPECT_EQ(m.apic(1).set_state(s), 0);
  EXPECT_EQ(m.read(1, 0x390), 6'000'000u);
  EXPECT_EQ(m.take(1), 0x61);
  EXPECT_EQ(m.read(1, 0x1a0), 1u << 16) << "TMR";
  m.advance(6'000'000);
  m.eoi(1);
  m.eoi(1);
  EXPECT_EQ(m.take(1), 0x40);
  m.enter_x2apic(1);
  m.apic(1).get_state(s);
  EXPECT_EQ(load_raw<u32>(s.regs + 0x20), 1u << 24);
  m.apic(1).get_state(s, true);
  EXPECT_EQ(load_raw<u32>(s.regs + 0x20), 1u);
  EXPECT_EQ(m.apic(1).set_state(s, true), 0);
  EXPECT_EQ(m.apic(0).set_state(s, true), 0) << "xAPIC mode takes any ID";
  m.enter_x2apic(0);
  EXPECT_EQ(m.apic(0).set_state(s, true), -EINVAL);
}

TEST(Lapic, HostileStateAndRegisters) {
  Machine m(2);
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) {
    kvm_lapic_state s{};
    for (char& c : s.regs) c = static_cast<char>(random());
    m.apic(1).set_state(s);
    m.take(1);
    for (int j = 0; j < 50; ++j) m.write(1, random() % 0x400 & ~15u, static_cast<u32>(random()));
    m.advance(random() % 1'000'000);
    EXPECT_LE(m.apic(1).cr8(), 15);
  }
}

TEST(Lapic, PostersFromOtherThreads) {
  Machine m(2);
  std::atomic<bool> stop{false};
  std::thread poster([&] {
    for (u32 i = 0; i < 20000; ++i) {
      m.write(0, 0x310, 1u << 24);
      m.write(0, 0x300, 0x20 + i % 0xe0);
    }
    stop = true;
  });
  int taken = 0;
  while (!stop || m.apic(1).highest_pending() >= 0) {
    if (m.take(1) >= 0) {
      ++taken;
      m.eoi(1);
    }
    m.write(1, 0xd0, static_cast<u32>(taken) << 24);
  }
  poster.join();
  while (m.take(1) >= 0) m.eoi(1);
  EXPECT_GT(taken, 0);
}

} // namespace
} // namespace ring3::x86
