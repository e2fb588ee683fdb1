// SPDX-License-Identifier: Apache-2.0
// MSRs that a VMM denies its guest or answers itself (api.rst 4.97, 7.21, 8.27).
#include "../pv/pv_guest.h"
#include "x86/api/capabilities.h"
#include "x86/cpu/msr_table.h"

#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u32 nowhere = 0x474f4f00; // an MSR that no processor has

bool copy(void* to, u64 from, std::size_t size) {
  std::memcpy(to, reinterpret_cast<const void*>(from), size);
  return true;
}
bool copy_nothing(void*, u64, std::size_t) { return false; }

class MsrExits : public PvGuest {
 protected:
  void want(u64 reasons) {
    kvm_enable_cap cap{};
    cap.cap = KVM_CAP_X86_USER_SPACE_MSR;
    cap.args[0] = reasons;
    ASSERT_EQ(vm_->enable_capability(cap), 0);
  }
  // Denies the MSRs from `base` on whose bit is 0.
  kvm_msr_filter filter(u32 base, u32 count, u8* bits, u32 directions) {
    kvm_msr_filter f{};
    f.ranges[0] = {.flags = directions, .nmsrs = count, .base = base, .bitmap = bits};
    return f;
  }
  u64 allow_none_ = 0;
  u8* none() { return reinterpret_cast<u8*>(&allow_none_); }
};

TEST_F(MsrExits, AnUnknownMsrIsTheVmmsIfItWantsThem) {
  start();
  want(KVM_MSR_EXIT_REASON_UNKNOWN);
  ASSERT_EQ(run(Code().rdmsr(nowhere).exit()), KVM_EXIT_X86_RDMSR);
  kvm_run& r = vcpu_[0]->run_page();
  EXPECT_EQ(r.msr.index, nowhere);
  EXPECT_EQ(r.msr.reason, u32{KVM_MSR_EXIT_REASON_UNKNOWN});
  EXPECT_EQ(r.msr.error, 0);
  kvm_regs regs{};
  vcpu_[0]->get_regs(regs);
  EXPECT_EQ(regs.rip, code_at + 10) << "RIP stays at the RDMSR";
  r.msr.data = 0x1122334455667788;
  ASSERT_EQ(run(), KVM_EXIT_IO);
  vcpu_[0]->get_regs(regs);
  EXPECT_EQ(regs.rax, 0x55667788u);
  EXPECT_EQ(regs.rdx, 0x11223344u);
}

TEST_F(MsrExits, AWriteShowsItsValueAndMayBeRefused) {
  start();
  want(KVM_MSR_EXIT_REASON_UNKNOWN);
  const Code program = Code().wrmsr(nowhere, 0xabcdef0123456789).exit();
  ASSERT_EQ(run(program), KVM_EXIT_X86_WRMSR);
  EXPECT_EQ(vcpu_[0]->run_page().msr.data, 0xabcdef0123456789u);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  ASSERT_EQ(run(program), KVM_EXIT_X86_WRMSR);
  vcpu_[0]->run_page().msr.error = 1;
  EXPECT_EQ(run(), KVM_EXIT_SHUTDOWN) << "#GP, and there is no handler";
}

TEST_F(MsrExits, ReasonsAreAskedForOneByOne) {
  start();
  const Code unknown = Code().rdmsr(nowhere).exit();
  const Code invalid = Code().wrmsr(msr::efer, u64{1} << 63).exit();
  EXPECT_EQ(run(unknown), KVM_EXIT_SHUTDOWN);
  want(KVM_MSR_EXIT_REASON_INVAL);
  EXPECT_EQ(run(unknown), KVM_EXIT_SHUTDOWN);
  ASSERT_EQ(run(invalid), KVM_EXIT_X86_WRMSR);
  EXPECT_EQ(vcpu_[0]->run_page().msr.reason, u32{KVM_MSR_EXIT_REASON_INVAL});
  EXPECT_EQ(vcpu_[0]->run_page().msr.index, msr::efer);
}

TEST_F(MsrExits, ADeniedMsrIsAFault) {
  start();
  const kvm_msr_filter f = filter(msr::star, 1, none(), KVM_MSR_FILTER_READ);
  ASSERT_EQ(vm_->set_msr_filter(f, copy), 0);
  EXPECT_EQ(run(Code().wrmsr(msr::star, 5).exit()), KVM_EXIT_IO) << "only reads are denied";
  EXPECT_EQ(run(Code().rdmsr(msr::star).exit()), KVM_EXIT_SHUTDOWN);
  EXPECT_EQ(get_msr(msr::star), 5u) << "the VMM's own accesses are not filtered";
  want(KVM_MSR_EXIT_REASON_FILTER);
  ASSERT_EQ(run(Code().rdmsr(msr::star).exit()), KVM_EXIT_X86_RDMSR);
  EXPECT_EQ(vcpu_[0]->run_page().msr.reason, u32{KVM_MSR_EXIT_REASON_FILTER});
  // The answer stands, although the filter is gone by now.
  vcpu_[0]->run_page().msr.data = 77;
  ASSERT_EQ(vm_->set_msr_filter(kvm_msr_filter{}, copy), 0);
  EXPECT_EQ(run(), KVM_EXIT_IO);
  EXPECT_EQ(reg_rax() & 0xffffffff, 77u);
}

TEST_F(MsrExits, RegistersTheVmmChangesDuringAnExitAreTheOnesThatCount) {
  start();
  want(KVM_MSR_EXIT_REASON_UNKNOWN);
  ASSERT_EQ(run(Code().rdmsr(nowhere).exit()), KVM_EXIT_X86_RDMSR);
  kvm_regs regs{};
  vcpu_[0]->get_regs(regs);
  regs.rip += 2; // over the instruction: the answer is for nobody
  ASSERT_EQ(vcpu_[0]->set_regs(regs), 0);
  vcpu_[0]->run_page().msr.error = 1;
  EXPECT_EQ(run(), KVM_EXIT_IO);
}

TEST(MsrFilterTest, DefaultDenyAllowsWhatABitSays) {
  u64 bits = 0b101;
  kvm_msr_filter f{};
  f.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  f.ranges[3] = {.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
                 .nmsrs = 3,
                 .base = 0x100,
                 .bitmap = reinterpret_cast<u8*>(&bits)};
  const auto made = MsrFilter::make(f, copy);
  ASSERT_TRUE(made.has_value());
  EXPECT_TRUE((*made)->allows(0x100, false));
  EXPECT_FALSE((*made)->allows(0x101, true));
  EXPECT_TRUE((*made)->allows(0x102, true));
  EXPECT_FALSE((*made)->allows(0x103, false));
  EXPECT_FALSE((*made)->allows(0xff, false));
  EXPECT_TRUE((*made)->allows(0x800, true)) << "never the x2APIC's";
  EXPECT_TRUE((*made)->allows(0x8ff, false));
}

TEST(MsrFilterTest, TheFirstRangeThatFitsDecides) {
  u64 no = 0;
  u64 yes = 1;
  kvm_msr_filter f{};
  f.ranges[0] = {KVM_MSR_FILTER_WRITE, 1, 7, reinterpret_cast<u8*>(&yes)};
  f.ranges[1] = {KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE, 1, 7, reinterpret_cast<u8*>(&no)};
  // KVM's end of a range wraps, and then nothing is in it.
  f.ranges[2] = {KVM_MSR_FILTER_READ, 2, 0xffffffff, reinterpret_cast<u8*>(&no)};
  const auto made = MsrFilter::make(f, copy);
  ASSERT_TRUE(made.has_value());
  EXPECT_TRUE((*made)->allows(7, true));
  EXPECT_FALSE((*made)->allows(7, false));
  EXPECT_TRUE((*made)->allows(0xffffffff, false));
  EXPECT_TRUE((*made)->allows(0, false));
}

TEST(MsrFilterTest, BadFiltersAreRefused) {
  u64 bits = 0;
  const auto result = [&](const kvm_msr_filter& f, MsrFilter::CopyIn how = copy) {
    const auto made = MsrFilter::make(f, how);
    return made ? 0 : made.error();
  };
  kvm_msr_filter f{};
  EXPECT_EQ(result(f), 0);
  f.flags = KVM_MSR_FILTER_DEFAULT_DENY;
  EXPECT_EQ(result(f), -EINVAL) << "a guest that may do nothing";
  f.flags = 2;
  EXPECT_EQ(result(f), -EINVAL);
  f.flags = 0;
  f.ranges[15] = {KVM_MSR_FILTER_READ, 1, 0, reinterpret_cast<u8*>(&bits)};
  EXPECT_EQ(result(f), 0);
  EXPECT_EQ(result(f, copy_nothing), -EFAULT);
  f.ranges[15].flags = 0;
  EXPECT_EQ(result(f), -EINVAL);
  f.ranges[15].flags = 4;
  EXPECT_EQ(result(f), -EINVAL);
  f.ranges[15].flags = KVM_MSR_FILTER_READ;
  f.ranges[15].nmsrs = KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8 + 1;
  EXPECT_EQ(result(f), -EINVAL);
  f.ranges[15].nmsrs = 0xffffffff;
  EXPECT_EQ(result(f), -EINVAL);
}

TEST_F(MsrExits, TheCapabilityTakesKnownReasonsOnly) {
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_X86_USER_SPACE_MSR;
  for (unsigned n = 0; n < 64; ++n) {
    cap.args[0] = u64{1} << n;
    EXPECT_EQ(vm_->enable_capability(cap), n < 3 ? 0 : -EINVAL) << n;
  }
  EXPECT_EQ(check_extension(KVM_CAP_X86_USER_SPACE_MSR, vm_.get()), 1);
  EXPECT_EQ(check_extension(KVM_CAP_X86_MSR_FILTER, vm_.get()), 1);
}

} // namespace
} // namespace ring3::x86::test
