// SPDX-License-Identifier: Apache-2.0
#include "shim/served_paths.h"

#include "shim/descriptors.h"
#include "shim/real_calls.h"
#include "shim/settings.h"
#include "shim/system_object.h"

#include <algorithm>
#include <cerrno>
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
};
// What is true of ours: two-dimensional paging is not built into the CPU that guests see, but guests of
// guests and real-mode guests need nothing of it.
constexpr Parameter parameters[] = {
    {"kvm", "ignore_msrs", "N\n"},
    {"kvm", "enable_pmu", "N\n"},
    {"kvm", "enable_vmware_backdoor", "N\n"},
    {"kvm", "force_emulation_prefix", "0\n"},
    {"kvm", "nx_huge_pages", "N\n"},
    {"kvm", "tdp_mmu", "N\n"},
    {"kvm_intel", "ept", "Y\n"},
    {"kvm_intel", "unrestricted_guest", "Y\n"},
    {"kvm_intel", "nested", "N\n"},
    {"kvm_intel", "allow_smaller_maxphyaddr", "Y\n"},
    {"kvm_intel", "enable_apicv", "N\n"},
    {"kvm_amd", "npt", "1\n"},
    {"kvm_amd", "nested", "0\n"},
    {"kvm_amd", "avic", "N\n"},
    {"kvm_amd", "sev", "N\n"},
};

bool amd() {
  const auto& cpuid = settings().supported_cpuid;
  const auto zero = std::ranges::find(cpuid, 0U, &kvm_cpuid_entry2::function);
  return zero != cpuid.end() && std::memcmp(&zero->ebx, "Auth", 4) == 0;
}

} // namespace

bool is_kvm_device(std::string_view path) { return path == "/dev/kvm"; }

std::optional<std::string> module_parameter(std::string_view path) {
  constexpr std::string_view root = "/sys/module/";
  if (!path.starts_with(root)) return std::nullopt;
  path.remove_prefix(root.size());
  const std::string_view module = path.substr(0, path.find('/'));
  if (!path.substr(module.size()).starts_with("/parameters/")) return std::nullopt;
  if (module == (amd() ? "kvm_intel" : "kvm_amd")) return std::nullopt;
  const std::string_view name = path.substr(module.size() + std::strlen("/parameters/"));
  for (const Parameter& p : parameters) {
    if (p.module == module && p.name == name) return std::string(p.value);
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
