// SPDX-License-Identifier: Apache-2.0
// Descriptors as the kernel treats them, the files beside them, and the processor that the program sees.
#include "guest.h"

#include <atomic>
#include <cpuid.h>
#include <cstdio>
#include <string>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <thread>
#include <vector>

namespace client {
namespace {

using Descriptors = Guest;

TEST_F(Descriptors, DeviceLooksLikeOne) {
  struct stat st {};
  ASSERT_EQ(stat("/dev/kvm", &st), 0);
  EXPECT_TRUE(S_ISCHR(st.st_mode));
  EXPECT_EQ(st.st_rdev, makedev(10, 232));
  EXPECT_EQ(access("/dev/kvm", R_OK | W_OK), 0);
  EXPECT_EQ(ioctl(kvm_, KVM_GET_API_VERSION, 0), KVM_API_VERSION);
  EXPECT_EQ(ioctl(kvm_, KVM_GET_API_VERSION, 1), -1);
  EXPECT_EQ(errno, EINVAL);
}

TEST_F(Descriptors, CopiesAreTheSameObject) {
  const int copy = dup(vm_);
  ASSERT_GE(copy, 0);
  EXPECT_EQ(ioctl(copy, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
  close(vm_);
  EXPECT_EQ(ioctl(copy, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), 1);
  EXPECT_EQ(ioctl(vm_, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY), -1);
  EXPECT_EQ(errno, EBADF);
  vm_ = copy;
}

TEST_F(Descriptors, NumberThatIsReusedIsSomethingElse) {
  const int other = open("/dev/null", O_RDONLY);
  ASSERT_EQ(dup2(other, kvm_), kvm_);
  EXPECT_EQ(ioctl(kvm_, KVM_GET_API_VERSION, 0), -1);
  EXPECT_EQ(errno, ENOTTY);
  close(other);
}

TEST_F(Descriptors, VcpuOutlivesTheOtherDescriptors) {
  code({0xf4});
  close(vm_);
  close(kvm_);
  EXPECT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  vm_ = kvm_ = -1;
}

std::size_t resident_bytes() {
  std::size_t total = 0;
  std::size_t resident = 0;
  FILE* const f = fopen("/proc/self/statm", "r");
  EXPECT_NE(f, nullptr);
  EXPECT_EQ(fscanf(f, "%zu %zu", &total, &resident), 2);
  fclose(f);
  return resident * static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
}

// A VMM may make a thousand of them, and a test may make thousands one after another.
TEST_F(Descriptors, VcpuThatDoesNotRunTakesLittleMemory) {
  constexpr int count = 32;
  CpuidList list;
  ASSERT_EQ(ioctl(kvm_, get_supported_cpuid, &list), 0);
  std::vector<int> vcpus;
  const std::size_t before = resident_bytes();
  for (int i = 1; i <= count; ++i) {
    vcpus.push_back(ioctl(vm_, KVM_CREATE_VCPU, i));
    ASSERT_GE(vcpus.back(), 0) << strerror(errno);
    ASSERT_EQ(ioctl(vcpus.back(), set_cpuid2, &list), 0);
  }
  EXPECT_LT(resident_bytes() - before, std::size_t{count} << 20);
  for (const int fd : vcpus) close(fd);
}

// Threads that open and close other files while descriptors of ours come and go.
TEST_F(Descriptors, OtherFilesAreClosedBesidesThem) {
  std::atomic<bool> done{false};
  std::vector<std::thread> others;
  for (int i = 0; i < 4; ++i) {
    others.emplace_back([&] {
      while (!done) {
        const int fd = open("/dev/null", O_RDWR);
        if (fd < 0 || ioctl(fd, KVM_GET_API_VERSION, 0) != -1 || errno != ENOTTY) ADD_FAILURE() << fd;
        close(fd);
      }
    });
  }
  for (int i = 0; i < 50; ++i) {
    const int kvm = open("/dev/kvm", O_RDWR);
    ASSERT_GE(kvm, 0);
    EXPECT_EQ(ioctl(kvm, KVM_GET_API_VERSION, 0), KVM_API_VERSION);
    close(kvm);
  }
  done = true;
  for (std::thread& t : others) t.join();
}

// What stands behind a descriptor is no file of the program's: it cannot take the memory away that KVM_RUN
// uses.
TEST_F(Descriptors, AreNoFiles) {
  for (const int fd : {kvm_, vm_, vcpu_}) {
    char byte = 0;
    EXPECT_EQ(ftruncate(fd, 0), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(fallocate(fd, 0, 0, 4096), -1);
    EXPECT_EQ(errno, ENODEV);
    EXPECT_EQ(read(fd, &byte, 1), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(pwrite(fd, &byte, 1, 0), -1);
    EXPECT_EQ(errno, EINVAL);
    EXPECT_EQ(lseek(fd, 5, SEEK_SET), 0);
  }
  for (const int fd : {kvm_, vm_}) {
    EXPECT_EQ(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, fd, 0), MAP_FAILED);
    EXPECT_EQ(errno, ENODEV);
  }
  // By another way to the same file, too.
  const std::string path = "/proc/self/fd/" + std::to_string(vcpu_);
  const int again = open(path.c_str(), O_RDWR);
  EXPECT_EQ(again < 0 ? -1 : ftruncate(again, 0), -1);
  close(again);
  code({0xf4});
  EXPECT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
}

// The child of a vfork() shares the memory of its parent, but closes only what is its own. (Python's
// subprocess does this with all descriptors.)
TEST_F(Descriptors, VforkedChildClosesItsOwn) {
  code({0xf4});
  const pid_t child = vfork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    close(vcpu_);
    dup2(kvm_, vm_);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(enter(), 0);
  EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  EXPECT_EQ(ioctl(vm_, KVM_CREATE_VCPU, 0), -1);
  EXPECT_EQ(errno, EEXIST); // still the VM
}

// A copy that came by a socket or /proc is the object too, also when it then takes the place of the original.
TEST_F(Descriptors, CopyBySelfReopenReplacesTheOriginal) {
  const std::string path = "/proc/self/fd/" + std::to_string(vm_);
  const int again = open(path.c_str(), O_RDWR);
  ASSERT_GE(again, 0) << strerror(errno);
  ASSERT_EQ(dup2(again, vm_), vm_);
  EXPECT_EQ(ioctl(vm_, KVM_CREATE_VCPU, 0), -1);
  EXPECT_EQ(errno, EEXIST);
  close(vm_);
  EXPECT_EQ(ioctl(again, KVM_CREATE_VCPU, 0), -1);
  EXPECT_EQ(errno, EEXIST);
  vm_ = again;
}

// KVM's descriptors belong to the process that made the VM.
TEST_F(Descriptors, ChildCannotUseTheVm) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    kvm_regs r;
    const bool refused = ioctl(vcpu_, KVM_GET_REGS, &r) == -1 && errno == EIO;
    const int kvm = open("/dev/kvm", O_RDWR);
    const int vm = kvm >= 0 ? ioctl(kvm, KVM_CREATE_VM, 0) : -1;
    const int vcpu = vm >= 0 ? ioctl(vm, KVM_CREATE_VCPU, 0) : -1;
    const bool own = vcpu >= 0 && ioctl(vcpu, KVM_GET_REGS, &r) == 0;
    _exit((refused ? 0 : 1) | (own ? 0 : 2));
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}

#ifndef __SANITIZE_ADDRESS__ // which needs more addresses than this leaves
TEST(Memory, LogThatFindsNoRoomIsEnomem) {
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const int kvm = open("/dev/kvm", O_RDWR);
    const int vm = ioctl(kvm, KVM_CREATE_VM, 0);
    const rlimit limit{1UL << 28, 1UL << 28};
    setrlimit(RLIMIT_AS, &limit);
    kvm_userspace_memory_region slot{};
    slot.memory_size = ((1UL << 31) - 1) * 4096; // the largest: 256 MiB of log
    slot.userspace_addr = 0x10000;
    slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
    const bool refused = ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == -1 && errno == ENOMEM;
    slot.memory_size = 1UL << 20;
    _exit(refused && ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}
#endif

TEST(Files, ModuleParameters) {
  FILE* const f = fopen("/sys/module/kvm/parameters/ignore_msrs", "r");
  ASSERT_NE(f, nullptr);
  EXPECT_EQ(fgetc(f), 'N');
  fclose(f);
  EXPECT_EQ(open("/sys/module/kvm/parameters/ignore_msrs", O_RDWR), -1);
  EXPECT_EQ(errno, EACCES);
}

// Compiled here, so patched here: the processor that the program sees can do virtualization, and its vendor
// is the guests'.
TEST(Processor, IsTheGuests) {
  const int kvm = open("/dev/kvm", O_RDWR);
  ASSERT_GE(kvm, 0);
  CpuidList list;
  ASSERT_EQ(ioctl(kvm, get_supported_cpuid, &list), 0);
  close(kvm);
  unsigned a, b, c, d;
  __cpuid(0, a, b, c, d);
  ASSERT_EQ(list.entry[0].function, 0u);
  EXPECT_EQ(b, list.entry[0].ebx);
  EXPECT_EQ(c, list.entry[0].ecx);
  EXPECT_EQ(d, list.entry[0].edx);
  const bool amd = d == 0x69746e65;
  __cpuid(1, a, b, c, d);
  const bool vmx = (c & 1U << 5) != 0;
  __cpuid(0x80000001, a, b, c, d);
  const bool svm = (c & 1U << 2) != 0;
  EXPECT_EQ(vmx, !amd);
  EXPECT_EQ(svm, amd);
}

// What KVM_GET_SUPPORTED_CPUID leaves out and guests may have all the same is the processor's to show.
TEST(Processor, HasMonitorAndMwait) {
  unsigned a, b, c, d;
  __cpuid(1, a, b, c, d);
  EXPECT_NE(c & 1U << 3, 0u);
  __cpuid(5, a, b, c, d);
  EXPECT_GT(a & 0xffff, 0u) << "smallest monitored range";
  EXPECT_GE(b & 0xffff, a & 0xffff) << "largest";
}

} // namespace
} // namespace client
