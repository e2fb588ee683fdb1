// SPDX-License-Identifier: Apache-2.0
// A vCPU as a KVM client sees it: small guests in real mode, driven through kvm/api.h.
#include "kvm/api.h"
#include "x86/api/system.h"
#include "x86/cpu/cpuid_model.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <gtest/gtest.h>
#include <initializer_list>
#include <sys/mman.h>
#include <thread>
#include <vector>

namespace ring3 {
namespace {

constexpr u64 memory_size = 1 << 20;
constexpr u64 code_at = 0x1000;

class GuestTest : public testing::Test {
 protected:
  GuestTest() {
    memory_ = static_cast<u8*>(
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    vm_ = x86::create_vm();
  }
  ~GuestTest() override {
    vm_.reset();
    munmap(memory_, memory_size);
  }

  // A VM with `vcpus` vCPUs at code_at in real mode, all segments at 0.
  void start(u32 vcpus = 1, const char* cpu_model = "max") {
    kvm_userspace_memory_region slot{};
    slot.memory_size = memory_size;
    slot.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
    const auto model = x86::select_cpu_model(cpu_model);
    ASSERT_TRUE(model.has_value());
    for (u32 i = 0; i < vcpus; ++i) {
      kvm::VcpuApi* v = nullptr;
      ASSERT_EQ(vm_->create_vcpu(i, v), 0);
      ASSERT_EQ(v->set_cpuid(x86::cpuid_entries(*model, i, vcpus)), 0);
      vcpu_.push_back(v);
      enter(i, code_at);
    }
  }
  void enter(u32 i, u64 rip) {
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[i]->get_sregs(s), 0);
    for (kvm_segment* seg : {&s.cs, &s.ds, &s.es, &s.ss}) {
      seg->base = 0;
      seg->selector = 0;
    }
    ASSERT_EQ(vcpu_[i]->set_sregs(s), 0);
    kvm_regs r{};
    r.rip = rip;
    r.rsp = 0x8000;
    r.rflags = 2;
    ASSERT_EQ(vcpu_[i]->set_regs(r), 0);
  }
  void code(u64 at, std::initializer_list<int> bytes) {
    for (const int b : bytes) memory_[at++] = static_cast<u8>(b);
  }
  kvm_run& run(u32 i = 0) {
    EXPECT_EQ(vcpu_[i]->run(), 0);
    return vcpu_[i]->run_page();
  }
  kvm_regs regs(u32 i = 0) {
    kvm_regs r{};
    vcpu_[i]->get_regs(r);
    return r;
  }
  static u8* io_data(kvm_run& r) { return reinterpret_cast<u8*>(&r) + r.io.data_offset; }

  u8* memory_;
  std::unique_ptr<kvm::VmApi> vm_;
  std::vector<kvm::VcpuApi*> vcpu_;
};

TEST_F(GuestTest, PortWriteAndReadGoToUserSpaceOnce) {
  // mov al, 0x5a; out 0x10, al; in al, 0x11; hlt
  code(code_at, {0xb0, 0x5a, 0xe6, 0x10, 0xe4, 0x11, 0xf4});
  start();
  kvm_run& out = run();
  ASSERT_EQ(out.exit_reason, KVM_EXIT_IO);
  EXPECT_EQ(out.io.direction, KVM_EXIT_IO_OUT);
  EXPECT_EQ(out.io.port, 0x10);
  EXPECT_EQ(out.io.size, 1);
  EXPECT_EQ(*io_data(out), 0x5a);
  kvm_run& in = run();
  ASSERT_EQ(in.exit_reason, KVM_EXIT_IO);
  EXPECT_EQ(in.io.direction, KVM_EXIT_IO_IN);
  EXPECT_EQ(in.io.port, 0x11);
  *io_data(in) = 0x77;
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 0x77u);
  EXPECT_EQ(regs().rip, code_at + 7);
}

TEST_F(GuestTest, ReadModifyWriteOfDeviceMemoryIsOneReadAndOneWrite) {
  // fs:ffff:0100 mov ax, 0xffff; mov ds, ax; add byte [0x100], 3; hlt   (0xffff0 + 0x100 = 0x1000f0, above 1
  // MiB)
  code(code_at, {0xb8, 0xff, 0xff, 0x8e, 0xd8, 0x80, 0x06, 0x00, 0x01, 0x03, 0xf4});
  start();
  kvm_run& read = run();
  ASSERT_EQ(read.exit_reason, KVM_EXIT_MMIO);
  EXPECT_EQ(read.mmio.phys_addr, 0x1000f0u);
  EXPECT_EQ(read.mmio.is_write, 0);
  EXPECT_EQ(read.mmio.len, 1u);
  read.mmio.data[0] = 0x40;
  kvm_run& write = run();
  ASSERT_EQ(write.exit_reason, KVM_EXIT_MMIO);
  EXPECT_EQ(write.mmio.is_write, 1);
  EXPECT_EQ(write.mmio.data[0], 0x43);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
}

TEST_F(GuestTest, RepeatedStringOutputKeepsItsPlace) {
  // mov si, 0x2000; mov cx, 3; mov dx, 0x20; rep outsb; hlt
  code(code_at, {0xbe, 0x00, 0x20, 0xb9, 0x03, 0x00, 0xba, 0x20, 0x00, 0xf3, 0x6e, 0xf4});
  memcpy(memory_ + 0x2000, "abc", 3);
  start();
  std::string seen;
  for (int i = 0; i < 3; ++i) {
    kvm_run& r = run();
    ASSERT_EQ(r.exit_reason, KVM_EXIT_IO);
    seen += static_cast<char>(*io_data(r));
  }
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(seen, "abc");
  EXPECT_EQ(regs().rsi & 0xffff, 0x2003u);
  EXPECT_EQ(regs().rcx & 0xffff, 0u);
}

TEST_F(GuestTest, StoreIntoTheRunningBlockTakesEffectAtOnce) {
  // mov byte [next + 1], 0x42; next: mov al, 0x11; hlt
  code(code_at, {0xc6, 0x06, 0x06, 0x10, 0x42, 0xb0, 0x11, 0xf4});
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 0x42u);
}

TEST_F(GuestTest, RepeatedSelfModificationIsSeenEveryTime) {
  // mov cx, 100; top: inc byte [imm + 1]; imm: mov al, 0; loop top; hlt
  code(code_at, {0xb9, 0x64, 0x00, 0xfe, 0x06, 0x08, 0x10, 0xb0, 0x00, 0xe2, 0xf8, 0xf4});
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 100u);
}

TEST_F(GuestTest, CodeWrittenByTheVmmBetweenRunsIsNoticed) {
  // mov al, 1; hlt
  code(code_at, {0xb0, 0x01, 0xf4});
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 1u);
  memory_[code_at + 1] = 9;
  enter(0, code_at);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 9u);
}

TEST_F(GuestTest, InstructionAcrossPagesFollowsBothOfThem) {
  // mov ax, imm16 with its last byte on the next page, then hlt
  code(0x1ffe, {0xb8, 0x34, 0x12, 0xf4});
  start();
  enter(0, 0x1ffe);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xffff, 0x1234u);
  memory_[0x2000] = 0x56;
  enter(0, 0x1ffe);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xffff, 0x5634u);
}

TEST_F(GuestTest, TripleFaultIsAShutdown) {
  // lidt [0x3000] with limit 0; int3
  code(code_at, {0x0f, 0x01, 0x1e, 0x00, 0x30, 0xcc});
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_SHUTDOWN);
}

TEST_F(GuestTest, KickEndsALoopWithInterruptsOff) {
  code(code_at, {0xfa, 0xeb, 0xfe}); // cli; jmp $
  start();
  std::thread kicker([this] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    vcpu_[0]->kick();
  });
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  EXPECT_EQ(vcpu_[0]->run_page().exit_reason, KVM_EXIT_INTR);
  kicker.join();
  vcpu_[0]->kick(); // before KVM_RUN: sticky
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
}

TEST_F(GuestTest, ImmediateExitRunsNothing) {
  code(code_at, {0xb0, 0x01, 0xf4});
  start();
  vcpu_[0]->run_page().immediate_exit = 1;
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  EXPECT_EQ(regs().rip, code_at);
}

TEST_F(GuestTest, RemovedMemoryBecomesADevice) {
  // mov al, [0x3000]; hlt, twice
  code(code_at, {0xa0, 0x00, 0x30, 0xf4});
  memory_[0x3000] = 0x21;
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 0x21u);
  kvm_userspace_memory_region slot{};
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0); // delete slot 0
  slot.memory_size = 0x2000;
  slot.userspace_addr = reinterpret_cast<u64>(memory_);
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  enter(0, code_at);
  kvm_run& r = run();
  ASSERT_EQ(r.exit_reason, KVM_EXIT_MMIO);
  EXPECT_EQ(r.mmio.phys_addr, 0x3000u);
}

TEST_F(GuestTest, DirtyLogSeesStoresAgainAfterEachRead) {
  // mov [0x5000], al; hlt
  code(code_at, {0xa2, 0x00, 0x50, 0xf4});
  start();
  kvm_userspace_memory_region slot{};
  slot.memory_size = memory_size;
  slot.userspace_addr = reinterpret_cast<u64>(memory_);
  slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  for (int round = 0; round < 3; ++round) {
    enter(0, code_at);
    EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
    std::vector<u64> bitmap(memory_size / 4096 / 64);
    ASSERT_EQ(vm_->get_dirty_log(0, bitmap), 0);
    EXPECT_EQ(bitmap[0], u64{1} << 5) << "round " << round;
  }
}

TEST_F(GuestTest, InjectedInterruptGoesThroughTheVectorTable) {
  // sti; nop; jmp $  — vector 0x20 at 0x1800: mov al, 0x99; hlt
  code(code_at, {0xfb, 0x90, 0xeb, 0xfe});
  code(0x1800, {0xb0, 0x99, 0xf4});
  code(0x20 * 4, {0x00, 0x18, 0x00, 0x00});
  start();
  ASSERT_EQ(vcpu_[0]->interrupt(0x21), 0);
  ASSERT_EQ(vcpu_[0]->interrupt(0x20), 0) << "without any chip of ours the last one counts";
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 0x99u);
}

TEST_F(GuestTest, AnotherVcpuSeesModifiedCode) {
  // vCPU 0 spins on the immediate at 0x1001: top: mov al, 0; test al, al; jz top; hlt
  code(code_at, {0xb0, 0x00, 0x84, 0xc0, 0x74, 0xfa, 0xf4});
  // vCPU 1: mov byte [0x1001], 7; hlt
  code(0x2000, {0xc6, 0x06, 0x01, 0x10, 0x07, 0xf4});
  start(2);
  enter(1, 0x2000);
  std::thread spinner([this] { EXPECT_EQ(vcpu_[0]->run(), 0); });
  std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(vcpu_[1]->run(), 0);
  spinner.join();
  EXPECT_EQ(vcpu_[0]->run_page().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 7u);
}

TEST_F(GuestTest, LockedIncrementsOfTwoVcpusAddUp) {
  // mov cx, 0; top: lock inc dword [0x6000]; loop top; hlt  (65536 rounds each)
  code(code_at, {0x31, 0xc9, 0xf0, 0x66, 0xff, 0x06, 0x00, 0x60, 0xe2, 0xf8, 0xf4});
  start(2);
  std::thread other([this] { EXPECT_EQ(vcpu_[1]->run(), 0); });
  EXPECT_EQ(vcpu_[0]->run(), 0);
  other.join();
  u32 total;
  memcpy(&total, memory_ + 0x6000, sizeof total);
  EXPECT_EQ(total, 2 * 65536u);
}

TEST_F(GuestTest, TzcntIsBsfWhereCpuidHasNoBmi1) {
  // mov bx, 0; mov ax, 0x1234; tzcnt ax, bx; hlt — BSF leaves AX alone, TZCNT makes it 16
  const auto program = {0xbb, 0x00, 0x00, 0xb8, 0x34, 0x12, 0xf3, 0x0f, 0xbc, 0xc3, 0xf4};
  code(code_at, program);
  start(1, "base");
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xffff, 0x1234u);
}

TEST_F(GuestTest, InstructionsThatCpuidDoesNotOfferAreUndefined) {
  // popcnt ax, bx; hlt — the baseline has no POPCNT; vector 6 at 0x1800: mov al, 0x66; hlt
  code(code_at, {0xf3, 0x0f, 0xb8, 0xc3, 0xf4});
  code(6 * 4, {0x00, 0x18, 0x00, 0x00});
  code(0x1800, {0xb0, 0x66, 0xf4});
  start(1, "base");
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  EXPECT_EQ(regs().rax & 0xff, 0x66u);
}

TEST_F(GuestTest, StateCallsRefuseImpossibleStates) {
  start();
  kvm_sregs s{};
  ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
  kvm_sregs bad = s;
  bad.cr0 |= u64{1} << 31; // PG without PE
  EXPECT_EQ(vcpu_[0]->set_sregs(bad), -EINVAL);
  bad = s;
  bad.cr4 |= u64{1} << 13; // VMXE: no VMX here
  EXPECT_EQ(vcpu_[0]->set_sregs(bad), -EINVAL);
  bad = s;
  bad.efer = u64{1} << 10; // LMA alone
  EXPECT_EQ(vcpu_[0]->set_sregs(bad), -EINVAL);
  kvm_msr_entry unknown{};
  unknown.index = 0x12345678;
  EXPECT_EQ(vcpu_[0]->set_msrs({&unknown, 1}), 0);
  kvm::VcpuApi* again = nullptr;
  EXPECT_EQ(vm_->create_vcpu(0, again), -EEXIST);
  EXPECT_EQ(vm_->create_vcpu(4096, again), -EINVAL);
  EXPECT_EQ(vm_->create_irqchip(), -EINVAL);
}

} // namespace
} // namespace ring3
