// SPDX-License-Identifier: Apache-2.0
#include "device/acpi_pm.h"
#include "device/fw_cfg.h"
#include "device/i8042.h"
#include "device/pc_testdev.h"
#include "device/platform_ports.h"

#include "fake_clock.h"

#include <gtest/gtest.h>
#include <vector>

namespace ring3::device {
namespace {

struct Events {
  EventSink sink() {
    return [this](const MachineEvent& e) { all.push_back(e); };
  }
  std::vector<MachineEvent> all;
};

TEST(AcpiPm, TimerCountsAtItsFrequency) {
  FakeClock clock;
  AcpiPm pm(clock, {}, {}, {});
  EXPECT_EQ(pm.read(8, 4), 0u);
  clock.advance(1'000'000'000);
  EXPECT_EQ(pm.read(8, 4), AcpiPm::timer_hz);
  EXPECT_EQ(pm.read(9, 1), AcpiPm::timer_hz >> 8 & 0xff);
}

TEST(AcpiPm, TimerCarryRaisesTheSci) {
  FakeClock clock;
  bool sci = false;
  AcpiPm pm(clock, [&](bool l) { sci = l; }, {}, {});
  EXPECT_FALSE(pm.next_deadline_ns());
  pm.write(2, 2, 1);
  const auto deadline = pm.next_deadline_ns();
  ASSERT_TRUE(deadline);
  clock.advance(*deadline - clock.now);
  pm.service();
  EXPECT_TRUE(sci);
  EXPECT_EQ(pm.read(8, 4), 0x80000000u);
  EXPECT_EQ(pm.read(0, 2), 1u);
  pm.write(0, 2, 1);
  EXPECT_FALSE(sci);
}

TEST(AcpiPm, SleepTypeFivePowersOff) {
  FakeClock clock;
  Events events;
  AcpiPm pm(clock, {}, {}, events.sink());
  EXPECT_EQ(pm.read(4, 2), 1u); // SCI_EN
  pm.write(4, 2, 0x2000 | 3 << 10);
  EXPECT_TRUE(events.all.empty());
  pm.write(4, 2, 0x2000 | 5 << 10);
  ASSERT_EQ(events.all.size(), 1u);
  EXPECT_EQ(events.all[0].kind, MachineEvent::Kind::power_off);
}

TEST(I8042, SelfTestCommandByteAndReset) {
  Events events;
  I8042 controller(events.sink());
  Device &data = controller.data_port(), &command = controller.command_port();
  EXPECT_EQ(command.read(0, 1) & 1, 0u);
  command.write(0, 1, 0xaa);
  EXPECT_EQ(command.read(0, 1) & 1, 1u);
  EXPECT_EQ(data.read(0, 1), 0x55u);
  command.write(0, 1, 0x60);
  data.write(0, 1, 0x47);
  command.write(0, 1, 0x20);
  EXPECT_EQ(data.read(0, 1), 0x47u);
  EXPECT_TRUE(events.all.empty());
  command.write(0, 1, 0xfe);
  ASSERT_EQ(events.all.size(), 1u);
  EXPECT_EQ(events.all[0].kind, MachineEvent::Kind::reset);
}

TEST(I8042, AnswersAreBounded) {
  I8042 controller({});
  for (int i = 0; i < 1000; ++i) controller.command_port().write(0, 1, 0xaa);
  int n = 0;
  while (controller.command_port().read(0, 1) & 1) {
    controller.data_port().read(0, 1);
    ++n;
  }
  EXPECT_LE(n, 16);
}

TEST(SystemControlPortA, ResetsOnTheRisingEdgeOfBitZero) {
  Events events;
  SystemControlPortA port(events.sink());
  port.write(0, 1, 2);
  EXPECT_TRUE(events.all.empty());
  port.write(0, 1, 3);
  EXPECT_EQ(events.all.size(), 1u);
}

TEST(PciConfigPorts, EmptyBusAndReset) {
  Events events;
  PciConfigPorts pci(events.sink());
  pci.write(0, 4, 0x80000000);
  EXPECT_EQ(pci.read(0, 4), 0x80000000u);
  EXPECT_EQ(static_cast<u32>(pci.read(4, 4)), 0xffffffffu);
  pci.write(1, 1, 2);
  EXPECT_TRUE(events.all.empty());
  pci.write(1, 1, 6);
  EXPECT_EQ(events.all.size(), 1u);
}

TEST(FwCfg, StreamsItems) {
  FwCfg cfg;
  cfg.set_u16(FwCfg::nb_cpus, 0x1234);
  cfg.write(0, 2, FwCfg::nb_cpus);
  EXPECT_EQ(cfg.read(1, 1), 0x34u);
  EXPECT_EQ(cfg.read(1, 1), 0x12u);
  EXPECT_EQ(cfg.read(1, 1), 0u);
  cfg.write(0, 2, FwCfg::signature);
  EXPECT_EQ(cfg.read(1, 1), u64{'Q'});
  cfg.write(0, 2, 0xfff0);
  EXPECT_EQ(cfg.read(1, 1), 0u);
}

TEST(TestDevices, PortsLinesAndMemory) {
  TestIoPorts ports;
  ports.write(0, 4, 0x11223344);
  ports.write(1, 1, 0xaa);
  EXPECT_EQ(ports.read(0, 4), 0x1122aa44u);
  EXPECT_EQ(ports.read(2, 2), 0x1122u);
  ports.write(4, 4, 0x1000); // flush
  EXPECT_EQ(ports.read(0, 4), 0x1122aa44u);
  std::vector<std::pair<u32, bool>> irqs;
  TestIrqLines lines([&](u32 gsi, bool level) { irqs.emplace_back(gsi, level); });
  lines.write(14, 1, 1);
  EXPECT_EQ(irqs, (std::vector<std::pair<u32, bool>>{{14, true}}));
  TestIoMemory memory;
  memory.write(0xfff8, 8, 0x0102030405060708);
  EXPECT_EQ(memory.read(0xfffc, 4), 0x01020304u);
}

} // namespace
} // namespace ring3::device
