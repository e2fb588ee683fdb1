// SPDX-License-Identifier: Apache-2.0
#include "pv_guest.h"

#include <string_view>
#include <thread>

namespace ring3::x86::test {
namespace {

class HypercallGuest : public PvGuest {
 protected:
  s64 call(u64 number, u64 a0 = 0, u64 a1 = 0, u64 a2 = 0, u64 a3 = 0, unsigned ring = 0) {
    // The result to RCX, because the exit needs AL.
    EXPECT_EQ(run(Code().call(number, a0, a1, a2, a3).raw({0x48, 0x89, 0xc1}).exit(), ring),
              u32{KVM_EXIT_IO});
    kvm_regs r{};
    vcpu_[0]->get_regs(r);
    return static_cast<s64>(r.rcx);
  }
  void wait_until_it_sleeps(u32 i) {
    while (vcpu_[i]->generic().stats().blocking.value() == 0) std::this_thread::yield();
  }
};

TEST_F(HypercallGuest, UnknownOnesAreRefused) {
  start(1, true);
  for (const u64 number : {0u, 2u, 3u, 4u, 6u, 7u, 8u, 13u, 0xffffffffu})
    EXPECT_EQ(call(number), -KVM_ENOSYS) << number;
  EXPECT_EQ(call(KVM_HC_VAPIC_POLL_IRQ), 0);
}

TEST_F(HypercallGuest, AreForTheKernelOnly) {
  start(1, true);
  // IN and OUT need IOPL 3 outside ring 0.
  code(Code().call(KVM_HC_VAPIC_POLL_IRQ).exit());
  enter(0, code_at, 3, 0x3002);
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(static_cast<s64>(reg_rax()), -KVM_EPERM);
}

TEST_F(HypercallGuest, TakeAndGive32BitsOutside64BitMode) {
  start();
  // Compatibility mode is 32-bit code in a segment without L.
  code(Code().raw({0xb8, 9, 0, 0, 0, 0xbb, 0, 0, 0x20, 0, 0xb9, 0, 0, 0, 0, 0x0f, 0x01, 0xc1, 0xf4}));
  enter(0, code_at);
  without_long_mode();
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0xffffffffu & static_cast<u64>(-KVM_EFAULT)) << "KVM_HC_CLOCK_PAIRING above memory";
}

TEST_F(HypercallGuest, ClockPairingIsOneMoment) {
  start();
  constexpr u64 at = data_at + 8;
  clock_->now += 123'456;
  clock_->wall += 123'456'789;
  ASSERT_EQ(run(Code().wrmsr(0x10, 1'000'000).hlt()), u32{KVM_EXIT_HLT});
  clock_->now += 5;
  std::memset(memory_ + at, 0xff, sizeof(kvm_clock_pairing));
  code(Code().call(KVM_HC_CLOCK_PAIRING, at, KVM_CLOCK_PAIRING_WALLCLOCK).hlt());
  enter(0, code_at);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
  const auto p = get<kvm_clock_pairing>(at);
  EXPECT_EQ(p.sec, 1'700'000'000);
  EXPECT_EQ(p.nsec, 123'456'789);
  EXPECT_EQ(p.tsc, 1'000'005u);
  EXPECT_EQ(p.flags, 0u);
  EXPECT_EQ(p.pad[8], 0u);
  EXPECT_EQ(call(KVM_HC_CLOCK_PAIRING, at, 1), -KVM_EOPNOTSUPP);
  EXPECT_EQ(call(KVM_HC_CLOCK_PAIRING, memory_size, 0), -KVM_EFAULT);
  EXPECT_EQ(call(KVM_HC_CLOCK_PAIRING, memory_size - 8, 0), -KVM_EFAULT);
}

TEST_F(HypercallGuest, SendIpiCountsWhoTookIt) {
  start(3, true);
  const auto apic_on = [&](u32 i) {
    ASSERT_TRUE(set_msr(0x1b, 0xfee00000 | 0xc00 | (i == 0 ? 0x100 : 0), i));
  };
  for (u32 i = 0; i < 3; ++i) apic_on(i);
  for (u32 i = 0; i < 3; ++i) ASSERT_TRUE(set_msr(0x80f, 0x1ff, i));
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 0b111, 0, 0, 0x40), 3);
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 0b11, 0, 1, 0x40), 2) << "from APIC ID 1 on";
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 0b1000, 0, 0, 0x40), 0) << "nobody";
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 0, 1, 0xffffffff, 0x40), 0) << "no way around the end of the numbers";
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 1, 0, 0, 0x40 | 1 << 11), -KVM_EINVAL) << "logical";
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 1, 0, 0, 0x40 | 1 << 18), -KVM_EINVAL) << "to self";
  EXPECT_EQ(get_msr(0x822, 2) & 1, 1u) << "vector 0x40 is in the IRR";
}

TEST_F(HypercallGuest, SendIpiIn32BitCodeHasMapsOf32Bits) {
  start(1, true);
  kvm::VcpuApi* other = nullptr;
  ASSERT_EQ(vm_->create_vcpu(32, other), 0);
  vcpu_.push_back(static_cast<Vcpu*>(other));
  ASSERT_EQ(other->set_cpuid(cpuid_), 0);
  ASSERT_TRUE(set_msr(0x1b, 0xfee00c00, 1));
  ASSERT_TRUE(set_msr(0x80f, 0x1ff, 1));
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 0, 1, 0, 0x40), 0) << "in 64-bit code that is ID 64";
  // mov eax, 10; xor ebx, ebx; mov ecx, 1; xor edx, edx; mov esi, 0x40; vmcall; mov ecx, eax; out
  code(Code()
           .raw({0xb8, 10, 0, 0, 0, 0x31, 0xdb, 0xb9, 1, 0, 0, 0, 0x31, 0xd2, 0xbe, 0x40, 0, 0, 0})
           .raw({0x0f, 0x01, 0xc1, 0x89, 0xc1})
           .exit());
  enter(0, code_at);
  without_long_mode();
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  EXPECT_EQ(r.rcx, 1u);
}

TEST_F(HypercallGuest, WithoutInterruptControllerThereIsNobodyToReach) {
  start();
  EXPECT_EQ(call(KVM_HC_SEND_IPI, 1, 0, 0, 0x40), -KVM_EOPNOTSUPP);
  EXPECT_EQ(call(KVM_HC_KICK_CPU, 0, 0), 0);
  EXPECT_EQ(call(KVM_HC_SCHED_YIELD, 0), 0);
}

TEST_F(HypercallGuest, KickEndsAHalt) {
  start(2, true);
  // vCPU 1 halts with interrupts off; after that it exits.
  code(Code().hlt().exit(), 0x4000);
  enter(1, 0x4000);
  std::thread halted([this] { EXPECT_EQ(run(1), u32{KVM_EXIT_IO}); });
  wait_until_it_sleeps(1);
  EXPECT_EQ(call(KVM_HC_KICK_CPU, 0, 1), 0);
  halted.join();
  // The kick of a vCPU that runs ends its next halt, and only that.
  EXPECT_EQ(call(KVM_HC_KICK_CPU, 0, 1), 0);
  enter(1, 0x4000);
  EXPECT_EQ(run(1), u32{KVM_EXIT_IO});
  enter(1, 0x4000);
  std::thread again([this] {
    EXPECT_EQ(vcpu_[1]->run(), -EINTR);
    kvm_mp_state m{};
    EXPECT_EQ(vcpu_[1]->get_mp_state(m), 0);
    EXPECT_EQ(m.mp_state, u32{KVM_MP_STATE_HALTED});
  });
  wait_until_it_sleeps(1);
  vcpu_[1]->kick();
  again.join();
  EXPECT_EQ(call(KVM_HC_KICK_CPU, 0, 4095), 0) << "nobody there";
  EXPECT_EQ(call(KVM_HC_KICK_CPU, 0, ~u64{0}), 0);
}

TEST_F(HypercallGuest, ObeyCpuidWhenTheVmmWantsIt) {
  start(1, true);
  for (kvm_cpuid_entry2& e : cpuid_) {
    if (e.function == KVM_CPUID_FEATURES) e.eax = 0;
  }
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  EXPECT_EQ(call(KVM_HC_SCHED_YIELD, 0), 0);
  vcpu_[0]->enforce_pv_cpuid(true);
  for (const u64 number : {KVM_HC_KICK_CPU, KVM_HC_SEND_IPI, KVM_HC_SCHED_YIELD})
    EXPECT_EQ(call(number), -KVM_ENOSYS) << number;
}

// --- KVM_HC_MAP_GPA_RANGE: the VMM's ---

TEST_F(HypercallGuest, MapGpaRangeIsRefusedUnlessTheVmmTakesIt) {
  start();
  EXPECT_EQ(call(KVM_HC_MAP_GPA_RANGE, 0x1000, 1, 0x10), -KVM_ENOSYS);
  vm_->settings().hypercall_exits = 1u << KVM_HC_MAP_GPA_RANGE;
  EXPECT_EQ(call(KVM_HC_MAP_GPA_RANGE, 0x1001, 1, 0x10), -KVM_EINVAL);
  EXPECT_EQ(call(KVM_HC_MAP_GPA_RANGE, 0x1000, 0, 0x10), -KVM_EINVAL);
  EXPECT_EQ(call(KVM_HC_MAP_GPA_RANGE, 0x1000, ~u64{0}, 0x10), -KVM_EINVAL);
}

TEST_F(HypercallGuest, MapGpaRangeIsAnExitWithAnAnswer) {
  start();
  vm_->settings().hypercall_exits = 1u << KVM_HC_MAP_GPA_RANGE;
  // Twice, so that one answer is not taken for the other.
  const Code c = Code()
                     .call(KVM_HC_MAP_GPA_RANGE, 0x5000, 3, 0x10)
                     .raw({0x48, 0x89, 0xc7}) // mov rdi, rax
                     .call(KVM_HC_MAP_GPA_RANGE, 0x6000, 4, 0)
                     .hlt();
  ASSERT_EQ(run(c), u32{KVM_EXIT_HYPERCALL});
  kvm_run& r = vcpu_[0]->run_page();
  EXPECT_EQ(r.hypercall.nr, u64{KVM_HC_MAP_GPA_RANGE});
  EXPECT_EQ(r.hypercall.args[0], 0x5000u);
  EXPECT_EQ(r.hypercall.args[1], 3u);
  EXPECT_EQ(r.hypercall.args[2], 0x10u);
  EXPECT_EQ(r.hypercall.longmode, 1u);
  r.hypercall.ret = 77;
  ASSERT_EQ(run(), u32{KVM_EXIT_HYPERCALL});
  EXPECT_EQ(r.hypercall.args[0], 0x6000u);
  r.hypercall.ret = static_cast<u64>(-KVM_EINVAL);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  kvm_regs g{};
  vcpu_[0]->get_regs(g);
  EXPECT_EQ(g.rdi, 77u);
  EXPECT_EQ(static_cast<s64>(g.rax), -KVM_EINVAL);
}

// --- the other vendor's instruction ---

class FixHypercall : public PvGuest, public testing::WithParamInterface<const char*> {
 protected:
  static constexpr u8 vmcall[] = {0x0f, 0x01, 0xc1};
  static constexpr u8 vmmcall[] = {0x0f, 0x01, 0xd9};
  bool amd() const { return std::string_view(GetParam()) == "max-amd"; }
  const u8* own() const { return amd() ? vmmcall : vmcall; }
  const u8* other() const { return amd() ? vmcall : vmmcall; }
  Code program() const {
    const u8* const o = other();
    return Code().rax(KVM_HC_VAPIC_POLL_IRQ).raw({o[0], o[1], o[2]}).hlt();
  }
  static constexpr u64 instruction_at = code_at + 10;
};

TEST_P(FixHypercall, IsReplacedAndExecuted) {
  start(1, false, GetParam());
  EXPECT_EQ(run(program()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
  EXPECT_EQ(std::memcmp(memory_ + instruction_at, own(), 3), 0);
  enter(0, code_at);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
}

TEST_P(FixHypercall, IsUndefinedWithoutTheQuirk) {
  start(1, false, GetParam());
  vm_->settings().disabled_quirks = KVM_X86_QUIRK_FIX_HYPERCALL_INSN;
  EXPECT_EQ(run(program()), u32{KVM_EXIT_SHUTDOWN});
  EXPECT_EQ(std::memcmp(memory_ + instruction_at, other(), 3), 0);
}

TEST_P(FixHypercall, NeedsAPageThatTheGuestMayWrite) {
  start(1, false, GetParam());
  put<u64>(tables_at + 0x3000 + 8, code_at | 5); // read-only
  EXPECT_EQ(run(program()), u32{KVM_EXIT_SHUTDOWN});
  kvm_sregs s{};
  ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
  EXPECT_EQ(s.cr2, instruction_at) << "#PF";
  EXPECT_EQ(std::memcmp(memory_ + instruction_at, other(), 3), 0);
}

TEST_P(FixHypercall, WorksAcrossPages) {
  start(1, false, GetParam());
  code(program(), 0x3000 - 12); // two bytes on one page, one on the next
  enter(0, 0x3000 - 12);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
  EXPECT_EQ(std::memcmp(memory_ + 0x2ffe, own(), 3), 0);
  // One of the two not writable: nothing is written.
  code(program(), 0x3000 - 12);
  put<u64>(tables_at + 0x3000 + 3 * 8, 0x3000 | 5);
  enter(0, 0x3000 - 12);
  kvm_sregs s{};
  ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0); // no stale translations
  EXPECT_EQ(run(), u32{KVM_EXIT_SHUTDOWN});
  EXPECT_EQ(std::memcmp(memory_ + 0x2ffe, other(), 3), 0);
}

TEST_P(FixHypercall, HappensInsideACodeSegmentWithABase) {
  start(1, false, GetParam());
  // Compatibility mode, CS.base 0x10000: mov eax, 1; the other instruction; hlt.
  const u8* const o = other();
  code(Code().raw({0xb8, 1, 0, 0, 0, o[0], o[1], o[2], 0xf4}), 0x10000 + 0x200);
  enter(0, 0x200);
  without_long_mode(0x10000);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
  EXPECT_EQ(std::memcmp(memory_ + 0x10205, own(), 3), 0);
}

INSTANTIATE_TEST_SUITE_P(Vendors, FixHypercall, testing::Values("max", "max-amd"),
                         [](const auto& v) { return std::string_view(v.param) == "max" ? "Intel" : "AMD"; });

} // namespace
} // namespace ring3::x86::test
