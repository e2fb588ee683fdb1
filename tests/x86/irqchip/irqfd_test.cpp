// SPDX-License-Identifier: Apache-2.0
// irqfds and the interrupt chips together: who raises a line, and who lets it go.
#include "kvm/irqfd.h"
#include "machine.h"

#include <chrono>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

namespace ring3::x86::test {
namespace {

class IrqFdMachine : public testing::Test {
 protected:
  IrqFdMachine() {
    m_.chip.set_irqfds(irqfds_);
    EXPECT_EQ(m_.chip.create_pit(kvm_pit_config{}), 0) << "its EOIs must not get mixed up with ours";
  }
  ~IrqFdMachine() override {
    close(event_);
    close(back_);
  }
  void assign(u32 gsi, bool resample) {
    kvm_irqfd r{};
    r.fd = static_cast<u32>(event_);
    r.gsi = gsi;
    r.flags = resample ? KVM_IRQFD_FLAG_RESAMPLE : 0;
    r.resamplefd = static_cast<u32>(back_);
    ASSERT_EQ(irqfds_.control(r), 0);
  }
  void deassign(u32 gsi) {
    kvm_irqfd r{};
    r.fd = static_cast<u32>(event_);
    r.gsi = gsi;
    r.flags = KVM_IRQFD_FLAG_DEASSIGN;
    ASSERT_EQ(irqfds_.control(r), 0);
  }
  void signal() const {
    const u64 one = 1;
    ASSERT_EQ(write(event_, &one, sizeof one), 8);
  }
  u64 resamples() const {
    u64 n = 0;
    return read(back_, &n, sizeof n) == 8 ? n : 0;
  }
  template <class Condition> static bool eventually(Condition condition) {
    for (int i = 0; i < 5000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  int next_vector() {
    eventually([this] { return m_.apic().highest_pending() >= 0; });
    return m_.take();
  }

  Machine m_;
  kvm::IrqFds irqfds_{[this](u32 gsi, bool level, kvm::IrqFds::Source source) {
                        m_.chip.set_irq_line(gsi, level,
                                             source == kvm::IrqFds::Source::resampled
                                                 ? IrqChip::resampler_source
                                                 : IrqChip::user_source);
                      },
                      [this] { m_.chip.resampled_changed(); }};
  int event_ = eventfd(0, EFD_NONBLOCK);
  int back_ = eventfd(0, EFD_NONBLOCK);
};

constexpr u64 level = bit(15);

TEST_F(IrqFdMachine, AnEdgeInterruptsOnceASignal) {
  m_.redirect(10, 0x50);
  assign(10, false);
  for (int i = 0; i < 3; ++i) {
    signal();
    EXPECT_EQ(next_vector(), 0x50);
    m_.eoi();
    EXPECT_EQ(m_.apic().highest_pending(), -1);
  }
  EXPECT_EQ(resamples(), 0u);
}

TEST_F(IrqFdMachine, AResampledLevelInterruptsOnceAndReportsTheEnd) {
  m_.redirect(20, 0x60 | level);
  assign(20, true);
  for (int i = 0; i < 3; ++i) {
    signal();
    EXPECT_EQ(next_vector(), 0x60);
    EXPECT_EQ(resamples(), 0u);
    m_.eoi();
    EXPECT_EQ(m_.apic().highest_pending(), -1) << "the line fell before it was asked again";
    EXPECT_EQ(resamples(), 1u);
  }
}

TEST_F(IrqFdMachine, SomebodyElseMayHoldTheSameLine) {
  m_.redirect(20, 0x60 | level);
  assign(20, true);
  m_.chip.set_irq_line(20, true);
  EXPECT_EQ(next_vector(), 0x60);
  m_.eoi();
  EXPECT_EQ(resamples(), 1u) << "as KVM: whoever raised it";
  EXPECT_EQ(next_vector(), 0x60) << "user space still holds the line";
  m_.chip.set_irq_line(20, false);
  m_.eoi();
  EXPECT_EQ(m_.apic().highest_pending(), -1);
}

TEST_F(IrqFdMachine, TheEndOfAnEdgeIsSeenToo) {
  m_.redirect(10, 0x50);
  assign(10, true);
  for (int i = 0; i < 3; ++i) {
    signal();
    EXPECT_EQ(next_vector(), 0x50);
    m_.eoi();
    EXPECT_EQ(resamples(), 1u);
  }
  m_.redirect(10, 0x51); // the guest moves the interrupt
  signal();
  EXPECT_EQ(next_vector(), 0x51);
  m_.eoi();
  EXPECT_EQ(resamples(), 1u);
}

TEST_F(IrqFdMachine, ThePicResamplesToo) {
  m_.init_pic();
  m_.out(0x4d1, 0x08); // line 11: level
  assign(11, true);
  signal();
  ASSERT_TRUE(eventually([this] { return m_.chip.pic_pending(); }));
  EXPECT_EQ(m_.chip.pic_acknowledge(), 0x2b);
  EXPECT_EQ(resamples(), 0u);
  m_.out(0xa0, 0x20);
  m_.out(0x20, 0x20);
  EXPECT_EQ(resamples(), 1u);
  EXPECT_FALSE(m_.chip.pic_pending());
}

TEST_F(IrqFdMachine, DeassignmentLetsTheLineGo) {
  m_.redirect(20, 0x60 | level);
  assign(20, true);
  signal();
  EXPECT_EQ(next_vector(), 0x60);
  deassign(20);
  m_.eoi();
  EXPECT_EQ(m_.apic().highest_pending(), -1);
  EXPECT_EQ(resamples(), 0u);
}

TEST_F(IrqFdMachine, ASignalMayRaceWithTheEnd) {
  m_.redirect(20, 0x60 | level);
  assign(20, true);
  constexpr u64 signals = 300;
  std::thread device([this] {
    // A device that has work again as soon as the guest has acknowledged.
    for (u64 done = 0; done < signals; ++done) {
      signal();
      while (resamples() == 0) std::this_thread::yield();
    }
  });
  u64 taken = 0;
  while (taken < signals) {
    if (m_.apic().highest_pending() < 0) {
      std::this_thread::yield();
      continue;
    }
    ASSERT_EQ(m_.take(), 0x60);
    ++taken;
    m_.eoi();
  }
  device.join();
  EXPECT_EQ(m_.apic().highest_pending(), -1);
}

} // namespace
} // namespace ring3::x86::test
