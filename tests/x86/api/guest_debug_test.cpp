// SPDX-License-Identifier: Apache-2.0
// A debugger outside the guest: KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG (api.rst 4.87).
#include "../pv/pv_guest.h"
#include "x86/api/capabilities.h"

#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u64 no_dr6_bits = 0xffff0ff0;
constexpr u64 handler_at = 0x4000;
constexpr u64 idt_at = 0x5000;

class GuestDebugTest : public PvGuest {
 protected:
  int debug(u32 control, u64 dr7 = 0x400, u64 db0 = 0) {
    kvm_guest_debug d{};
    d.control = control;
    d.arch.debugreg[0] = db0;
    d.arch.debugreg[7] = dr7;
    return vcpu_[0]->set_guest_debug(d);
  }
  // The exit at `pc` for `exception`.
  void expect_stop(u64 pc, u32 exception, u64 dr6) {
    ASSERT_EQ(run(), KVM_EXIT_DEBUG);
    const kvm_debug_exit_arch& a = vcpu_[0]->run_page().debug.arch;
    EXPECT_EQ(a.exception, exception);
    EXPECT_EQ(a.pc, pc);
    EXPECT_EQ(a.dr6, dr6);
    EXPECT_EQ(rip(), pc);
  }
  u64 rip() {
    kvm_regs r{};
    vcpu_[0]->get_regs(r);
    return r.rip;
  }
  void set_rip(u64 at) {
    kvm_regs r{};
    vcpu_[0]->get_regs(r);
    r.rip = at;
    vcpu_[0]->set_regs(r);
  }
  // Every exception goes to `handler_at`, through a GDT with the segments of PvGuest::enter().
  void make_handlers() {
    constexpr u64 gdt_at = 0x6000;
    put<u64>(gdt_at + 8, 0x00af9b000000ffff);
    put<u64>(gdt_at + 16, 0x00cf93000000ffff);
    for (u64 v = 0; v < 32; ++v) {
      put<u64>(idt_at + 16 * v, handler_at | u64{8} << 16 | u64{0x8e00} << 32);
      put<u64>(idt_at + 16 * v + 8, 0);
    }
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
    s.idt.base = idt_at;
    s.idt.limit = 32 * 16 - 1;
    s.gdt.base = gdt_at;
    s.gdt.limit = 23;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  }
  kvm_debugregs debug_registers() {
    kvm_debugregs d{};
    vcpu_[0]->get_debugregs(d);
    return d;
  }
};

TEST_F(GuestDebugTest, SingleStepStopsAfterEachInstruction) {
  code(Code().raw({0x90, 0x48, 0x31, 0xc0, 0x0f, 0xa2, 0x90}));
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), 0);
  expect_stop(code_at + 1, 1, no_dr6_bits | 1 << 14);
  expect_stop(code_at + 4, 1, no_dr6_bits | 1 << 14);
  expect_stop(code_at + 6, 1, no_dr6_bits | 1 << 14);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  EXPECT_EQ(r.rflags & 0x100, 0u) << "the guest's TF is its own";
  EXPECT_EQ(debug_registers().dr6, no_dr6_bits) << "and so is its DR6";
}

TEST_F(GuestDebugTest, SingleStepGoesOverAnAnsweredAccess) {
  code(Code().raw({0xe4, 0x11, 0x90})); // in al, 0x11
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), 0);
  ASSERT_EQ(run(), KVM_EXIT_IO);
  kvm_run& r = vcpu_[0]->run_page();
  reinterpret_cast<u8*>(&r)[r.io.data_offset] = 0x5a;
  expect_stop(code_at + 2, 1, no_dr6_bits | 1 << 14);
  EXPECT_EQ(reg_rax() & 0xff, 0x5au);
}

TEST_F(GuestDebugTest, SingleStepEntersTheHandlerOfAFault) {
  code(Code().raw({0x0f, 0x0b})); // ud2
  start();
  make_handlers();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), 0);
  expect_stop(handler_at, 1, no_dr6_bits | 1 << 14);
}

TEST_F(GuestDebugTest, StepOverHltLeavesItHalted) {
  code(Code().raw({0xf4, 0x90}));
  start(1, true);
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), 0);
  expect_stop(code_at + 1, 1, no_dr6_bits | 1 << 14);
  kvm_mp_state state{};
  vcpu_[0]->get_mp_state(state);
  EXPECT_EQ(state.mp_state, u32{KVM_MP_STATE_HALTED});
}

TEST_F(GuestDebugTest, StepOverHltWithoutLocalApicIsAHalt) {
  code(Code().raw({0xf4, 0x90}));
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP), 0);
  EXPECT_EQ(run(), KVM_EXIT_HLT);
}

TEST_F(GuestDebugTest, Int3IsTheDebuggersOnlyOnRequest) {
  code(Code().raw({0x90, 0xcc, 0x90}));
  start();
  make_handlers();
  code(Code().exit(), handler_at);
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP), 0);
  expect_stop(code_at + 1, 3, 0);
  ASSERT_EQ(debug(0), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(get<u64>(0x8000 - 40), code_at + 2) << "the guest's handler returns behind the INT3";
}

TEST_F(GuestDebugTest, AnInt3OfTheGuestsCanBeGivenBack) {
  code(Code().raw({0xcc, 0x90}));
  start();
  make_handlers();
  code(Code().exit(), handler_at);
  constexpr u32 on = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP;
  ASSERT_EQ(debug(on), 0);
  expect_stop(code_at, 3, 0);
  ASSERT_EQ(debug(on | KVM_GUESTDBG_INJECT_BP), 0);
  EXPECT_EQ(debug(on | KVM_GUESTDBG_INJECT_BP), -EBUSY) << "one is on its way";
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(get<u64>(0x8000 - 40), code_at + 1);
}

TEST_F(GuestDebugTest, AnInjectedDebugExceptionGoesToTheGuest) {
  code(Code().raw({0x90}));
  start();
  make_handlers();
  code(Code().exit(), handler_at);
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(get<u64>(0x8000 - 40), code_at);
}

TEST_F(GuestDebugTest, CodeBreakpointStopsBefore) {
  code(Code().raw({0x90, 0x90, 0x90}));
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0x402, code_at + 2), 0);
  expect_stop(code_at + 2, 1, no_dr6_bits | 1);
  EXPECT_EQ(vcpu_[0]->run_page().debug.arch.dr7, 0x402u);
  expect_stop(code_at + 2, 1, no_dr6_bits | 1); // nobody has removed it
}

TEST_F(GuestDebugTest, WatchpointStopsBehindTheAccess) {
  code(Code().rax(0x7000).raw({0x48, 0x89, 0x00, 0x90})); // mov [rax], rax
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0xd0402, 0x7004), 0);
  expect_stop(code_at + 13, 1, no_dr6_bits | 1);
  EXPECT_EQ(get<u64>(0x7000), 0x7000u);
}

TEST_F(GuestDebugTest, TheGuestsOwnBreakpointsRestMeanwhile) {
  code(Code().raw({0x90, 0x90}).exit());
  start();
  kvm_debugregs own{};
  own.db[0] = code_at + 1;
  own.dr6 = no_dr6_bits;
  own.dr7 = 0x402;
  ASSERT_EQ(vcpu_[0]->set_debugregs(own), 0);
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0x400), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  const kvm_debugregs now = debug_registers();
  EXPECT_EQ(now.db[0], code_at + 1);
  EXPECT_EQ(now.dr7, 0x402u);
  // Without a debugger they are the guest's again.
  ASSERT_EQ(debug(0), 0);
  enter(0, code_at);
  EXPECT_EQ(run(), KVM_EXIT_SHUTDOWN) << "#DB without a handler";
}

TEST_F(GuestDebugTest, DebuggersGeneralDetectGuardsTheRegisters) {
  code(Code().raw({0x0f, 0x21, 0xc0}).exit()); // mov rax, dr0
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 0x400 | 1 << 13), 0);
  expect_stop(code_at, 1, no_dr6_bits | 1 << 13);
  ASSERT_EQ(debug(0), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(GuestDebugTest, BlockedInterruptsComeWhenTheStepIsOver) {
  code(Code().raw({0x90, 0x90, 0x90}));
  start();
  make_handlers();
  code(Code().exit(), handler_at);
  ASSERT_EQ(vcpu_[0]->nmi(), 0);
  ASSERT_EQ(debug(KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ), 0);
  expect_stop(code_at + 1, 1, no_dr6_bits | 1 << 14);
  expect_stop(code_at + 2, 1, no_dr6_bits | 1 << 14);
  ASSERT_EQ(debug(0), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(get<u64>(0x8000 - 40), code_at + 2);
}

TEST_F(GuestDebugTest, NothingIsOnWithoutEnable) {
  code(Code().raw({0x90, 0x90}).exit());
  start();
  ASSERT_EQ(debug(KVM_GUESTDBG_SINGLESTEP), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(check_extension(KVM_CAP_SET_GUEST_DEBUG, vm_.get()), 1);
  EXPECT_EQ(check_extension(KVM_CAP_SET_GUEST_DEBUG2, vm_.get()), 0x1f0003);
}

// A guest's own code breakpoint behind MOV SS: no debugger is there.
class BreakpointAfterMovSs : public GuestDebugTest, public testing::WithParamInterface<const char*> {};

TEST_P(BreakpointAfterMovSs, IsTheVendors) {
  start(1, false, GetParam());
  make_handlers();
  code(Code().hlt(), handler_at);
  kvm_debugregs d{};
  d.db[0] = code_at + 2;
  d.dr6 = no_dr6_bits;
  d.dr7 = 0x402;
  ASSERT_EQ(vcpu_[0]->set_debugregs(d), 0);
  code(Code().raw({0x8e, 0xd0}).raw({0x31, 0xc0}).exit()); // mov ss, eax; xor eax, eax
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  r.rax = 0x10;
  vcpu_[0]->set_regs(r);
  const bool amd = std::string_view(GetParam()) == "max-amd";
  EXPECT_EQ(run(), amd ? u32{KVM_EXIT_HLT} : u32{KVM_EXIT_IO});
}
INSTANTIATE_TEST_SUITE_P(Vendors, BreakpointAfterMovSs, testing::Values("max", "max-amd"));

} // namespace
} // namespace ring3::x86::test
