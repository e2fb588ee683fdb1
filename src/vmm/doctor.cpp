// SPDX-License-Identifier: Apache-2.0
#include "vmm/doctor.h"

#include "kvm/host_tsc.h"
#include "kvm/run_delay.h"
#include "vmm/preload.h"
#include "x86/api/system.h"

#include <array>
#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <fstream>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ring3::vmm {

namespace {

using Status = Finding::Status;

class Descriptor {
 public:
  explicit Descriptor(long fd) : fd_(static_cast<int>(fd)), error_(fd < 0 ? errno : 0) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  bool valid() const { return fd_ >= 0; }
  int get() const { return fd_; }
  std::string why() const { return std::strerror(error_); }

 private:
  int fd_;
  int error_;
};

Finding processor() {
  const auto ok = x86::check_host();
  if (!ok) return {"processor", Status::problem, ok.error().message, ok.error().fix};
  return {"processor", Status::ok, "has what guest instructions run on", ""};
}

Finding translator() {
  const auto ok = x86::check_engine(x86::Engine::translator);
  if (!ok) return {"translator", Status::problem, ok.error().message, ok.error().fix};
  return {"translator", Status::ok, "guest code can be translated to host code", ""};
}

Finding library() {
  const auto variables = preload_environment({});
  if (!variables) return {"library", Status::problem, variables.error().message, variables.error().fix};
  return {"library", Status::ok, "the preloaded library is in its place", ""};
}

Finding cpus() {
  cpu_set_t set;
  const int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return {"cpus", Status::ok, fmt::format("{} for this process: as many vCPUs run at a time", count), ""};
}

Finding memory_files() {
  const Descriptor fd(memfd_create("ring3-doctor", MFD_CLOEXEC));
  if (!fd.valid())
    return {"memfd", Status::problem, "memory files cannot be made: " + fd.why(),
            "allow memfd_create in the container's seccomp profile"};
  return {"memfd", Status::ok, "memory files can be made, which vCPUs are shared with the VMM by", ""};
}

// The CPUID instructions of a VMM are replaced in its code.
Finding code_changes() {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  void* const p = mmap(nullptr, page, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const bool ok = p != MAP_FAILED && mprotect(p, page, PROT_READ | PROT_WRITE) == 0 &&
                  mprotect(p, page, PROT_READ | PROT_EXEC) == 0;
  if (p != MAP_FAILED) munmap(p, page);
  if (ok)
    return {"code", Status::ok, "a program's code can be changed, which VMMs that execute CPUID need", ""};
  return {"code", Status::note,
          "a program's code cannot be changed, so VMMs that ask the processor itself see the host's",
          "allow execmem and execmod for the VMM in the host's security policy"};
}

Finding clock() {
  const u64 khz = kvm::host_tsc_khz();
  if (khz != 0)
    return {"tsc", Status::ok,
            fmt::format("the time stamp counter is a clock of {}.{:03} MHz", khz / 1000, khz % 1000), ""};
  return {"tsc", Status::note,
          "the time stamp counter is no clock here: guests' RDTSC asks the kernel instead",
          "if this host is a VM itself, give it an invariant TSC"};
}

Finding steal_time() {
  if (kvm::thread_run_delay())
    return {"steal-time", Status::ok,
            "the kernel says how long threads wait, which guests see as stolen time", ""};
  return {"steal-time", Status::note,
          "the kernel keeps no /proc/thread-self/schedstat: guests get no steal time",
          "use a kernel with CONFIG_SCHED_INFO"};
}

Finding user_faults() {
  const Descriptor fd(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
  if (fd.valid()) return {"userfaultfd", Status::ok, "VMMs can load guest memory on demand", ""};
  return {"userfaultfd", Status::note,
          "not for this user, so VMMs cannot load guest memory on demand: " + fd.why(),
          "set vm.unprivileged_userfaultfd=1, or allow it in the container's seccomp profile"};
}

Finding descriptors() {
  constexpr rlim_t comfortable = 4096;
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  if (limit.rlim_max >= comfortable)
    return {"descriptors", Status::ok, fmt::format("up to {} open files", limit.rlim_max), ""};
  return {"descriptors", Status::note,
          fmt::format("{} open files at most, and each vCPU is one: too few for 1024 vCPUs", limit.rlim_max),
          "raise the hard limit of open files (ulimit -Hn)"};
}

Finding overcommit() {
  int mode = 0;
  std::ifstream("/proc/sys/vm/overcommit_memory") >> mode;
  constexpr int never = 2;
  if (mode != never) return {"memory", Status::ok, "guests' memory takes room only as it is used", ""};
  return {"memory", Status::note, "this host does not overcommit: guests' memory counts in full at once",
          "set vm.overcommit_memory to 0, or give guests less memory"};
}

Finding kernel_kvm() {
  const Descriptor fd(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  const int version = fd.valid() ? ioctl(fd.get(), KVM_GET_API_VERSION, 0) : -1;
  if (version == KVM_API_VERSION)
    return {"kernel-kvm", Status::ok, "the kernel has a /dev/kvm of its own; `ring3 exec` takes its place",
            ""};
  return {"kernel-kvm", Status::ok,
          fmt::format("the kernel's /dev/kvm is of no use here ({}); none is needed",
                      fd.valid() ? "no KVM" : fd.why()),
          ""};
}

constexpr std::array<const char*, 8> vmm_names = {
    "qemu-system-x86_64", "qemu-system-i386", "kvm",    "lkvm",
    "cloud-hypervisor",   "firecracker",      "crosvm", "qemu-kvm"};

} // namespace

std::vector<Finding> examine_host() {
  return {processor(), translator(), library(),     cpus(),        memory_files(), code_changes(),
          clock(),     steal_time(), user_faults(), descriptors(), overcommit(),   kernel_kvm()};
}

std::vector<FoundVmm> find_vmms() {
  std::vector<FoundVmm> found;
  for (const char* name : vmm_names) {
    const std::string path = find_program(name);
    if (path.empty()) continue;
    if (const auto ok = check_preloadable(path); !ok) {
      found.push_back({name, path, Status::problem, ok.error().message, ok.error().fix});
    } else {
      found.push_back(
          {name, path, Status::ok, fmt::format("by the preloaded library: ring3 exec -- {} ...", name), ""});
    }
  }
  return found;
}

} // namespace ring3::vmm
