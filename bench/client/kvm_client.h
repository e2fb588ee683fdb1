// SPDX-License-Identifier: Apache-2.0
// What the benchmarks' clients of /dev/kvm have in common. They know nothing of what is behind it, so that
// they measure a kernel's KVM and `ring3 exec` alike.
#pragma once

#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <initializer_list>
#include <linux/kvm.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

namespace bench {

inline std::uint64_t now_ns() {
  timespec t{};
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * 1'000'000'000 + static_cast<std::uint64_t>(t.tv_nsec);
}

template <class T> T check(T result, const char* what) {
  if (result < 0) {
    std::fprintf(stderr, "%s: %s\n", what, std::strerror(errno));
    std::exit(3);
  }
  return result;
}

// A VM with one vCPU, and a page for kvm_run.
struct Vm {
  Vm() {
    kvm = check(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    vm = check(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    vcpu = check(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    run_size =
        static_cast<std::size_t>(check(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"));
    void* const p = mmap(nullptr, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    check(p == MAP_FAILED ? -1 : 0, "mmap of the vCPU");
    run = static_cast<kvm_run*>(p);
  }
  ~Vm() {
    munmap(run, run_size);
    for (const int fd : {vcpu, vm, kvm}) close(fd);
  }
  Vm(const Vm&) = delete;
  Vm& operator=(const Vm&) = delete;

  int kvm, vm, vcpu;
  std::size_t run_size;
  kvm_run* run;
};

inline std::uint8_t* memory(std::size_t size) {
  void* const p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  check(p == MAP_FAILED ? -1 : 0, "mmap");
  return static_cast<std::uint8_t*>(p);
}

} // namespace bench
