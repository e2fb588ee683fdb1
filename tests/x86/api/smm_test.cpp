// SPDX-License-Identifier: Apache-2.0
// System-management mode: SDM vol. 3, chapter 32, with KVM's state save area.
#include "../pv/pv_guest.h"

#include "x86/cpu/msr_table.h"

#include <cerrno>
#include <thread>

namespace ring3::x86::test {
namespace {

constexpr u64 smbase = 0x30000;

class SmmTest : public PvGuest {
 protected:
  static constexpr u64 smram_size = 0x10000;

  SmmTest() {
    smram_ = static_cast<u8*>(
        mmap(nullptr, smram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  ~SmmTest() override {
    vm_.reset();
    munmap(smram_, smram_size);
  }
  void start_with_smram(u32 vcpus = 1, bool irqchip = false, u32 flags = 0) {
    start(vcpus, irqchip);
    kvm_userspace_memory_region slot{};
    slot.slot = 1 << 16;
    slot.flags = flags;
    slot.guest_phys_addr = smbase;
    slot.memory_size = smram_size;
    slot.userspace_addr = reinterpret_cast<u64>(smram_);
    ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  }
  // 16-bit code.
  void handler(const Code& c) { std::memcpy(smram_ + 0x8000, c.bytes().data(), c.bytes().size()); }
  static Code handler_that_exits() { return Code().raw({0xb0, 0x5a}).exit().raw({0x0f, 0xaa}); }
  kvm_vcpu_events events(u32 i = 0) {
    kvm_vcpu_events e{};
    EXPECT_EQ(vcpu_[i]->get_vcpu_events(e), 0);
    return e;
  }
  template <class T> T saved(u64 at) const { return load_raw<T>(smram_ + at); }
  template <class T> void save(u64 at, T v) { store_raw(smram_ + at, v); }
  kvm_regs regs() {
    kvm_regs r{};
    vcpu_[0]->get_regs(r);
    return r;
  }

  u8* smram_;
};

TEST_F(SmmTest, SmiSavesTheStateAndRsmLoadsIt) {
  start_with_smram();
  handler(handler_that_exits());
  code(Code().rax(0x1122334455667788).hlt());
  kvm_regs before = regs();
  before.r15 = 0xf15;
  before.rflags = 0x246;
  ASSERT_EQ(vcpu_[0]->set_regs(before), 0);
  kvm_sregs sregs{};
  vcpu_[0]->get_sregs(sregs);

  ASSERT_EQ(vcpu_[0]->smi(), 0);
  EXPECT_EQ(events().smi.pending, 1);
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(vcpu_[0]->run_page().flags, KVM_RUN_X86_SMM);
  EXPECT_EQ(reg_rax() & 0xff, 0x5au);
  EXPECT_EQ(events().smi.smm, 1);
  EXPECT_EQ(events().smi.pending, 0);
  EXPECT_EQ(events().nmi.masked, 1);
  kvm_sregs inside{};
  vcpu_[0]->get_sregs(inside);
  EXPECT_EQ(inside.cs.base, smbase);
  EXPECT_EQ(inside.cs.selector, smbase >> 4);
  EXPECT_EQ(inside.ds.limit, 0xffffffff);
  EXPECT_EQ(inside.efer, 0u);
  EXPECT_EQ(inside.cr4, 0u);
  EXPECT_EQ(inside.cr0 & (cr0::pg | cr0::pe), 0u);
  EXPECT_EQ(inside.idt.limit, 0u);

  EXPECT_EQ(saved<u64>(0xff78), before.rip);
  EXPECT_EQ(saved<u64>(0xff70), before.rflags);
  EXPECT_EQ(saved<u64>(0xff80), before.r15);
  EXPECT_EQ(saved<u64>(0xff58), sregs.cr0);
  EXPECT_EQ(saved<u64>(0xff50), sregs.cr3);
  EXPECT_EQ(saved<u64>(0xff48), sregs.cr4);
  EXPECT_EQ(saved<u64>(0xfed0), sregs.efer);
  EXPECT_EQ(saved<u32>(0xff00), smbase);
  EXPECT_EQ(saved<u32>(0xfefc), 0x20064u);
  EXPECT_EQ(saved<u16>(0xfe10), sregs.cs.selector);
  EXPECT_EQ(saved<u16>(0xfe12), 0xa09bu); // G, L, present, ring 0, code
  EXPECT_EQ(get<u64>(smbase + 0xff78), 0u) << "that is not the first address space";

  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(vcpu_[0]->run_page().flags, 0u);
  EXPECT_EQ(reg_rax(), 0x1122334455667788u);
  EXPECT_EQ(regs().r15, 0xf15u);
  EXPECT_EQ(regs().rflags, 0x246u);
  EXPECT_EQ(events().smi.smm, 0);
  EXPECT_EQ(events().nmi.masked, 0);
  kvm_sregs after{};
  vcpu_[0]->get_sregs(after);
  EXPECT_EQ(std::memcmp(&after, &sregs, sizeof after), 0);
  EXPECT_EQ(get_msr(msr::smi_count), 1u);
}

TEST_F(SmmTest, TheAreaHasTheP6FormWithoutLongMode) {
  start_with_smram();
  std::erase_if(cpuid_, [](const kvm_cpuid_entry2& e) { return e.function >= 0x80000000; });
  ASSERT_EQ(vcpu_[0]->set_cpuid(cpuid_), 0);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  s.cr0 = 0x60000011; // PE
  s.cr4 = 0;
  s.efer = 0;
  s.cs.l = 0;
  s.cs.db = 1;
  s.ss.db = 1;
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  handler(handler_that_exits());
  code(Code().raw({0xb8, 0x44, 0x33, 0x22, 0x11}).hlt()); // mov eax, 0x11223344
  ASSERT_EQ(vcpu_[0]->smi(), 0);
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(saved<u32>(0xfff0), code_at);
  EXPECT_EQ(saved<u32>(0xfffc), 0x60000011u);
  EXPECT_EQ(saved<u32>(0xffe0), 0x8000u); // ESP
  EXPECT_EQ(saved<u32>(0xfef8), smbase);
  EXPECT_EQ(saved<u32>(0xfefc), 0x20000u);
  EXPECT_EQ(saved<u32>(0xffac), s.cs.selector);
  EXPECT_EQ(saved<u32>(0xff90), 0xc09b00u);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0x11223344u);
  kvm_sregs after{};
  vcpu_[0]->get_sregs(after);
  EXPECT_EQ(std::memcmp(&after, &s, sizeof after), 0);
}

TEST_F(SmmTest, RsmElsewhereIsUndefined) {
  start_with_smram();
  // There is no IDT: a fault is a shutdown, and its RIP is the instruction's.
  EXPECT_EQ(run(Code().raw({0x0f, 0xaa}).hlt()), u32{KVM_EXIT_SHUTDOWN});
  EXPECT_EQ(regs().rip, code_at);
}

TEST_F(SmmTest, RsmRefusesStatesThatCannotBe) {
  struct Case {
    u64 at, value;
  };
  const Case cases[] = {
      {0xff58, 0x80000010},          // CR0: PG without PE
      {0xff58, 0x20000011},          // NW without CD
      {0xff58, u64{1} << 40 | 0x11}, // beyond 32 bits
      {0xff48, 0},                   // CR4: long mode without PAE
      {0xff48, u64{1} << 31 | 1 << 5},
      {0xff50, u64{1} << 60},         // CR3
      {0xfed0, u64{1} << 30 | 0x500}, // EFER
      {0xff60, u64{1} << 32},         // DR7
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(testing::Message() << std::hex << c.at << '=' << c.value);
    if (vcpu_.empty()) start_with_smram();
    kvm_vcpu_events outside{};
    outside.flags = KVM_VCPUEVENT_VALID_SMM;
    ASSERT_EQ(vcpu_[0]->set_vcpu_events(outside), 0);
    enter(0, code_at);
    handler(handler_that_exits());
    code(Code().hlt());
    ASSERT_EQ(vcpu_[0]->smi(), 0);
    ASSERT_EQ(run(), u32{KVM_EXIT_IO});
    save<u64>(c.at, c.value);
    EXPECT_EQ(run(), u32{KVM_EXIT_SHUTDOWN});
  }
}

TEST_F(SmmTest, TheHandlerMovesSmbase) {
  start_with_smram();
  handler(handler_that_exits());
  code(Code().hlt());
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  save<u32>(0xff00, smbase + 0x100);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(get_msr(msr::smbase), smbase + 0x100);
  ASSERT_TRUE(set_msr(msr::smbase, smbase)); // the VMM may
  // The guest may neither see nor write it.
  EXPECT_EQ(run(Code().rdmsr(msr::smbase).hlt()), u32{KVM_EXIT_SHUTDOWN});
}

TEST_F(SmmTest, ASecondSmiWaitsForRsm) {
  start_with_smram();
  handler(handler_that_exits());
  code(Code().hlt());
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  vcpu_[0]->smi();
  vcpu_[0]->smi();
  EXPECT_EQ(events().smi.pending, 1);
  ASSERT_EQ(run(), u32{KVM_EXIT_IO}) << "the latched one";
  EXPECT_EQ(events().smi.pending, 0);
  EXPECT_EQ(events().smi.smm, 1);
  EXPECT_EQ(saved<u64>(0xff78), code_at) << "nothing was executed between the two";
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(get_msr(msr::smi_count), 2u);
}

TEST_F(SmmTest, NmiWaitsForRsmAndStaysBlockedIfItWas) {
  start_with_smram();
  handler(handler_that_exits());
  code(Code().hlt());
  kvm_vcpu_events e = events();
  e.nmi.masked = 1;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(events().smi.smm_inside_nmi, 1);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(events().nmi.masked, 1);

  e = events();
  e.nmi.masked = 0;
  ASSERT_EQ(vcpu_[0]->set_vcpu_events(e), 0);
  enter(0, code_at);
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  vcpu_[0]->nmi();
  ASSERT_EQ(vcpu_[0]->run(), 0);
  // After RSM the NMI is taken at once: there is no IDT.
  EXPECT_EQ(vcpu_[0]->run_page().exit_reason, u32{KVM_EXIT_SHUTDOWN});
  EXPECT_EQ(regs().rip, code_at);
}

TEST_F(SmmTest, InitWaitsForRsmAndSipiIsLost) {
  start_with_smram(2, true);
  handler(handler_that_exits());
  code(Code().raw({0xeb, 0xfe}));
  vcpu_[1]->smi();
  ASSERT_EQ(run(1), u32{KVM_EXIT_IO});
  vcpu_[1]->post_init();
  vcpu_[1]->post_startup(0x10);
  EXPECT_EQ(events(1).smi.latched_init, 1);
  vcpu_[1]->kick();
  ASSERT_EQ(vcpu_[1]->run(), -EINTR);
  EXPECT_EQ(events(1).smi.latched_init, 1);
  EXPECT_EQ(events(1).smi.smm, 1);
  const kvm_mp_state init{KVM_MP_STATE_INIT_RECEIVED};
  EXPECT_EQ(vcpu_[1]->set_mp_state(init), -EINVAL);
  // The handler goes on; then the INIT is taken, and the vCPU waits for a SIPI that has to come again.
  std::jthread starter([this] {
    while (vcpu_[1]->generic().stats().blocking.value() == 0) std::this_thread::yield();
    vcpu_[1]->kick();
  });
  ASSERT_EQ(vcpu_[1]->run(), -EINTR);
  starter.join();
  kvm_mp_state state{};
  vcpu_[1]->get_mp_state(state);
  EXPECT_EQ(state.mp_state, u32{KVM_MP_STATE_INIT_RECEIVED});
  EXPECT_EQ(get_msr(msr::smbase, 1), smbase);
  kvm_vcpu_events e = events(1);
  e.smi.pending = 1;
  EXPECT_EQ(vcpu_[1]->set_vcpu_events(e), -EINVAL);
}

TEST_F(SmmTest, AnMsiCanBeAnSmiAndWakesAHaltedProcessor) {
  start_with_smram(1, true);
  handler(handler_that_exits());
  code(Code().hlt().rax(1).exit());
  const kvm_mp_state halted{KVM_MP_STATE_HALTED};
  ASSERT_EQ(vcpu_[0]->set_mp_state(halted), 0);
  kvm_msi msi{};
  msi.address_lo = 0xfee00000;
  msi.data = 2 << 8;
  ASSERT_EQ(vm_->signal_msi(msi), 1);
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(vcpu_[0]->run_page().flags, KVM_RUN_X86_SMM);
}

TEST_F(SmmTest, AVmWithoutMemoryForTheAreaEnds) {
  start();
  vcpu_[0]->smi();
  EXPECT_EQ(vcpu_[0]->run(), -EIO) << "the second address space is empty";
  EXPECT_TRUE(vm_->dead());
  EXPECT_EQ(vcpu_[0]->run(), -EIO);
}

TEST_F(SmmTest, ReadOnlyMemoryIsNoPlaceForTheArea) {
  start_with_smram(1, false, KVM_MEM_READONLY);
  vcpu_[0]->smi();
  EXPECT_EQ(vcpu_[0]->run(), -EIO);
}

TEST_F(SmmTest, EventsCarrySmmToAnotherVcpu) {
  start_with_smram(2);
  handler(handler_that_exits());
  code(Code().rax(0x77).hlt());
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  vcpu_[0]->run_page().immediate_exit = 1;
  EXPECT_EQ(vcpu_[0]->run(), -EINTR); // finishes the OUT
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  kvm_vcpu_events e = events();
  EXPECT_NE(e.flags & KVM_VCPUEVENT_VALID_SMM, 0u);
  const kvm_regs r = regs();
  ASSERT_EQ(vcpu_[1]->set_sregs(s), 0);
  ASSERT_EQ(vcpu_[1]->set_regs(r), 0);
  ASSERT_EQ(vcpu_[1]->set_vcpu_events(e), 0);
  ASSERT_EQ(run(1), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(1), 0x77u);
}

TEST_F(SmmTest, TheHypervisorDoesNotWriteIntoSmram) {
  start_with_smram();
  handler(handler_that_exits());
  code(Code().hlt());
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  // A guest may say that its clock is where SMRAM is, in the other address space.
  ASSERT_TRUE(set_msr(MSR_KVM_SYSTEM_TIME_NEW, (smbase + 0x4000) | 1));
  vcpu_[0]->run_page().immediate_exit = 1;
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  EXPECT_EQ(events().smi.smm, 1);
  EXPECT_EQ(saved<u32>(0x4000), 0u);
  EXPECT_NE(get<u32>(smbase + 0x4000), 0u) << "the version of the clock's structure";
}

TEST_F(SmmTest, EachAddressSpaceHasItsDirtyLog) {
  start_with_smram(1, false, KVM_MEM_LOG_DIRTY_PAGES);
  handler(handler_that_exits());
  code(Code().hlt());
  vcpu_[0]->smi();
  ASSERT_EQ(run(), u32{KVM_EXIT_IO});
  u64 bitmap[1] = {};
  ASSERT_EQ(vm_->get_dirty_log(1 << 16, bitmap), 0);
  EXPECT_EQ(bitmap[0], u64{1} << 15); // SMBASE + 0xf000, of the state save area
  EXPECT_EQ(vm_->get_dirty_log(0, bitmap), -ENOENT) << "the other space's slot 0 is not logged";
  EXPECT_EQ(vm_->get_dirty_log(2 << 16, bitmap), -EINVAL);
}

} // namespace
} // namespace ring3::x86::test
