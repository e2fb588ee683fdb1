// SPDX-License-Identifier: Apache-2.0
// What KVM_ENABLE_CAP changes about a VM, and that it is offered (api.rst 7).
#include "x86/api/capabilities.h"

#include "../pv/pv_guest.h"
#include "x86/api/emulation_failure.h"
#include "x86/cpu/msr_table.h"

#include <cerrno>
#include <thread>

namespace ring3::x86::test {
namespace {

class CapabilityTest : public PvGuest {
 protected:
  int enable(u32 capability, u64 argument) {
    kvm_enable_cap cap{};
    cap.cap = capability;
    cap.args[0] = argument;
    return vm_->enable_capability(cap);
  }
};

// --- MSR_PLATFORM_INFO ---

TEST_F(CapabilityTest, PlatformInfoCanBeHidden) {
  for (const char* model : {"max", "max-amd"}) {
    SCOPED_TRACE(model);
    vm_ = std::make_unique<Vm>(std::make_unique<MovableClock>());
    vcpu_.clear();
    start(1, false, model);
    EXPECT_EQ(check_extension(KVM_CAP_MSR_PLATFORM_INFO, nullptr), 1);
    ASSERT_TRUE(set_msr(msr::platform_info, 0xff00));
    const Code read = Code().rdmsr(msr::platform_info).hlt();
    EXPECT_EQ(run(read), u32{KVM_EXIT_HLT});
    EXPECT_EQ(reg_rax(), 0xff00u);
    ASSERT_EQ(enable(KVM_CAP_MSR_PLATFORM_INFO, 0), 0);
    EXPECT_EQ(run(read), u32{KVM_EXIT_SHUTDOWN}) << "#GP without an IDT";
    EXPECT_EQ(get_msr(msr::platform_info), 0xff00u) << "the VMM sees it all the same";
    ASSERT_EQ(enable(KVM_CAP_MSR_PLATFORM_INFO, 1), 0);
    EXPECT_EQ(run(read), u32{KVM_EXIT_HLT});
  }
}

// --- KVM_X86_QUIRK_SLOT_ZAP_ALL ---

// Whatever it says: what a slot that went or moved had is out of reach, also for a guest that has just used
// it.
TEST_F(CapabilityTest, SlotThatGoesIsOutOfReachWithAndWithoutTheQuirk) {
  constexpr u64 other_at = 0x180000;
  std::vector<u8> behind(8192, 0x5a);
  const auto aligned = (reinterpret_cast<u64>(behind.data()) + 4095) & ~u64{4095};
  const auto place = [&](u64 address, u64 size) {
    kvm_userspace_memory_region slot{};
    slot.slot = 1;
    slot.guest_phys_addr = address;
    slot.memory_size = size;
    slot.userspace_addr = aligned;
    return vm_->set_user_memory_region(slot);
  };
  const u64 slots = kvm::quirk_slot_zap_all;
  EXPECT_EQ(static_cast<u64>(check_extension(KVM_CAP_DISABLE_QUIRKS2, vm_.get())) & slots, slots);
  start();
  for (const bool disabled : {false, true}) {
    SCOPED_TRACE(disabled);
    if (disabled) {
      ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, slots), 0);
    }
    kvm_userspace_memory_region low{}; // half of what start() mapped: the rest is for the other slot
    low.guest_phys_addr = 0;
    ASSERT_EQ(vm_->set_user_memory_region(low), 0);
    low.memory_size = other_at;
    low.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(vm_->set_user_memory_region(low), 0);
    ASSERT_EQ(place(other_at, 4096), 0);
    enter(0, code_at);
    const Code read = Code().raw({0x8a, 0x04, 0x25, 0x00, 0x00, 0x18, 0x00}).hlt(); // mov al, [other_at]
    EXPECT_EQ(run(read), u32{KVM_EXIT_HLT});
    EXPECT_EQ(reg_rax() & 0xff, 0x5au);
    ASSERT_EQ(place(other_at + 0x1000, 4096), 0) << "moves it";
    enter(0, code_at);
    EXPECT_EQ(run(read), u32{KVM_EXIT_MMIO});
    EXPECT_EQ(run(), u32{KVM_EXIT_HLT}) << "with an answer";
    ASSERT_EQ(place(other_at, 0), 0);
  }
}

// --- KVM_CAP_X86_APIC_BUS_CYCLES_NS ---

TEST_F(CapabilityTest, ApicBusCycle) {
  EXPECT_EQ(check_extension(kvm::cap_x86_apic_bus_cycles_ns, nullptr), 1);
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, 0), -EINVAL);
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, u64{1} << 26), -EINVAL)
      << "no room for the longest count";
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, 40), -ENXIO);
  ASSERT_EQ(vm_->create_irqchip(), 0);
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, (u64{1} << 25)), 0);
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, 40), 0);
  kvm::VcpuApi* v = nullptr;
  ASSERT_EQ(vm_->create_vcpu(0, v), 0);
  EXPECT_EQ(enable(kvm::cap_x86_apic_bus_cycles_ns, 40), -EINVAL);
  auto* vcpu = static_cast<Vcpu*>(v);
  const u32 enable_it = 0x1ff, divide_by_1 = 0xb, count = 1000;
  u32 left = 0;
  vcpu->lapic()->mmio_write(0xf0, &enable_it, 4);
  vcpu->lapic()->mmio_write(0x3e0, &divide_by_1, 4);
  vcpu->lapic()->mmio_write(0x380, &count, 4);
  clock_->now += 4000;
  vcpu->lapic()->mmio_read(0x390, &left, 4);
  EXPECT_EQ(left, 900u);
}

// --- MONITOR, MWAIT and CPUID ---

class MwaitTest : public CapabilityTest {
 protected:
  void start_without_mwait() {
    start();
    for (kvm_cpuid_entry2& e : cpuid_) {
      if (e.function == 1) e.ecx &= ~(1U << feature::monitor.bit);
    }
    ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  }
  static Code monitor() { return Code().rax(data_at).rcx(0).rdx(0).raw({0x0f, 0x01, 0xc8}).hlt(); }
  static Code mwait() { return Code().rax(0).rcx(0).raw({0x0f, 0x01, 0xc9}).hlt(); }
  bool cpuid_has_mwait() {
    for (const kvm_cpuid_entry2& e : vcpu_[0]->cpuid_entries()) {
      if (e.function == 1) return (e.ecx >> feature::monitor.bit & 1) != 0;
    }
    return false;
  }
};

TEST_F(MwaitTest, TheyNeverFaultUnlessTheQuirkIsOff) {
  start_without_mwait();
  EXPECT_EQ(run(monitor()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_HLT});
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS), 0);
  EXPECT_EQ(run(monitor()), u32{KVM_EXIT_SHUTDOWN});
  enter(0, code_at);
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_SHUTDOWN});
}

TEST_F(MwaitTest, QuirkComesBackWhenItIsNotNamed) {
  start_without_mwait();
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS), 0);
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_SHUTDOWN});
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT), 0);
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, u64{1} << 63), -EINVAL);
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_HLT}) << "what is refused changes nothing";
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS), 0);
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_SHUTDOWN});
}

TEST_F(MwaitTest, WithTheirCpuidBitTheyWorkAnyway) {
  start();
  for (kvm_cpuid_entry2& e : cpuid_) {
    if (e.function == 1) e.ecx |= 1U << feature::monitor.bit;
  }
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS), 0);
  EXPECT_EQ(run(monitor()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(run(mwait(), 3), u32{KVM_EXIT_SHUTDOWN}) << "ring 0 only";
}

TEST_F(MwaitTest, CpuidFollowsMiscEnableOnceThatQuirkIsOff) {
  start_without_mwait();
  ASSERT_TRUE(set_msr(msr::misc_enable, misc_enable_mwait));
  EXPECT_FALSE(cpuid_has_mwait());
  ASSERT_TRUE(set_msr(msr::misc_enable, 0));
  EXPECT_EQ(get_msr(msr::misc_enable), 0u) << "the VMM's word counts for the read-only bits too";
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2,
                   KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT | KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS),
            0);
  ASSERT_TRUE(set_msr(msr::misc_enable, misc_enable_mwait));
  EXPECT_TRUE(cpuid_has_mwait());
  EXPECT_EQ(run(mwait()), u32{KVM_EXIT_HLT});
  // The guest's own write counts as well, and what is decoded already.
  EXPECT_EQ(run(Code().wrmsr(msr::misc_enable, 0).raw({0xeb, 0x00}).rcx(0).raw({0x0f, 0x01, 0xc9}).hlt()),
            u32{KVM_EXIT_SHUTDOWN});
  EXPECT_FALSE(cpuid_has_mwait());
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  EXPECT_FALSE(cpuid_has_mwait());
}

TEST_F(MwaitTest, MiscEnableHasTheBitOnlyWithSse3) {
  start_without_mwait();
  ASSERT_EQ(enable(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT), 0);
  ASSERT_TRUE(set_msr(msr::misc_enable, 0));
  for (kvm_cpuid_entry2& e : cpuid_) {
    if (e.function == 1) e.ecx &= ~(1U << feature::sse3.bit);
  }
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  EXPECT_FALSE(set_msr(msr::misc_enable, misc_enable_mwait)) << "not without SSE3";
  EXPECT_EQ(get_msr(msr::misc_enable), 0u);
}

// --- KVM_CAP_X86_DISABLE_EXITS ---

TEST_F(CapabilityTest, HltStaysInTheGuest) {
  start();
  EXPECT_EQ(check_extension(KVM_CAP_X86_DISABLE_EXITS, nullptr),
            KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_HLT);
  EXPECT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, 1 << 4), -EINVAL);
  ASSERT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_MWAIT), 0) << "KVM takes what it lacks";
  code(Code().hlt().rax(0x55).exit());
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  ASSERT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT), 0);
  enter(0, code_at);
  std::jthread vmm([this] {
    while (vcpu_[0]->generic().stats().blocking.value() == 0) std::this_thread::yield();
    vcpu_[0]->kick();
  });
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  vmm.join();
  kvm_mp_state state{};
  vcpu_[0]->get_mp_state(state);
  EXPECT_EQ(state.mp_state, u32{KVM_MP_STATE_RUNNABLE});
  // An event ends it: here an NMI, of which nothing is left without an IDT.
  vcpu_[0]->nmi();
  EXPECT_EQ(run(), u32{KVM_EXIT_SHUTDOWN});
}

TEST_F(CapabilityTest, PvUnhaltGoesWithTheHltExit) {
  start();
  const auto leaves = kvm_cpuid_leaves();
  cpuid_.insert(cpuid_.end(), leaves.begin(), leaves.end());
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  EXPECT_NE(kvm_features_in(vcpu_[0]->cpuid_entries()) & 1U << KVM_FEATURE_PV_UNHALT, 0u);
  ASSERT_EQ(enable(KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT), 0);
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  const u32 left = kvm_features_in(vcpu_[0]->cpuid_entries());
  EXPECT_EQ(left, kvm_features_in(cpuid_) & ~(1U << KVM_FEATURE_PV_UNHALT));
}

// --- KVM_CAP_EXIT_ON_EMULATION_FAILURE ---

TEST_F(CapabilityTest, WhatKvmDoesNotEmulateIsLeftToUserSpace) {
  start();
  put<u64>(tables_at + 0x3000 + 8 * 0x180, u64{0x9000'0000} | 7);                  // a device at 0x180000
  const Code fld = Code().raw({0xdb, 0xe3}).rax(0x180000).raw({0xd9, 0x00}).hlt(); // fninit; fld dword [rax]
  ASSERT_EQ(run(fld), u32{KVM_EXIT_MMIO}) << "ours can";
  vcpu_[0]->run_page().mmio.data[3] = 0x40; // 2.0
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});

  EXPECT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 2), -EINVAL);
  ASSERT_EQ(enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1), 0);
  ASSERT_EQ(run(fld), u32{KVM_EXIT_INTERNAL_ERROR});
  const auto& failure = vcpu_[0]->run_page().emulation_failure;
  EXPECT_EQ(failure.suberror, u32{KVM_INTERNAL_ERROR_EMULATION});
  EXPECT_EQ(failure.ndata, 3u);
  EXPECT_EQ(failure.flags, u64{KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES});
  EXPECT_EQ(failure.insn_size, 15);
  EXPECT_EQ(failure.insn_bytes[0], 0xd9);
  EXPECT_EQ(failure.insn_bytes[2], 0xf4);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  EXPECT_EQ(r.rip, code_at + 12) << "nothing was done";
  EXPECT_EQ(run(), u32{KVM_EXIT_INTERNAL_ERROR}) << "and nothing will be";
  r.rip += 2;
  vcpu_[0]->set_regs(r);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT}) << "user space stepped over it";
  EXPECT_EQ(run(Code().rax(0x180000).raw({0x8b, 0x00}).hlt()), u32{KVM_EXIT_MMIO}) << "MOV is known";
}

TEST_F(CapabilityTest, AnInstructionInADeviceIsAFailureWithoutBytes) {
  start();
  put<u64>(tables_at + 0x3000 + 8 * 0x180, u64{0x9000'0000} | 7);
  enter(0, 0x180000);
  ASSERT_EQ(run(), u32{KVM_EXIT_INTERNAL_ERROR});
  EXPECT_EQ(vcpu_[0]->run_page().emulation_failure.ndata, 1u);
  EXPECT_EQ(vcpu_[0]->run_page().emulation_failure.flags, 0u);
}

TEST(KvmEmulates, ByOpcode) {
  struct Case {
    std::initializer_list<u8> code;
    bool known;
  };
  const Case cases[] = {
      {{0x8b, 0x00}, true},                         // mov
      {{0xf0, 0x0f, 0xc1, 0x00}, true},             // lock xadd
      {{0x48, 0x0f, 0xc7, 0x08}, false},            // cmpxchg16b
      {{0x0f, 0xc7, 0x08}, true},                   // cmpxchg8b
      {{0xd9, 0x00}, false},                        // fld
      {{0xd9, 0x38}, true},                         // fnstcw
      {{0xdd, 0x38}, true},                         // fnstsw
      {{0xdd, 0x30}, false},                        // fnsave
      {{0x0f, 0x10, 0x00}, true},                   // movups
      {{0xf3, 0x0f, 0x10, 0x00}, false},            // movss
      {{0x66, 0x0f, 0x6f, 0x00}, true},             // movdqa
      {{0xf3, 0x0f, 0x7f, 0x00}, true},             // movdqu
      {{0x66, 0x0f, 0xe7, 0x00}, true},             // movntdq
      {{0x0f, 0xe7, 0x00}, false},                  // movntq
      {{0x0f, 0x58, 0x00}, false},                  // addps
      {{0x0f, 0x38, 0xf0, 0x00}, true},             // movbe
      {{0xf2, 0x0f, 0x38, 0xf0, 0x00}, false},      // crc32
      {{0x66, 0x0f, 0x3a, 0x22, 0x00, 0x00}, false} // pinsrd
      ,
      {{0xc5, 0xf8, 0x10, 0x00}, false}, // vmovups
      {{0x62, 0xf1, 0x7c, 0x48, 0x10, 0x00}, false},
      {{0xf3, 0x0f, 0xb8, 0x00}, false}, // popcnt
      {{0x0f, 0xb6, 0x00}, true},        // movzx
      {{0x0f, 0xae, 0x20}, false},       // xsave
      {{0x0f, 0xae, 0x00}, true},        // fxsave
  };
  for (const Case& c : cases) {
    const std::vector<u8> code(c.code);
    EXPECT_EQ(kvm_emulates(code, true), c.known) << +code[0] << ' ' << +code[1];
  }
  const u8 lds[] = {0xc5, 0x00};
  EXPECT_TRUE(kvm_emulates(lds, false));
  EXPECT_TRUE(kvm_emulates({}, true)) << "no bytes: no opinion";
}

} // namespace
} // namespace ring3::x86::test
