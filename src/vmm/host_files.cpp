// SPDX-License-Identifier: Apache-2.0
#include "vmm/host_files.h"

#include "base/bits.h"
#include "vmm/elf_image.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <fcntl.h>
#include <filesystem>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

constexpr std::size_t largest_file = std::size_t{1} << 30;

struct Descriptor {
  int fd;
  explicit Descriptor(int f) : fd(f) {}
  ~Descriptor() {
    if (fd >= 0) close(fd);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
};

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

} // namespace

Result<std::vector<std::byte>> read_file(const std::string& path, std::string_view what) {
  auto failed = [&](std::string_view why) {
    return fail(fmt::format("cannot read the {} '{}': {}", what, path, why),
                "check the path and its permissions");
  };
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  struct stat status {};
  if (file.fd < 0 || fstat(file.fd, &status) != 0) return failed(std::strerror(errno));
  if (!S_ISREG(status.st_mode)) return failed("it is not a regular file");
  if (static_cast<u64>(status.st_size) > largest_file) return failed("it is larger than 1 GiB");
  std::vector<std::byte> content(static_cast<std::size_t>(status.st_size));
  std::size_t done = 0;
  while (done < content.size()) {
    const ssize_t n = read(file.fd, content.data() + done, content.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return failed(std::strerror(errno));
    if (n == 0) break;
    done += static_cast<std::size_t>(n);
  }
  content.resize(done);
  return content;
}

std::string cache_folder() {
  if (std::string folder = environment("RING3_CACHE"); !folder.empty()) return folder;
  if (std::string folder = environment("XDG_CACHE_HOME"); !folder.empty()) return folder + "/ring3";
  if (std::string folder = environment("HOME"); !folder.empty()) return folder + "/.cache/ring3";
  return {};
}

std::string newest_kernel_in(const std::string& folder) {
  std::string best, best_path;
  std::error_code ignored;
  for (auto it = std::filesystem::directory_iterator(folder, ignored);
       !ignored && it != std::filesystem::end(it); it.increment(ignored)) {
    const std::string name = it->path().filename();
    if (!name.starts_with("vmlinuz-") || !it->is_regular_file(ignored)) continue;
    if (access(it->path().c_str(), R_OK) != 0) continue;
    if (best.empty() || strverscmp(name.c_str(), best.c_str()) > 0) {
      best = name;
      best_path = it->path();
    }
  }
  return best_path;
}

Result<std::string> find_kernel() {
  std::string looked;
  std::vector<std::string> folders;
  if (const std::string cache = cache_folder(); !cache.empty()) folders.push_back(cache + "/kernel");
  folders.push_back("/boot");
  for (const std::string& folder : folders) {
    if (std::string path = newest_kernel_in(folder); !path.empty()) return path;
    looked += (looked.empty() ? "" : " or ") + folder;
  }
  return fail("no readable kernel (vmlinuz-*) in " + looked,
              "run ./run from the source tree, which fetches Debian's cloud kernel, or give --kernel FILE");
}

bool is_static_executable(std::span<const std::byte> file) {
  if (!is_elf(file) || file.size() < sizeof(Elf64_Ehdr)) return false;
  const auto header = load_raw<Elf64_Ehdr>(file.data());
  if (header.e_ident[EI_CLASS] != ELFCLASS64 || header.e_machine != EM_X86_64) return false;
  if (header.e_phentsize != sizeof(Elf64_Phdr) || header.e_phoff > file.size() ||
      u64{header.e_phnum} * sizeof(Elf64_Phdr) > file.size() - header.e_phoff)
    return false;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const auto p = load_raw<Elf64_Phdr>(file.data() + header.e_phoff + i * sizeof(Elf64_Phdr));
    if (p.p_type == PT_INTERP) return false;
  }
  return header.e_phnum != 0;
}

Result<std::string> find_busybox() {
  std::vector<std::string> places;
  if (const std::string cache = cache_folder(); !cache.empty()) places.push_back(cache + "/busybox");
  for (const char* path : {"/usr/bin/busybox", "/bin/busybox", "/usr/sbin/busybox", "/sbin/busybox"})
    places.emplace_back(path);
  for (const std::string& path : places) {
    std::error_code ignored;
    if (!std::filesystem::is_regular_file(path, ignored)) continue;
    const Result<std::vector<std::byte>> content = read_file(path, "busybox");
    if (content && is_static_executable(*content)) return path;
  }
  return fail("no static busybox for the guest's userspace",
              "apt install busybox-static, or give --initrd FILE");
}

} // namespace ring3::vmm
