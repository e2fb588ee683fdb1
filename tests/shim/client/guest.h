// SPDX-License-Identifier: Apache-2.0
// A client of /dev/kvm that knows nothing of this project: system calls and <linux/kvm.h>. Its tests run
// under `ring3 exec`, and would run on a kernel's KVM.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <initializer_list>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace client {

// Structures that end in an array of unknown length have another size for C++ than for the kernel, so the
// numbers that are made of their sizes are spelled out.
constexpr unsigned long get_supported_cpuid = _IOC(_IOC_READ | _IOC_WRITE, KVMIO, 0x05, 8);
constexpr unsigned long set_cpuid2 = _IOC(_IOC_WRITE, KVMIO, 0x90, 8);
constexpr unsigned long set_signal_mask = _IOC(_IOC_WRITE, KVMIO, 0x8b, 4);
struct CpuidList {
  std::uint32_t count = 256, padding = 0;
  kvm_cpuid_entry2 entry[256];
};

// A VM with one vCPU in real mode, a mebibyte of memory, and code at 0x1000.
class Guest : public testing::Test {
 protected:
  static constexpr std::size_t memory_size = 1 << 20;
  static constexpr std::uint64_t code_at = 0x1000;

  void SetUp() override {
    kvm_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    ASSERT_GE(kvm_, 0) << strerror(errno);
    vm_ = ioctl(kvm_, KVM_CREATE_VM, 0);
    ASSERT_GE(vm_, 0) << strerror(errno);
    memory_ = static_cast<std::uint8_t*>(
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    kvm_userspace_memory_region slot{};
    slot.memory_size = memory_size;
    slot.userspace_addr = reinterpret_cast<std::uint64_t>(memory_);
    ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0) << strerror(errno);
    prepare_vm();
    vcpu_ = ioctl(vm_, KVM_CREATE_VCPU, 0);
    ASSERT_GE(vcpu_, 0) << strerror(errno);
    const int size = ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0);
    run_ = static_cast<kvm_run*>(
        mmap(nullptr, static_cast<std::size_t>(size), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0));
    ASSERT_NE(run_, MAP_FAILED) << strerror(errno);
    run_size_ = static_cast<std::size_t>(size);
    kvm_sregs s;
    ASSERT_EQ(ioctl(vcpu_, KVM_GET_SREGS, &s), 0);
    s.cs.base = 0;
    s.cs.selector = 0;
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_SREGS, &s), 0);
    go_to(code_at);
  }
  void TearDown() override {
    munmap(run_, run_size_);
    munmap(memory_, memory_size);
    for (const int fd : {vcpu_, vm_, kvm_}) close(fd);
  }

  // Between the memory and the vCPU.
  virtual void prepare_vm() {}

  void code(std::initializer_list<int> bytes, std::uint64_t at = code_at) {
    for (const int b : bytes) memory_[at++] = static_cast<std::uint8_t>(b);
  }
  void go_to(std::uint64_t rip) {
    kvm_regs r{};
    r.rip = rip;
    r.rsp = 0x8000;
    r.rflags = 2;
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_REGS, &r), 0);
  }
  kvm_regs regs() {
    kvm_regs r{};
    EXPECT_EQ(ioctl(vcpu_, KVM_GET_REGS, &r), 0);
    return r;
  }
  void set_regs(const kvm_regs& r) { ASSERT_EQ(ioctl(vcpu_, KVM_SET_REGS, &r), 0); }
  int enter() { return ioctl(vcpu_, KVM_RUN, 0); }
  std::uint8_t* io_data() { return reinterpret_cast<std::uint8_t*>(run_) + run_->io.data_offset; }

  int kvm_ = -1, vm_ = -1, vcpu_ = -1;
  std::uint8_t* memory_ = nullptr;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
};

} // namespace client
