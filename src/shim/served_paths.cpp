// SPDX-License-Identifier: Apache-2.0
#include "shim/served_paths.h"

#include "base/host_pages.h"
#include "shim/descriptors.h"
#include "shim/real_calls.h"
#include "shim/settings.h"
#include "shim/system_object.h"

#include <algorithm>
#include <cerrno>
#include <cpuid.h>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/sysmacros.h>
#include <unistd.h>

namespace ring3::shim {

namespace {

constexpr unsigned kvm_major = 10, kvm_minor = 232; // Documentation/admin-guide/devices.txt

struct Parameter {
  std::string_view module, name, value;
  bool large_pages = false; // N after all if the host does not tell of large pages
};
// What is true of ours. A guest's page tables are walked as they are, so its own MAXPHYADDR holds exactly and
// there is no second dimension that could have another: KVM has that without EPT and NPT only.
constexpr Parameter parameters[] = {
    {"kvm", "ignore_msrs", "N\n"},
    {"kvm", "enable_pmu", "N\n"},
    {"kvm", "enable_vmware_backdoor", "N\n"},
    {"kvm", "force_emulation_prefix", "0\n"},
    {"kvm", "nx_huge_pages", "N\n"},
    // What is mapped for a guest is known by guest-physical page, not by its own page tables, and the dirty
    // log splits what is large at once (kvm/mapping_sizes.h). In KVM this needs EPT or NPT.
    {"kvm", "tdp_mmu", "Y\n", true},
    {"kvm", "eager_page_split", "Y\n", true},
    {"kvm_intel", "ept", "N\n"},
    {"kvm_intel", "unrestricted_guest", "Y\n"},
    {"kvm_intel", "nested", "N\n"},
    {"kvm_intel", "allow_smaller_maxphyaddr", "Y\n"},
    {"kvm_intel", "enable_apicv", "N\n"},
    {"kvm_amd", "npt", "N\n"},
    {"kvm_amd", "nested", "0\n"},
    {"kvm_amd", "avic", "N\n"},
    {"kvm_amd", "sev", "N\n"},
};

bool amd() {
  const auto& cpuid = settings().supported_cpuid;
  const auto zero = std::ranges::find(cpuid, 0U, &kvm_cpuid_entry2::function);
  return zero != cpuid.end() && std::memcmp(&zero->ebx, "Auth", 4) == 0;
}

bool host_is_amd() {
  unsigned a, b = 0, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && std::memcmp(&b, "Auth", 4) == 0;
}

// A parameter of KVM's modules, ours or not.
bool is_parameter(std::string_view path, std::string_view& module, std::string_view& name) {
  constexpr std::string_view root = "/sys/module/", folder = "/parameters/";
  if (!path.starts_with(root)) return false;
  path.remove_prefix(root.size());
  module = path.substr(0, path.find('/'));
  if (!path.substr(module.size()).starts_with(folder)) return false;
  name = path.substr(module.size() + folder.size());
  return module == "kvm" || module == "kvm_intel" || module == "kvm_amd";
}

} // namespace

bool is_kvm_device(std::string_view path) { return path == "/dev/kvm"; }

std::optional<std::string> module_parameter(std::string_view path) {
  std::string_view module;
  std::string_view name;
  if (!is_parameter(path, module, name)) return std::nullopt;
  // A program looks for the module of the vendor that it offers to guests, or that its own CPUID shows.
  if (module == "kvm_intel" && amd() && host_is_amd()) return std::nullopt;
  if (module == "kvm_amd" && !amd() && !host_is_amd()) return std::nullopt;
  for (const Parameter& p : parameters) {
    if (p.module == module && p.name == name)
      return p.large_pages && !HostPages::told() ? "N\n" : std::string(p.value);
  }
  return std::nullopt;
}

bool stat_served(std::string_view path, struct stat& out) {
  const bool device = is_kvm_device(path);
  const auto parameter = device ? std::nullopt : module_parameter(path);
  if (!device && !parameter) return false;
  out = {};
  out.st_nlink = 1;
  out.st_uid = getuid();
  out.st_gid = getgid();
  out.st_blksize = 4096;
  out.st_mode = device ? S_IFCHR | 0666 : S_IFREG | 0444;
  if (device) out.st_rdev = makedev(kvm_major, kvm_minor);
  if (parameter) out.st_size = 4096; // as sysfs says of its files
  return true;
}

std::optional<int> open_served(std::string_view path, int flags) {
  if (is_kvm_device(path)) {
    if ((flags & O_DIRECTORY) != 0) return -ENOTDIR;
    const int fd = add_descriptor("kvm", 0, std::make_shared<SystemObject>());
    if (fd >= 0 && (flags & O_CLOEXEC) == 0) real::fcntl(fd, F_SETFD, 0);
    return fd;
  }
  const auto value = module_parameter(path);
  std::string_view module;
  std::string_view name;
  // What the host's own KVM says is not about us.
  if (!value && is_parameter(path, module, name)) return -ENOENT;
  if (!value) return std::nullopt;
  if ((flags & O_ACCMODE) != O_RDONLY) return -EACCES;
  const int fd = memfd_create("kvm-parameter", (flags & O_CLOEXEC) != 0 ? MFD_CLOEXEC : 0);
  if (fd < 0) return -errno;
  if (write(fd, value->data(), value->size()) < 0 || lseek(fd, 0, SEEK_SET) < 0) {
    const int error = errno;
    real::close(fd);
    return -error;
  }
  return fd;
}

} // namespace ring3::shim
