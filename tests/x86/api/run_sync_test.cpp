// SPDX-License-Identifier: Apache-2.0
// What passes through kvm_run besides exits: synchronised registers (api.rst 6.74), and interrupts from
// controllers in user space.
#include "../pv/pv_guest.h"
#include "x86/api/capabilities.h"
#include "x86/cpu/msr_table.h"

#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u64 handler_at = 0x4000;

class RunSync : public PvGuest {
 protected:
  kvm_run& page() { return vcpu_[0]->run_page(); }
  // vector -> handler_at
  void make_handler(unsigned vector) {
    constexpr u64 gdt_at = 0x6000;
    constexpr u64 idt_at = 0x5000;
    put<u64>(gdt_at + 8, 0x00af9b000000ffff);
    put<u64>(gdt_at + 16, 0x00cf93000000ffff);
    put<u64>(idt_at + 16 * vector, handler_at | u64{8} << 16 | u64{0x8e00} << 32);
    put<u64>(idt_at + 16 * vector + 8, 0);
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
    s.idt.base = idt_at;
    s.idt.limit = 16 * 256 - 1;
    s.gdt.base = gdt_at;
    s.gdt.limit = 23;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  }
  void split(u32 pins = 24) {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_SPLIT_IRQCHIP;
    cap.args[0] = pins;
    ASSERT_EQ(vm_->enable_capability(cap), 0);
  }
};

TEST_F(RunSync, WantedRegistersAreShownAndDirtyOnesTaken) {
  start();
  code(Code().raw({0x48, 0xff, 0xc3}).exit().raw({0x48, 0xff, 0xc3}).exit()); // inc rbx; out; twice
  page().kvm_valid_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().s.regs.regs.rbx, 1u);
  EXPECT_EQ(page().s.regs.sregs.cr3, tables_at);
  EXPECT_NE(page().s.regs.events.flags, 0u);
  page().s.regs.regs.rbx = 41;
  page().s.regs.sregs.cr2 = 0x1234;
  page().kvm_dirty_regs = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS;
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().s.regs.regs.rbx, 42u);
  EXPECT_EQ(page().s.regs.sregs.cr2, 0x1234u);
  EXPECT_EQ(page().kvm_dirty_regs, 0u);
}

TEST_F(RunSync, NothingIsShownUnasked) {
  start();
  page().s.regs.regs.rbx = 0xdead;
  code(Code().exit());
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().s.regs.regs.rbx, 0xdeadu);
}

TEST_F(RunSync, UnknownSetsAndBadStatesAreRefused) {
  start();
  code(Code().exit());
  page().kvm_valid_regs = u64{1} << 31;
  EXPECT_EQ(vcpu_[0]->run(), -EINVAL);
  page().kvm_valid_regs = 0;
  page().kvm_dirty_regs = 8;
  EXPECT_EQ(vcpu_[0]->run(), -EINVAL);
  page().kvm_dirty_regs = KVM_SYNC_X86_SREGS;
  vcpu_[0]->get_sregs(page().s.regs.sregs);
  page().s.regs.sregs.cr4 = 0; // long mode without PAE
  EXPECT_EQ(vcpu_[0]->run(), -EINVAL);
  EXPECT_EQ(page().kvm_dirty_regs, u64{KVM_SYNC_X86_SREGS});
  page().kvm_dirty_regs = KVM_SYNC_X86_EVENTS;
  page().s.regs.events = {};
  page().s.regs.events.exception.injected = 1;
  page().s.regs.events.exception.nr = 32;
  EXPECT_EQ(vcpu_[0]->run(), -EINVAL);
  page().kvm_dirty_regs = 0;
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(RunSync, Cr8IsTheVmmsWithoutALocalApic) {
  start();
  page().cr8 = 16;
  EXPECT_EQ(vcpu_[0]->run(), -EINVAL);
  page().cr8 = 5;
  // mov rax, cr8; out; then mov cr8, 7; mov cr8, 3 (lower: an exit); out
  code(Code()
           .raw({0x44, 0x0f, 0x20, 0xc0})
           .exit()
           .rax(7)
           .raw({0x44, 0x0f, 0x22, 0xc0})
           .rax(3)
           .raw({0x44, 0x0f, 0x22, 0xc0})
           .exit());
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(reg_rax(), 5u);
  EXPECT_EQ(page().cr8, 5u);
  ASSERT_EQ(run(), KVM_EXIT_SET_TPR);
  EXPECT_EQ(page().cr8, 3u);
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(RunSync, ApicBaseIsKeptForALocalApicInUserSpace) {
  start();
  code(Code().wrmsr(msr::apic_base, 0xfed00900).exit());
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().apic_base, 0xfed00900u);
  EXPECT_EQ(get_msr(msr::apic_base), 0xfed00900u);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  EXPECT_EQ(s.apic_base, 0xfed00900u);
  s.apic_base = 0x400; // x2APIC without enable
  EXPECT_EQ(vcpu_[0]->set_sregs(s), -EINVAL);
}

TEST_F(RunSync, TheInterruptWindowOpensWhenTheGuestIsReady) {
  start();
  make_handler(0x20);
  code(Code().raw({0x90, 0xfb, 0x90, 0x90, 0xeb, 0xfe})); // nop; sti; nop; nop; jmp $
  code(Code().exit(), handler_at);
  page().request_interrupt_window = 1;
  ASSERT_EQ(run(), KVM_EXIT_IRQ_WINDOW_OPEN);
  EXPECT_EQ(page().ready_for_interrupt_injection, 1);
  EXPECT_EQ(page().if_flag, 1);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  EXPECT_EQ(r.rip, code_at + 3) << "behind the instruction in the shadow of STI";
  ASSERT_EQ(run(), KVM_EXIT_IRQ_WINDOW_OPEN) << "as long as it is asked for";
  ASSERT_EQ(vcpu_[0]->interrupt(0x20), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().if_flag, 0);
  EXPECT_EQ(page().ready_for_interrupt_injection, 0);
}

TEST_F(RunSync, AnOpenInstructionIsFinishedBeforeTheWindow) {
  start();
  code(Code().raw({0xe4, 0x11, 0x90, 0x90}).exit()); // in al, 0x11
  enter(0, code_at, 0, 0x202);
  ASSERT_EQ(run(), KVM_EXIT_IO);
  reinterpret_cast<u8*>(&page())[page().io.data_offset] = 0x42;
  page().request_interrupt_window = 1;
  ASSERT_EQ(run(), KVM_EXIT_IRQ_WINDOW_OPEN);
  EXPECT_EQ(reg_rax() & 0xff, 0x42u);
}

TEST_F(RunSync, AQueuedInterruptIsShownUntilItIsDelivered) {
  start();
  ASSERT_EQ(vcpu_[0]->interrupt(0x35), 0);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  EXPECT_EQ(s.interrupt_bitmap[0], u64{1} << 0x35);
  kvm_vcpu_events e{};
  vcpu_[0]->get_vcpu_events(e);
  EXPECT_EQ(e.interrupt.injected, 1);
  EXPECT_EQ(e.interrupt.nr, 0x35);
  e.interrupt.injected = 0;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  vcpu_[0]->get_sregs(s);
  EXPECT_EQ(s.interrupt_bitmap[0], 0u);
}

TEST_F(RunSync, AHaltIsOnlyAnExitWithoutALocalApic) {
  start();
  code(Code().hlt().exit());
  ASSERT_EQ(run(), KVM_EXIT_HLT);
  kvm_mp_state state{};
  ASSERT_EQ(vcpu_[0]->get_mp_state(state), 0);
  EXPECT_EQ(state.mp_state, u32{KVM_MP_STATE_RUNNABLE});
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(RunSync, WithAllChipsHereThereIsNothingToInject) {
  start(1, true);
  EXPECT_EQ(vcpu_[0]->interrupt(0x20), -ENXIO);
  EXPECT_EQ(vcpu_[0]->interrupt(256), -EINVAL);
  page().request_interrupt_window = 1;
  code(Code().exit());
  enter(0, code_at, 0, 0x202);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(page().ready_for_interrupt_injection, 1);
}

TEST_F(RunSync, SplitTakesAnInterruptOfThePicThroughLint0) {
  split();
  start();
  make_handler(0x30);
  code(Code().raw({0xf4})); // hlt
  code(Code().exit(), handler_at);
  enter(0, code_at, 0, 0x202);
  make_handler(0x30);
  ASSERT_EQ(vcpu_[0]->interrupt(0x30), 0);
  EXPECT_EQ(vcpu_[0]->interrupt(0x31), -EEXIST);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  EXPECT_EQ(s.interrupt_bitmap[0], 0u) << "it is with the APIC, not yet with the CPU";
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(vcpu_[0]->interrupt(0x31), 0);
}

TEST_F(RunSync, SplitReportsTheEndOfLevelTriggeredPins) {
  split(4);
  start();
  kvm_lapic_state state{};
  ASSERT_EQ(vcpu_[0]->get_lapic(state), 0);
  state.regs[0xf1] |= 1; // spurious vector register: software enable
  ASSERT_EQ(vcpu_[0]->set_lapic(state), 0);
  kvm_irq_routing_entry route{};
  route.gsi = 2;
  route.type = KVM_IRQ_ROUTING_MSI;
  route.u.msi.address_lo = 0xfee00000;
  route.u.msi.data = 0x8000 | 0x51; // level
  ASSERT_EQ(vm_->set_gsi_routing({&route, 1}), 0);
  make_handler(0x51);
  const Code eoi = Code().wrmsr(0x80b, 0).exit();
  code(Code().raw({0xeb, 0xfe}));
  code(eoi, handler_at);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  s.apic_base |= 0xc00; // x2APIC
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  enter(0, code_at, 0, 0x202);
  make_handler(0x51);
  ASSERT_EQ(vm_->irq_line(2, true), 1);
  ASSERT_EQ(run(), KVM_EXIT_IOAPIC_EOI);
  EXPECT_EQ(page().eoi.vector, 0x51);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  // The same vector from a GSI that is no pin: nobody's business.
  route.gsi = 4;
  ASSERT_EQ(vm_->set_gsi_routing({&route, 1}), 0);
  enter(0, code_at, 0, 0x202);
  make_handler(0x51);
  ASSERT_EQ(vm_->irq_line(4, true), 1);
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(RunSync, SplitHasNoPicIoApicOrPit) {
  split();
  EXPECT_EQ(vm_->create_irqchip(), -EEXIST);
  kvm_pit_config pit{};
  EXPECT_EQ(vm_->create_pit(pit), -ENOENT);
  kvm_irqchip chip{};
  EXPECT_EQ(vm_->get_irqchip(chip), -ENXIO);
  EXPECT_EQ(vm_->set_irqchip(chip), -ENXIO);
  kvm_irq_routing_entry route{};
  route.type = KVM_IRQ_ROUTING_IRQCHIP;
  EXPECT_EQ(vm_->set_gsi_routing({&route, 1}), -EINVAL);
  EXPECT_EQ(vm_->irq_line(3, true), -1) << "no route";
  kvm_irqfd irqfd{};
  irqfd.flags = KVM_IRQFD_FLAG_RESAMPLE;
  EXPECT_EQ(vm_->irqfd(irqfd), -EINVAL);
  start();
  // in al, 0x20 goes to user space.
  code(Code().raw({0xe4, 0x20}));
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(RunSync, SplitComesBeforeEverythingElse) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_SPLIT_IRQCHIP;
  cap.args[0] = 4097;
  EXPECT_EQ(vm_->enable_capability(cap), -EINVAL);
  start();
  cap.args[0] = 24;
  EXPECT_EQ(vm_->enable_capability(cap), -EEXIST);
  EXPECT_EQ(check_extension(KVM_CAP_SPLIT_IRQCHIP, vm_.get()), 1);
  EXPECT_EQ(check_extension(KVM_CAP_SYNC_REGS, vm_.get()), 7);
}

} // namespace
} // namespace ring3::x86::test
