// SPDX-License-Identifier: Apache-2.0
// Machine checks as a VMM sets them up and reports them (api.rst 4.104 to 4.106).
#include "../pv/pv_guest.h"
#include "x86/api/capabilities.h"
#include "x86/cpu/machine_check.h"
#include "x86/cpu/msr_table.h"

#include <algorithm>
#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u64 full_cap = mcg::ctl_p | mcg::ser_p | mcg::cmci_p | 10;
constexpr u64 enabled = bit(60);

class MachineCheck : public PvGuest {
 protected:
  void prepare(u64 cap = full_cap, const char* model = "max") {
    start(1, true, model);
    ASSERT_EQ(vcpu_[0]->setup_mce(cap), 0);
  }
  int report(u64 status, u8 bank = 3, u64 mcg_status = 0) {
    kvm_x86_mce m{};
    m.status = status;
    m.addr = 0xabc000;
    m.misc = 0x8c;
    m.mcg_status = mcg_status;
    m.bank = bank;
    return vcpu_[0]->set_mce(m);
  }
  u64 bank(unsigned n, unsigned field_number) { return get_msr(msr::mc0_ctl + 4 * n + field_number); }
  bool guest_reads(u32 index) { return run(Code().rdmsr(index).exit()) == KVM_EXIT_IO; }
  bool guest_writes(u32 index, u64 v) { return run(Code().wrmsr(index, v).exit()) == KVM_EXIT_IO; }
  void set_cr4_mce() {
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
    s.cr4 |= 1 << 6;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  }
};

TEST_F(MachineCheck, SetupSaysWhatThereIs) {
  prepare();
  EXPECT_EQ(get_msr(msr::mcg_cap), full_cap);
  EXPECT_EQ(get_msr(msr::mcg_ctl), ~u64{0});
  EXPECT_EQ(bank(9, 0), ~u64{0});
  EXPECT_TRUE(guest_reads(msr::mc0_ctl + 4 * 9 + 3));
  EXPECT_FALSE(guest_reads(msr::mc0_ctl + 4 * 10)) << "the eleventh bank";
  EXPECT_TRUE(guest_reads(msr::mc0_ctl2 + 9));
  EXPECT_FALSE(guest_reads(msr::mc0_ctl2 + 10));
  EXPECT_FALSE(guest_writes(msr::mcg_cap, full_cap));
}

TEST_F(MachineCheck, SetupRefusesWhatThereIsNot) {
  start(1, true, "max");
  EXPECT_EQ(vcpu_[0]->setup_mce(0), -EINVAL);
  EXPECT_EQ(vcpu_[0]->setup_mce(33), -EINVAL);
  EXPECT_EQ(vcpu_[0]->setup_mce(32), 0);
  EXPECT_EQ(vcpu_[0]->setup_mce(bit(27) | 10), -EINVAL) << "LMCE";
  EXPECT_EQ(vcpu_[0]->setup_mce(0xff0000 | 10), 0) << "the count of extended registers is not looked at";
  EXPECT_EQ(check_extension(KVM_CAP_MCE, vm_.get()), 32);
}

TEST_F(MachineCheck, BeforeSetupThereAreBanksWithoutControl) {
  start(1, true);
  EXPECT_EQ(get_msr(msr::mcg_cap), 32u);
  EXPECT_FALSE(guest_reads(msr::mcg_ctl));
  EXPECT_EQ(get_msr(msr::mcg_ctl), 0u) << "a VMM may look";
  EXPECT_TRUE(set_msr(msr::mcg_ctl, 0));
  EXPECT_FALSE(set_msr(msr::mcg_ctl, ~u64{0}));
  EXPECT_FALSE(guest_reads(msr::mc0_ctl2));
  EXPECT_EQ(get_msr(msr::mc0_ctl2), 0u);
  EXPECT_FALSE(set_msr(msr::mc0_ctl2, 1));
}

TEST_F(MachineCheck, RegistersTakeWhatHardwareTakes) {
  prepare();
  EXPECT_TRUE(guest_writes(msr::mc0_ctl2, mci::cmci_enable | 0x7fff));
  EXPECT_FALSE(guest_writes(msr::mc0_ctl2, bit(29)));
  EXPECT_TRUE(guest_writes(msr::mc0_ctl, 0));
  EXPECT_TRUE(guest_writes(msr::mc0_ctl, ~u64{0} & ~bit(10)));
  EXPECT_FALSE(guest_writes(msr::mc0_ctl, 2));
  EXPECT_TRUE(guest_writes(msr::mc0_ctl + 1, 0));
  EXPECT_FALSE(guest_writes(msr::mc0_ctl + 1, 1));
  EXPECT_TRUE(set_msr(msr::mc0_ctl + 1, 1));
  EXPECT_FALSE(guest_writes(msr::mcg_ctl, 1));
}

TEST_F(MachineCheck, AmdHasNoCmciAndMayWriteStatusOnRequest) {
  prepare(mcg::ctl_p | mcg::ser_p | 6, "epyc");
  EXPECT_EQ(get_msr(msr::mcg_cap), mcg::ctl_p | 6);
  EXPECT_EQ(vcpu_[0]->setup_mce(full_cap), -EINVAL);
  EXPECT_FALSE(guest_writes(msr::mc0_ctl + 1, 1));
  EXPECT_TRUE(set_msr(msr::hwcr, bit(18)));
  EXPECT_TRUE(guest_writes(msr::mc0_ctl + 1, 1));
}

TEST_F(MachineCheck, ReportsNeedABankAndAValidStatus) {
  prepare();
  EXPECT_EQ(report(mci::uc), -EINVAL);
  EXPECT_EQ(report(mci::val, 10), -EINVAL);
  EXPECT_EQ(report(mci::val, 255), -EINVAL);
  EXPECT_EQ(report(mci::val | 5), 0);
  EXPECT_EQ(bank(3, 1), mci::val | 5);
  EXPECT_EQ(bank(3, 2), 0xabc000u);
  EXPECT_EQ(bank(3, 3), 0x8cu);
  EXPECT_EQ(report(mci::val | 6), 0);
  EXPECT_EQ(bank(3, 1), mci::val | mci::over | 6);
}

TEST_F(MachineCheck, UncorrectedErrorsAreExceptions) {
  prepare();
  set_cr4_mce();
  ASSERT_EQ(report(mci::val | mci::uc | mci::pcc | enabled, 3, mcg::mcip | 1), 0);
  EXPECT_EQ(get_msr(msr::mcg_status), mcg::mcip | 1);
  kvm_vcpu_events e{};
  vcpu_[0]->get_vcpu_events(e);
  EXPECT_EQ(e.exception.injected, 1);
  EXPECT_EQ(e.exception.nr, 18);
  // A second one while the first is in progress ends the machine.
  ASSERT_EQ(report(mci::val | mci::uc | mci::pcc | enabled, 3, mcg::mcip | 1), 0);
  EXPECT_EQ(run(), KVM_EXIT_SHUTDOWN);
}

TEST_F(MachineCheck, WithoutCr4McTheyEndTheMachine) {
  prepare();
  code(Code().exit());
  ASSERT_EQ(report(mci::val | mci::uc | mci::pcc, 3, mcg::mcip), 0);
  EXPECT_EQ(run(), KVM_EXIT_SHUTDOWN);
}

TEST_F(MachineCheck, DisabledReportsAreDropped) {
  prepare();
  code(Code().exit());
  ASSERT_TRUE(set_msr(msr::mc0_ctl + 12, 0));
  ASSERT_EQ(report(mci::val | mci::uc | mci::pcc, 3, mcg::mcip), 0);
  EXPECT_EQ(bank(3, 1), 0u);
  ASSERT_TRUE(set_msr(msr::mcg_ctl, 0));
  ASSERT_EQ(report(mci::val | mci::uc | mci::pcc, 4, mcg::mcip), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST_F(MachineCheck, ErrorsWithoutActionAreInterrupts) {
  prepare();
  const auto lvt_pending = [&] {
    kvm_lapic_state l{};
    vcpu_[0]->get_lapic(l);
    return (load_raw<u32>(l.regs + 0x200 + 0x10 * (0xa9 / 32)) >> (0xa9 % 32) & 1) != 0;
  };
  kvm_lapic_state l{};
  vcpu_[0]->get_lapic(l);
  EXPECT_EQ(load_raw<u32>(l.regs + 0x30) >> 16 & 0xff, 6u) << "seven LVT entries";
  l.regs[0xf1] |= 1;
  store_raw<u32>(l.regs + 0x2f0, 0xa9);
  ASSERT_EQ(vcpu_[0]->set_lapic(l), 0);
  constexpr u64 ucna = mci::val | mci::uc | enabled;
  ASSERT_EQ(report(ucna), 0);
  EXPECT_FALSE(lvt_pending()) << "the bank has not asked for it";
  EXPECT_EQ(bank(3, 2), 0xabc000u);
  ASSERT_TRUE(set_msr(msr::mc0_ctl2 + 3, mci::cmci_enable));
  ASSERT_EQ(report(ucna), 0);
  EXPECT_TRUE(lvt_pending());
}

TEST_F(MachineCheck, InitKeepsTheBanks) {
  prepare();
  ASSERT_EQ(report(mci::val | 5), 0);
  ASSERT_TRUE(set_msr(msr::mc0_ctl2 + 3, 7));
  vcpu_[0]->post_init();
  code(Code().exit());
  vcpu_[0]->run_page().immediate_exit = 1;
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  EXPECT_EQ(bank(3, 1), mci::val | 5);
  EXPECT_EQ(get_msr(msr::mc0_ctl2 + 3), 7u);
  EXPECT_EQ(get_msr(msr::mcg_cap), full_cap);
}

TEST(MachineCheckCapabilities, DependOnTheVendor) {
  const auto caps = [](const char* model) {
    return supported_mcg_cap(cpuid_entries(*select_cpu_model(model), 0, 1));
  };
  EXPECT_EQ(caps("max"), mcg::ctl_p | mcg::ser_p | mcg::cmci_p);
  EXPECT_EQ(caps("epyc"), mcg::ctl_p | mcg::ser_p);
}

TEST(MsrList, HoldsStateThatCanBeReadAndNoBanks) {
  const auto list = msr_indices();
  const auto has = [&](u32 index) { return std::ranges::find(list, index) != list.end(); };
  EXPECT_FALSE(has(msr::pred_cmd)) << "a command";
  EXPECT_FALSE(has(msr::platform_id)) << "a constant";
  EXPECT_FALSE(has(msr::mcg_cap));
  EXPECT_FALSE(has(msr::mc0_ctl));
  EXPECT_FALSE(has(msr::mc0_ctl2));
  EXPECT_TRUE(has(msr::mcg_status));
  EXPECT_TRUE(has(msr::power_ctl));
}

class TscOffset : public PvGuest {};

TEST_F(TscOffset, IsWhatTheVmmSays) {
  start(2);
  const u64 host = clock_->tsc();
  vcpu_[0]->set_tsc_offset(1000);
  EXPECT_EQ(vcpu_[0]->tsc_offset(), 1000u);
  EXPECT_EQ(get_msr(msr::tsc), host + 1000);
  EXPECT_EQ(get_msr(msr::tsc_adjust), 0u);
  vcpu_[0]->set_tsc_offset(-u64{5000});
  EXPECT_EQ(get_msr(msr::tsc), host - 5000);
  // Another vCPU's counter, written to nearly the same, is in step with it.
  ASSERT_TRUE(set_msr(msr::tsc, host - 4000, 1));
  EXPECT_EQ(vcpu_[1]->tsc_offset(), -u64{5000});
}

TEST(Attributes, SupportedXcr0IsTheModels) {
  EXPECT_EQ(supported_xcr0(cpuid_entries(*select_cpu_model("base"), 0, 1)) & ~u64{1}, 0u) << "no XSAVE";
  const auto all = cpuid_entries(*select_cpu_model("max"), 0, 1);
  const auto leaf =
      std::ranges::find_if(all, [](const auto& e) { return e.function == 0xd && e.index == 0; });
  ASSERT_NE(leaf, all.end());
  EXPECT_EQ(supported_xcr0(all), u64{leaf->edx} << 32 | leaf->eax);
  EXPECT_EQ(check_extension(KVM_CAP_VCPU_ATTRIBUTES, nullptr), 1);
  EXPECT_EQ(check_extension(KVM_CAP_SYS_ATTRIBUTES, nullptr), 1);
}

} // namespace
} // namespace ring3::x86::test
