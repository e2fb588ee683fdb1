// SPDX-License-Identifier: Apache-2.0
// KVM_RUN and what can go wrong around it.
#include "guest.h"

#include <algorithm>
#include <thread>

namespace client {
namespace {

using KvmRun = Guest;

TEST_F(KvmRun, PortsAndHalt) {
  code({0xb0, 'R', 0xe6, 0x10, 0xe4, 0x11, 0xf4}); // mov al, 'R'; out 0x10, al; in al, 0x11; hlt
  ASSERT_EQ(enter(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(run_->io.port, 0x10);
  EXPECT_EQ(run_->io.direction, KVM_EXIT_IO_OUT);
  EXPECT_EQ(*io_data(), 'R');
  ASSERT_EQ(enter(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(run_->io.direction, KVM_EXIT_IO_IN);
  *io_data() = 0x5a;
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rax & 0xff, 0x5a);
}

// api.rst 5: io.count elements of a string come at once.
TEST_F(KvmRun, RepeatedInputComesInBatches) {
  constexpr unsigned count = 3000;
  code({0xfc, 0xf3, 0x6c, 0xf4}); // cld; rep insb; hlt
  kvm_regs r = regs();
  r.rcx = count;
  r.rdx = 0x80;
  r.rdi = 0x4f00;
  set_regs(r);
  unsigned delivered = 0;
  unsigned exits = 0;
  for (;;) {
    ASSERT_EQ(enter(), 0);
    if (run_->exit_reason == KVM_EXIT_HLT) break;
    ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    ASSERT_EQ(run_->io.size, 1);
    ASSERT_LE(run_->io.count, count - delivered);
    for (unsigned i = 0; i < run_->io.count; ++i) io_data()[i] = static_cast<std::uint8_t>(delivered++ * 7);
    ++exits;
  }
  EXPECT_EQ(delivered, count);
  EXPECT_LE(exits, 8u);
  EXPECT_EQ(regs().rcx, 0u);
  EXPECT_EQ(regs().rdi, 0x4f00u + count);
  for (unsigned i = 0; i < count; ++i) ASSERT_EQ(memory_[0x4f00 + i], static_cast<std::uint8_t>(i * 7)) << i;
}

TEST_F(KvmRun, CountChangedByUserSpaceStaysInBounds) {
  code({0xfc, 0xf3, 0x6c, 0xf4});
  kvm_regs r = regs();
  r.rcx = 2;
  r.rdx = 0x80;
  r.rdi = 0x5000;
  set_regs(r);
  ASSERT_EQ(enter(), 0);
  ASSERT_EQ(run_->io.count, 2u);
  io_data()[0] = 0x11;
  io_data()[1] = 0x22;
  r = regs();
  r.rcx = 1;
  set_regs(r);
  ASSERT_EQ(enter(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rdi, 0x5001u);
  EXPECT_EQ(memory_[0x5000], 0x11);
  EXPECT_EQ(memory_[0x5001], 0);
}

// QEMU's option ROM depends on it (KVM_X86_QUIRK_OUT_7E_INC_RIP).
TEST_F(KvmRun, OutToPort7eIsOverBeforeTheExit) {
  code({0xe7, 0x7e, 0xf4}); // out 0x7e, ax; hlt
  ASSERT_EQ(enter(), 0);
  ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
  EXPECT_EQ(regs().rip, code_at + 2);
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));

  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_DISABLE_QUIRKS2;
  cap.args[0] = KVM_X86_QUIRK_OUT_7E_INC_RIP;
  ASSERT_EQ(ioctl(vm_, KVM_ENABLE_CAP, &cap), 0);
  go_to(code_at);
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(regs().rip, code_at);
}

TEST_F(KvmRun, ImmediateExitFinishesTheInstruction) {
  code({0xe4, 0x11, 0xf4}); // in al, 0x11; hlt
  ASSERT_EQ(enter(), 0);
  *io_data() = 0x77;
  run_->immediate_exit = 1;
  EXPECT_EQ(enter(), -1);
  EXPECT_EQ(errno, EINTR);
  run_->immediate_exit = 0;
  EXPECT_EQ(regs().rip, code_at + 2);
  EXPECT_EQ(regs().rax & 0xff, 0x77);
}

TEST_F(KvmRun, MemoryThatIsGoneIsEfault) {
  code({0xa0, 0x00, 0x90, 0xf4}); // mov al, [0x9000]; hlt
  munmap(memory_ + 0x9000, 4096);
  EXPECT_EQ(enter(), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(regs().rip, code_at);
  mmap(memory_ + 0x9000, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  memory_[0x9000] = 0x42;
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rax & 0xff, 0x42);
}

// Half of a locked operand is gone. What guards such operations must not stay locked.
TEST_F(KvmRun, LockedSplitOnMemoryThatIsGone) {
  code({0xf0, 0x66, 0x83, 0x06, 0xfe, 0x8f, 0x01, 0xf4}); // lock add dword [0x8ffe], 1; hlt
  memory_[0x8ffe] = 0xff;
  for (int i = 0; i < 2; ++i) {
    mprotect(memory_ + 0x9000, 4096, PROT_NONE);
    EXPECT_EQ(enter(), -1);
    EXPECT_EQ(errno, EFAULT);
    EXPECT_EQ(regs().rip, code_at);
  }
  mprotect(memory_ + 0x9000, 4096, PROT_READ | PROT_WRITE);
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(memory_[0x8fff], 1);
}

// The next instruction is missing, so the one before has been executed, and is not again.
TEST_F(KvmRun, MissingCodeLeavesRipThere) {
  code({0xe8, 0xfd, 0x1f}); // call 0x3000
  code({0xf4}, 0x3000);
  ASSERT_EQ(mprotect(memory_ + 0x3000, 4096, PROT_NONE), 0);
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(enter(), -1);
    EXPECT_EQ(errno, EFAULT);
    EXPECT_EQ(regs().rip, 0x3000u);
    EXPECT_EQ(regs().rsp, 0x7ffeu);
  }
  ASSERT_EQ(mprotect(memory_ + 0x3000, 4096, PROT_READ | PROT_WRITE), 0);
  EXPECT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(regs().rsp, 0x7ffeu);
}

// A slot whose memory is gone is deleted while a guest runs in it.
TEST_F(KvmRun, SlotWithoutMemoryIsDeletedUnderTheGuest) {
  // A loop over a far page: mov es, ax; again: mov al, es:[bx]; inc bx; jmp again
  code({0xb8, 0x00, 0x20, 0x8e, 0xc0, 0x26, 0x8a, 0x07, 0x43, 0xeb, 0xfa});
  kvm_userspace_memory_region slot{};
  slot.slot = 1;
  slot.guest_phys_addr = memory_size;
  slot.memory_size = memory_size;
  for (int round = 0; round < 200; ++round) {
    void* const extra =
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    slot.userspace_addr = reinterpret_cast<std::uint64_t>(extra);
    slot.memory_size = memory_size;
    ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    kvm_sregs s;
    ASSERT_EQ(ioctl(vcpu_, KVM_GET_SREGS, &s), 0);
    s.es.base = memory_size;
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_SREGS, &s), 0);
    go_to(code_at + 5);
    std::thread other([&] {
      mprotect(extra, memory_size, PROT_NONE);
      slot.memory_size = 0;
      EXPECT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    });
    // Sooner or later an access to what is not there, or, with the slot gone, to a device.
    const int result = enter();
    EXPECT_TRUE((result == -1 && errno == EFAULT) || (result == 0 && run_->exit_reason == KVM_EXIT_MMIO));
    other.join();
    munmap(extra, memory_size);
  }
}

TEST_F(KvmRun, CodeWrittenByTheClientIsSeen) {
  code({0xb0, 0x01, 0xe6, 0x10, 0xeb, 0xfa}); // again: mov al, 1; out 0x10, al; jmp again
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(*io_data(), 1);
  memory_[code_at + 1] = 2;
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(*io_data(), 2);
  ASSERT_EQ(madvise(memory_, memory_size, MADV_DONTNEED), 0);
  code({0xb0, 0x03, 0xe6, 0x10, 0xeb, 0xfa});
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(*io_data(), 3);
}

// api.rst 4.41: two threads cannot run one vCPU; and CPUID is settled once the guest has seen it.
TEST_F(KvmRun, CpuidIsSettledByTheFirstRun) {
  CpuidList list;
  ASSERT_EQ(ioctl(kvm_, get_supported_cpuid, &list), 0);
  ASSERT_EQ(ioctl(vcpu_, set_cpuid2, &list), 0);
  code({0xf4});
  ASSERT_EQ(enter(), 0);
  EXPECT_EQ(ioctl(vcpu_, set_cpuid2, &list), 0);
  list.entry[1].eax ^= 0x10;
  EXPECT_EQ(ioctl(vcpu_, set_cpuid2, &list), -1);
  EXPECT_EQ(errno, EINVAL);
}

} // namespace
} // namespace client
