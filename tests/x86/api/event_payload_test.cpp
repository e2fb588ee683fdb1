// SPDX-License-Identifier: Apache-2.0
// Exceptions that have not happened yet, and triple faults, in KVM_GET/SET_VCPU_EVENTS (api.rst 4.31, 4.32).
#include "../pv/pv_guest.h"

#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u64 handler_at = 0x4000;

class EventPayload : public PvGuest {
 protected:
  int enable(u32 capability, u64 on = 1) {
    kvm_enable_cap cap{};
    cap.cap = capability;
    cap.args[0] = on;
    return vm_->enable_capability(cap);
  }
  void prepare() {
    start();
    constexpr u64 gdt_at = 0x6000;
    constexpr u64 idt_at = 0x5000;
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
    s.cr2 = 0x77;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
    code(Code().exit(), handler_at);
  }
  kvm_vcpu_events events() {
    kvm_vcpu_events e{};
    vcpu_[0]->get_vcpu_events(e);
    return e;
  }
  kvm_vcpu_events pending(u8 vector, u64 payload) {
    kvm_vcpu_events e{};
    e.flags = KVM_VCPUEVENT_VALID_PAYLOAD;
    e.exception.pending = 1;
    e.exception.nr = vector;
    e.exception_has_payload = 1;
    e.exception_payload = payload;
    return e;
  }
  u64 cr2() {
    kvm_sregs s{};
    vcpu_[0]->get_sregs(s);
    return s.cr2;
  }
};

TEST_F(EventPayload, AreUnknownUntilTheyAreSwitchedOn) {
  prepare();
  EXPECT_EQ(events().flags & (KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT), 0u);
  EXPECT_EQ(vcpu_[0]->set_vcpu_events(pending(14, 1)), -EINVAL);
  kvm_vcpu_events e{};
  e.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  EXPECT_EQ(vcpu_[0]->set_vcpu_events(e), -EINVAL);
  e.flags = 0;
  e.exception.pending = 1; // without its flag it means nothing
  e.exception.nr = 14;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  EXPECT_EQ(events().exception.injected, 0);
}

TEST_F(EventPayload, APageFaultsPayloadIsCr2WhenItHappens) {
  prepare();
  ASSERT_EQ(enable(KVM_CAP_EXCEPTION_PAYLOAD), 0);
  kvm_vcpu_events e = pending(14, 0xabcd);
  e.exception.has_error_code = 1;
  e.exception.error_code = 2;
  e.exception.injected = 1; // of the two, pending counts
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  const kvm_vcpu_events now = events();
  EXPECT_EQ(now.exception.pending, 1);
  EXPECT_EQ(now.exception.injected, 0);
  EXPECT_EQ(now.exception_has_payload, 1);
  EXPECT_EQ(now.exception_payload, 0xabcdu);
  EXPECT_EQ(cr2(), 0x77u);
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(cr2(), 0xabcdu);
  EXPECT_EQ(get<u64>(0x8000 - 48), 2u) << "the error code";
  EXPECT_NE(get<u64>(0x8000 - 24) & 0x10000, 0u) << "RF, as for any fault";
  EXPECT_EQ(events().exception.pending, 0);
}

TEST_F(EventPayload, AnInjectedExceptionHasHappenedAlready) {
  prepare();
  kvm_vcpu_events e{};
  e.exception.injected = 1;
  e.exception.nr = 14;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  ASSERT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(cr2(), 0x77u);
  EXPECT_EQ(get<u64>(0x8000 - 24) & 0x10000, 0u);
}

TEST_F(EventPayload, InjectedDebugExceptionLeavesDr6Alone) {
  prepare();
  kvm_debugregs d{};
  d.dr6 = 0xffff0ff3;
  d.dr7 = 0x2400; // GD
  ASSERT_EQ(vcpu_[0]->set_debugregs(d), 0);
  kvm_vcpu_events e{};
  e.exception.injected = 1;
  e.exception.nr = 1;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  ASSERT_EQ(run(), KVM_EXIT_IO);
  vcpu_[0]->get_debugregs(d);
  EXPECT_EQ(d.dr6, 0xffff0ff3u);
  EXPECT_EQ(d.dr7, 0x2400u);
}

TEST_F(EventPayload, ADebugExceptionsPayloadGoesIntoDr6) {
  prepare();
  ASSERT_EQ(enable(KVM_CAP_EXCEPTION_PAYLOAD), 0);
  kvm_debugregs d{};
  d.dr6 = 0xffff0ff3;
  d.dr7 = 0x2400;
  ASSERT_EQ(vcpu_[0]->set_debugregs(d), 0);
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(pending(1, 0x5004)), 0); // BS, B2, and "enabled breakpoint"
  ASSERT_EQ(run(), KVM_EXIT_IO);
  vcpu_[0]->get_debugregs(d);
  EXPECT_EQ(d.dr6, 0xffff4ff4u);
  EXPECT_EQ(d.dr7, 0x400u);
}

TEST_F(EventPayload, WritingRegistersDropsWhatIsPending) {
  prepare();
  ASSERT_EQ(enable(KVM_CAP_EXCEPTION_PAYLOAD), 0);
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(pending(14, 1)), 0);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  ASSERT_EQ(vcpu_[0]->set_regs(r), 0);
  EXPECT_EQ(events().exception.pending, 0);
}

TEST_F(EventPayload, ATripleFaultEndsTheNextRun) {
  prepare();
  code(Code().exit());
  ASSERT_EQ(enable(KVM_CAP_X86_TRIPLE_FAULT_EVENT), 0);
  kvm_vcpu_events e{};
  e.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
  e.triple_fault.pending = 1;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  EXPECT_EQ(events().triple_fault.pending, 1);
  EXPECT_NE(events().flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT, 0u);
  EXPECT_EQ(run(), KVM_EXIT_SHUTDOWN);
  EXPECT_EQ(events().triple_fault.pending, 0);
  e.triple_fault.pending = 1;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  e.triple_fault.pending = 0; // taken back
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

} // namespace
} // namespace ring3::x86::test
