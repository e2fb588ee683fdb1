// SPDX-License-Identifier: Apache-2.0
#include "pv_guest.h"

#include <thread>

namespace ring3::x86::test {
namespace {

// A guest with one interrupt handler, in x2APIC mode.
class PvEoiGuest : public PvGuest {
 protected:
  static constexpr u64 bit_at = data_at;
  static constexpr u64 idt_at = 0x9000;
  static constexpr u64 gdt_at = 0xa000;
  static constexpr u64 handler_at = 0x5000;
  static constexpr u8 vector = 0x40;

  void boot(u64 pv_eoi = bit_at | 1) {
    start(1, true);
    ASSERT_TRUE(set_msr(0x1b, 0xfee00d00));
    ASSERT_TRUE(set_msr(0x80f, 0x1ff));
    ASSERT_TRUE(set_msr(MSR_KVM_PV_EOI_EN, pv_eoi));
    put<u64>(gdt_at + 8, 0x00af9b000000ffff);
    put<u64>(gdt_at + 16, 0x00cf93000000ffff);
    for (u64 v = 0; v < 256; ++v) {
      put<u64>(idt_at + 16 * v, u64{0x8e00} << 32 | u64{8} << 16 | handler_at);
      put<u64>(idt_at + 16 * v + 8, 0);
    }
  }
  void enter_with_tables(u64 rip) {
    enter(0, rip);
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
    s.gdt.base = gdt_at;
    s.gdt.limit = 23;
    s.idt.base = idt_at;
    s.idt.limit = 4095;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  }
  void interrupt(u8 v = vector) {
    kvm_msi msi{};
    msi.address_lo = 0xfee00000;
    msi.data = v;
    ASSERT_EQ(vm_->signal_msi(msi), 1);
  }
  // Interrupts on, then an endless loop that the interrupt's handler leaves.
  void take_interrupt(const Code& handler) {
    code(Code().raw({0xfb, 0xeb, 0xfe}));
    code(handler, handler_at);
    enter_with_tables(code_at);
    interrupt();
    ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  }
  bool in_service(u8 v = vector) { return (get_msr(0x810 + v / 32u) >> (v & 31) & 1) != 0; }
  static Code read_bit() { return Code().rbx(bit_at).raw({0x8a, 0x03}); } // mov al, [bit]
};

TEST_F(PvEoiGuest, ClearingTheBitEndsTheInterrupt) {
  boot();
  // btr dword [rbx], 0; setc al; out
  take_interrupt(Code().rbx(bit_at).raw({0x0f, 0xba, 0x33, 0x00, 0x0f, 0x92, 0xc0}).exit());
  EXPECT_EQ(reg_rax() & 0xff, 1u) << "offered";
  EXPECT_FALSE(in_service());
  EXPECT_EQ(get<u8>(bit_at), 0);
}

TEST_F(PvEoiGuest, TheOfferEndsWithTheStayInTheGuest) {
  boot();
  take_interrupt(read_bit().exit());
  EXPECT_EQ(reg_rax() & 0xff, 1u);
  EXPECT_TRUE(in_service());
  EXPECT_EQ(get<u8>(bit_at), 0) << "a VMM that saves the guest now finds nothing half done";
}

TEST_F(PvEoiGuest, TheApicsRegisterStillWorks) {
  boot();
  // wrmsr EOI, then the bit: withdrawn, and nothing in service.
  take_interrupt(Code().wrmsr(0x80b, 0).rbx(bit_at).raw({0x8a, 0x03}).exit());
  EXPECT_EQ(reg_rax() & 0xff, 0u);
  EXPECT_FALSE(in_service());
}

TEST_F(PvEoiGuest, RegistersShowAnInterruptThatTheBitHasEnded) {
  boot();
  // and byte [rbx], 0; rdmsr ISR (vector 0x40 is bit 0 of its third word); out
  take_interrupt(Code().rbx(bit_at).raw({0x80, 0x23, 0x00}).rdmsr(0x812).exit());
  EXPECT_EQ(reg_rax() & 1, 0u);
}

TEST_F(PvEoiGuest, NoOfferIfTheIoApicHasToHearOfTheEnd) {
  boot();
  code(Code().raw({0xfb, 0xeb, 0xfe}));
  code(read_bit().exit(), handler_at);
  enter_with_tables(code_at);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = vector | 1 << 15 | 1 << 14; // level-triggered
  ASSERT_EQ(vm_->signal_msi(msi), 1);
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(reg_rax() & 0xff, 0u);
}

TEST_F(PvEoiGuest, NoOfferWhileAnotherInterruptWaits) {
  boot();
  code(Code().raw({0xfb, 0xeb, 0xfe}));
  code(read_bit().exit(), handler_at);
  enter_with_tables(code_at);
  interrupt(0x40);
  interrupt(0x41); // of the same class: waits
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(reg_rax() & 0xff, 0u);
  EXPECT_TRUE(in_service(0x41));
}

TEST_F(PvEoiGuest, AHaltedGuestIsWokenByTheNextInterruptOfTheSameClass) {
  boot();
  // The handler ends the first interrupt by the bit and halts; the second, a timer's, must come through.
  code(Code().raw({0xfb, 0xeb, 0xfe}));
  code(Code().rbx(bit_at).raw({0x80, 0x23, 0x00}).wrmsr(0x838, 1000).raw({0xfb, 0xf4}).exit(), handler_at);
  code(Code().exit(), 0x6000);
  put<u64>(idt_at + 16 * 0x41, u64{0x8e00} << 32 | u64{8} << 16 | 0x6000);
  ASSERT_TRUE(set_msr(0x832, 0x41)); // one-shot
  ASSERT_TRUE(set_msr(0x83e, 0xb));
  enter_with_tables(code_at);
  interrupt();
  std::atomic<bool> done{false};
  std::thread time([&] {
    while (!done) {
      clock_->now += 1'000'000;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
  done = true;
  time.join();
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  EXPECT_GE(r.rip, 0x6000u);
}

TEST_F(PvEoiGuest, IsOffUnlessEnabled) {
  boot(bit_at);
  take_interrupt(read_bit().exit());
  EXPECT_EQ(reg_rax() & 0xff, 0u);
  EXPECT_TRUE(in_service());
}

} // namespace
} // namespace ring3::x86::test
