// SPDX-License-Identifier: Apache-2.0
// KVM's state classes, as a snapshot or a debugger uses them.
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/cpuid_model.h"

#include <cerrno>
#include <cstring>
#include <gtest/gtest.h>
#include <initializer_list>
#include <sys/mman.h>
#include <vector>

namespace ring3::x86 {
namespace {

constexpr u64 memory_size = 1 << 20;

class StateTest : public testing::Test {
 protected:
  StateTest() : vm_(std::make_unique<kvm::HostClock>()) {
    memory_ = static_cast<u8*>(
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    kvm_userspace_memory_region slot{};
    slot.memory_size = memory_size;
    slot.userspace_addr = reinterpret_cast<u64>(memory_);
    EXPECT_EQ(vm_.set_user_memory_region(slot), 0);
    kvm::VcpuApi* api = nullptr;
    EXPECT_EQ(vm_.create_vcpu(0, api), 0);
    vcpu_ = static_cast<Vcpu*>(api);
    EXPECT_EQ(vcpu_->set_cpuid(cpuid_entries(*select_cpu_model("max"), 0, 1)), 0);
    kvm_sregs s{};
    vcpu_->get_sregs(s);
    for (kvm_segment* seg : {&s.cs, &s.ds, &s.es, &s.ss}) {
      seg->base = 0;
      seg->selector = 0;
    }
    EXPECT_EQ(vcpu_->set_sregs(s), 0);
    kvm_regs r{};
    r.rip = 0x1000;
    r.rsp = 0x8000;
    r.rflags = 2;
    vcpu_->set_regs(r);
  }
  ~StateTest() override { munmap(memory_, memory_size); }
  void code(u64 at, std::initializer_list<int> bytes) {
    for (const int b : bytes) memory_[at++] = static_cast<u8>(b);
  }

  u8* memory_;
  Vm vm_;
  Vcpu* vcpu_;
};

// Another thread's change of the slots is in the table before this vCPU has let go of the old ones.
TEST_F(StateTest, MemoryOfADeletedSlotIsKnownUntilTheNextRun) {
  code(0x1000, {0xf4, 0xf4});
  EXPECT_EQ(vcpu_->run(), 0);
  EXPECT_TRUE(vcpu_->is_guest_memory(memory_ + 0x1234));
  EXPECT_FALSE(vcpu_->is_guest_memory(memory_ + memory_size));
  kvm_userspace_memory_region slot{};
  EXPECT_EQ(vm_.set_user_memory_region(slot), 0);
  EXPECT_TRUE(vcpu_->is_guest_memory(memory_ + 0x1234));
  vcpu_->run();
  EXPECT_FALSE(vcpu_->is_guest_memory(memory_ + 0x1234));
}

// KVM_TRANSLATE and the PDPTEs that KVM_SET_SREGS loads are of memory as it is, whether the vCPU has run
// since or not.
TEST_F(StateTest, StateCallsSeeNewSlots) {
  kvm_userspace_memory_region slot{};
  slot.slot = 1;
  slot.guest_phys_addr = 2 * memory_size;
  slot.memory_size = page_size;
  slot.userspace_addr = reinterpret_cast<u64>(memory_);
  EXPECT_EQ(vm_.set_user_memory_region(slot), 0);
  for (u64 i = 0; i < 4; ++i) {
    const u64 pdpte = (0x10000 * i) | 1;
    std::memcpy(memory_ + 8 * i, &pdpte, sizeof pdpte);
  }
  kvm_sregs s{};
  vcpu_->get_sregs(s);
  s.cr0 = 0x80000011;
  s.cr4 = 0x20;
  s.cr3 = 2 * memory_size;
  ASSERT_EQ(vcpu_->set_sregs(s), 0);
  kvm_sregs2 seen{};
  ASSERT_EQ(vcpu_->get_sregs2(seen), 0);
  EXPECT_EQ(seen.pdptrs[3], 0x30001u);
}

TEST_F(StateTest, InjectedExceptionIsDeliveredFirst) {
  code(0x1000, {0xb0, 0x11, 0xf4}); // mov al, 0x11; hlt
  code(0x1800, {0xb0, 0x66, 0xf4}); // the handler of vector 6
  code(6 * 4, {0x00, 0x18, 0x00, 0x00});
  kvm_vcpu_events e{};
  e.exception.injected = 1;
  e.exception.nr = 6;
  ASSERT_EQ(vcpu_->set_vcpu_events(e), 0);
  kvm_vcpu_events back{};
  ASSERT_EQ(vcpu_->get_vcpu_events(back), 0);
  EXPECT_EQ(back.exception.injected, 1);
  EXPECT_EQ(back.exception.nr, 6);
  EXPECT_EQ(vcpu_->run(), 0);
  EXPECT_EQ(vcpu_->run_page().exit_reason, KVM_EXIT_HLT);
  kvm_regs r{};
  vcpu_->get_regs(r);
  EXPECT_EQ(r.rax & 0xff, 0x66u);
  vcpu_->get_vcpu_events(back);
  EXPECT_EQ(back.exception.injected, 0);
}

TEST_F(StateTest, EventsThatCannotBeAreRefused) {
  kvm_vcpu_events e{};
  e.exception.injected = 1;
  e.exception.nr = 32;
  EXPECT_EQ(vcpu_->set_vcpu_events(e), -EINVAL);
  e.exception.nr = 2;
  EXPECT_EQ(vcpu_->set_vcpu_events(e), -EINVAL);
  e = {};
  e.flags = KVM_VCPUEVENT_VALID_PAYLOAD; // nobody has enabled them
  EXPECT_EQ(vcpu_->set_vcpu_events(e), -EINVAL);
}

TEST_F(StateTest, MaskedNmiStaysPending) {
  code(0x1000, {0x90, 0xf4});
  code(0x1800, {0xb0, 0x22, 0xf4});
  code(2 * 4, {0x00, 0x18, 0x00, 0x00});
  kvm_vcpu_events e{};
  e.nmi.masked = 1;
  e.nmi.pending = 1;
  e.flags = KVM_VCPUEVENT_VALID_NMI_PENDING;
  ASSERT_EQ(vcpu_->set_vcpu_events(e), 0);
  EXPECT_EQ(vcpu_->run(), 0);
  kvm_regs r{};
  vcpu_->get_regs(r);
  EXPECT_EQ(r.rip, 0x1002u); // the HLT, not the handler
  vcpu_->get_vcpu_events(e);
  EXPECT_EQ(e.nmi.pending, 1);
  EXPECT_EQ(e.nmi.masked, 1);
}

TEST_F(StateTest, FpuAndXsaveAgree) {
  kvm_fpu f{};
  ASSERT_EQ(vcpu_->get_fpu(f), 0);
  f.mxcsr = 0x1fa0;
  f.fcw = 0x27f;
  std::memset(f.xmm[3], 0xa5, 16);
  ASSERT_EQ(vcpu_->set_fpu(f), 0);
  std::vector<std::byte> area(vcpu_->xsave_size());
  ASSERT_GE(area.size(), 4096u);
  ASSERT_EQ(vcpu_->get_xsave(area), 0);
  EXPECT_EQ(load_raw<u16>(area.data()), 0x27f);
  EXPECT_EQ(load_raw<u32>(area.data() + 24), 0x1fa0u);
  EXPECT_EQ(area[160 + 3 * 16], std::byte{0xa5});
  // Into a vCPU that has something else.
  f.mxcsr = 0x1f80;
  ASSERT_EQ(vcpu_->set_fpu(f), 0);
  ASSERT_EQ(vcpu_->set_xsave(area), 0);
  ASSERT_EQ(vcpu_->get_fpu(f), 0);
  EXPECT_EQ(f.mxcsr, 0x1fa0u);
}

TEST_F(StateTest, ReservedMxcsrBitsAreRefused) {
  kvm_fpu f{};
  ASSERT_EQ(vcpu_->get_fpu(f), 0);
  f.mxcsr = 0x10000;
  EXPECT_EQ(vcpu_->set_fpu(f), -EINVAL);
  std::vector<std::byte> area(vcpu_->xsave_size());
  ASSERT_EQ(vcpu_->get_xsave(area), 0);
  store_raw<u32>(area.data() + 24, 0xffffffff);
  store_raw<u64>(area.data() + 512, 3);
  EXPECT_EQ(vcpu_->set_xsave(area), -EINVAL);
}

TEST_F(StateTest, Xcr0FollowsTheRulesOfXsetbv) {
  kvm_xcrs x{};
  x.nr_xcrs = 1;
  x.xcrs[0].value = 7;
  EXPECT_EQ(vcpu_->set_xcrs(x), 0);
  x.xcrs[0].value = 5; // AVX without SSE
  EXPECT_EQ(vcpu_->set_xcrs(x), -EINVAL);
  x.xcrs[0].value = 6; // without x87
  EXPECT_EQ(vcpu_->set_xcrs(x), -EINVAL);
  ASSERT_EQ(vcpu_->get_xcrs(x), 0);
  EXPECT_EQ(x.xcrs[0].value, 7u);
}

TEST_F(StateTest, DebugRegisters) {
  kvm_debugregs d{};
  d.db[2] = 0x1234;
  d.dr7 = 0x20;
  ASSERT_EQ(vcpu_->set_debugregs(d), 0);
  kvm_debugregs back{};
  ASSERT_EQ(vcpu_->get_debugregs(back), 0);
  EXPECT_EQ(back.db[2], 0x1234u);
  EXPECT_EQ(back.dr7, 0x420u);
  EXPECT_EQ(back.dr6, 0xffff0ff0u);
  d.dr7 = u64{1} << 32;
  EXPECT_EQ(vcpu_->set_debugregs(d), -EINVAL);
}

TEST_F(StateTest, TranslateFollowsThePageTables) {
  kvm_translation t{};
  t.linear_address = 0x5678;
  ASSERT_EQ(vcpu_->translate(t), 0);
  EXPECT_EQ(t.valid, 1);
  EXPECT_EQ(t.physical_address, 0x5678u);
  store_raw<u32>(memory_ + 0x2000, 0x3000 | 7);
  store_raw<u32>(memory_ + 0x3000 + 5 * 4, 0x9000 | 7);
  kvm_sregs s{};
  vcpu_->get_sregs(s);
  s.cr0 |= 0x80000001;
  s.cr3 = 0x2000;
  ASSERT_EQ(vcpu_->set_sregs(s), 0);
  ASSERT_EQ(vcpu_->translate(t), 0);
  EXPECT_EQ(t.physical_address, 0x9678u);
  t.linear_address = 0x6000;
  ASSERT_EQ(vcpu_->translate(t), 0);
  EXPECT_EQ(t.valid, 0);
  EXPECT_EQ(load_raw<u32>(memory_ + 0x3000 + 5 * 4), 0x9007u); // no accessed bit
}

TEST_F(StateTest, ThereIsNoLapicWithoutAnIrqchip) {
  kvm_lapic_state l{};
  EXPECT_EQ(vcpu_->get_lapic(l), -EINVAL);
  kvm_irqchip chip{};
  EXPECT_EQ(vm_.get_irqchip(chip), -ENXIO);
  kvm_pit_state2 pit{};
  EXPECT_EQ(vm_.get_pit(pit), -ENXIO);
}

} // namespace
} // namespace ring3::x86
