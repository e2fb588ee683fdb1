// SPDX-License-Identifier: Apache-2.0
#include "pv_guest.h"
#include "x86/cpu/msr_table.h"

#include <algorithm>
#include <array>

namespace ring3::x86::test {
namespace {

constexpr u32 all_msrs[] = {MSR_KVM_WALL_CLOCK,      MSR_KVM_SYSTEM_TIME,  MSR_KVM_WALL_CLOCK_NEW,
                            MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_ASYNC_PF_EN,  MSR_KVM_STEAL_TIME,
                            MSR_KVM_PV_EOI_EN,       MSR_KVM_POLL_CONTROL, MSR_KVM_ASYNC_PF_INT,
                            MSR_KVM_ASYNC_PF_ACK};

bool offers(unsigned feature) { return (kvm_cpuid_leaves()[1].eax >> feature & 1) != 0; }

TEST(PvFeatures, LeavesSayKvmAndNothingThatIsNotThere) {
  const auto leaves = kvm_cpuid_leaves();
  ASSERT_EQ(leaves.size(), 2u);
  EXPECT_EQ(leaves[0].function, 0x40000000u);
  EXPECT_EQ(leaves[0].eax, 0x40000001u);
  EXPECT_EQ(leaves[0].ebx, 0x4b4d564bu);
  EXPECT_EQ(leaves[0].ecx, 0x564b4d56u);
  EXPECT_EQ(leaves[0].edx, 0x4du);
  EXPECT_EQ(leaves[1].function, 0x40000001u);
  EXPECT_EQ(leaves[1].edx, 0u) << "hints are the VMM's";
  EXPECT_TRUE(offers(KVM_FEATURE_CLOCKSOURCE2));
  EXPECT_TRUE(offers(KVM_FEATURE_CLOCKSOURCE_STABLE_BIT));
  EXPECT_TRUE(offers(KVM_FEATURE_ASYNC_PF));
  EXPECT_TRUE(offers(KVM_FEATURE_ASYNC_PF_INT));
  EXPECT_FALSE(offers(KVM_FEATURE_ASYNC_PF_VMEXIT)) << "for guests that are hypervisors";
  EXPECT_FALSE(offers(KVM_FEATURE_MIGRATION_CONTROL));
  EXPECT_FALSE(offers(KVM_FEATURE_HC_MAP_GPA_RANGE)) << "only with the VMM's help";
}

TEST(PvFeatures, AreFoundBehindAnotherHypervisorsLeaves) {
  auto leaves = kvm_cpuid_leaves();
  const u32 features = leaves[1].eax;
  EXPECT_EQ(kvm_features_in(leaves), features);
  leaves[0].function += 0x100;
  leaves[1].function += 0x100;
  kvm_cpuid_entry2 other{};
  other.function = 0x40000000;
  other.ebx = 0x7263694d;
  leaves.insert(leaves.begin(), other);
  EXPECT_EQ(kvm_features_in(leaves), features);
  leaves[1].ebx ^= 1;
  EXPECT_EQ(kvm_features_in(leaves), 0u);
  EXPECT_EQ(kvm_features_in({}), 0u);
}

class PvFeaturesGuest : public PvGuest {
 protected:
  void set_features(u32 bits) {
    for (kvm_cpuid_entry2& e : cpuid_) {
      if (e.function == KVM_CPUID_FEATURES) e.eax = bits;
    }
    ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  }
};

TEST_F(PvFeaturesGuest, AllMsrsAreThereUnlessCpuidIsObeyed) {
  start(1, true);
  set_features(0);
  for (const u32 msr : all_msrs) {
    EXPECT_EQ(run(Code().rdmsr(msr).wrmsr(msr, 0).exit()), u32{KVM_EXIT_IO}) << std::hex << msr;
  }
  vcpu_[0]->enforce_pv_cpuid(true);
  for (const u32 msr : all_msrs) {
    EXPECT_EQ(run(Code().rdmsr(msr).exit()), u32{KVM_EXIT_SHUTDOWN}) << std::hex << msr;
    EXPECT_EQ(run(Code().wrmsr(msr, 0).exit()), u32{KVM_EXIT_SHUTDOWN}) << std::hex << msr;
    EXPECT_TRUE(set_msr(msr, 0)) << "the VMM's access obeys nothing";
    get_msr(msr);
  }
}

struct FeatureMsrs {
  unsigned feature;
  std::vector<u32> msrs;
};
class PvFeature : public PvFeaturesGuest, public testing::WithParamInterface<FeatureMsrs> {};

TEST_P(PvFeature, HasItsMsrs) {
  const auto& [feature, msrs] = GetParam();
  start(1, true);
  vcpu_[0]->enforce_pv_cpuid(true);
  set_features(1u << feature);
  for (const u32 msr : all_msrs) {
    const bool there = std::find(msrs.begin(), msrs.end(), msr) != msrs.end();
    EXPECT_EQ(run(Code().rdmsr(msr).exit()), there ? u32{KVM_EXIT_IO} : u32{KVM_EXIT_SHUTDOWN})
        << std::hex << msr;
  }
}
INSTANTIATE_TEST_SUITE_P(
    Each, PvFeature,
    testing::Values(FeatureMsrs{KVM_FEATURE_CLOCKSOURCE, {MSR_KVM_WALL_CLOCK, MSR_KVM_SYSTEM_TIME}},
                    FeatureMsrs{KVM_FEATURE_CLOCKSOURCE2, {MSR_KVM_WALL_CLOCK_NEW, MSR_KVM_SYSTEM_TIME_NEW}},
                    FeatureMsrs{KVM_FEATURE_ASYNC_PF, {MSR_KVM_ASYNC_PF_EN}},
                    FeatureMsrs{KVM_FEATURE_STEAL_TIME, {MSR_KVM_STEAL_TIME}},
                    FeatureMsrs{KVM_FEATURE_PV_EOI, {MSR_KVM_PV_EOI_EN}},
                    FeatureMsrs{KVM_FEATURE_POLL_CONTROL, {MSR_KVM_POLL_CONTROL}},
                    FeatureMsrs{KVM_FEATURE_ASYNC_PF_INT, {MSR_KVM_ASYNC_PF_INT, MSR_KVM_ASYNC_PF_ACK}}));

TEST_F(PvFeaturesGuest, MsrsAreListedForMigrationAndKeepTheirValues) {
  start(1, true);
  const auto indices = msr_indices();
  for (const u32 msr : all_msrs)
    EXPECT_EQ(std::count(indices.begin(), indices.end(), msr), 1) << std::hex << msr;
  EXPECT_EQ(get_msr(MSR_KVM_POLL_CONTROL), 1u);
  const std::pair<u32, u64> values[] = {
      {MSR_KVM_WALL_CLOCK_NEW, data_at + 4}, {MSR_KVM_SYSTEM_TIME_NEW, data_at | 1},
      {MSR_KVM_ASYNC_PF_EN, data_at | 0xb},  {MSR_KVM_STEAL_TIME, data_at | 1},
      {MSR_KVM_PV_EOI_EN, data_at | 1},      {MSR_KVM_POLL_CONTROL, 0},
      {MSR_KVM_ASYNC_PF_INT, 0xf3}};
  for (const auto& [msr, value] : values) {
    EXPECT_TRUE(set_msr(msr, value)) << std::hex << msr;
    EXPECT_EQ(get_msr(msr), value) << std::hex << msr;
  }
}

TEST_F(PvFeaturesGuest, MsrsRefuseWhatKvmRefuses) {
  start(1, true);
  EXPECT_FALSE(set_msr(MSR_KVM_POLL_CONTROL, 2));
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_INT, 0x100));
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | 0x10));
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | 0x20));
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_EN, memory_size | 9)) << "enabled where no memory is";
  EXPECT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, memory_size | 1)) << "without interrupts it is not on";
  EXPECT_FALSE(set_msr(MSR_KVM_PV_EOI_EN, data_at | 3));
  EXPECT_FALSE(set_msr(MSR_KVM_PV_EOI_EN, data_at | 2));
  EXPECT_FALSE(set_msr(MSR_KVM_PV_EOI_EN, memory_size | 1));
  EXPECT_TRUE(set_msr(MSR_KVM_PV_EOI_EN, memory_size));
  EXPECT_FALSE(set_msr(0x4b564d08, 0)) << "MSR_KVM_MIGRATION_CONTROL is for VMMs with MSR filters";
}

TEST_F(PvFeaturesGuest, AsynchronousFaultsNeedTheInterruptController) {
  start();
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | 9));
  EXPECT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, 0));
  EXPECT_FALSE(set_msr(MSR_KVM_ASYNC_PF_INT, 0xf3));
  EXPECT_TRUE(set_msr(MSR_KVM_ASYNC_PF_INT, 0)) << "QEMU's reset";
}

TEST_F(PvFeaturesGuest, CpuidRangesOfTheHypervisorEndAsKvms) {
  start();
  // Beyond the range's last leaf Intel's processors repeat the last basic leaf; within it, zeros.
  EXPECT_EQ(run(Code().rax(0x40000002).raw({0x0f, 0xa2}).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
  EXPECT_EQ(run(Code().rax(0x40000000).raw({0x0f, 0xa2}).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0x40000010u);
}

} // namespace
} // namespace ring3::x86::test
