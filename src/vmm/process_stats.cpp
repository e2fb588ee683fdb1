// SPDX-License-Identifier: Apache-2.0
#include "vmm/process_stats.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <dirent.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <memory>
#include <optional>
#include <string_view>
#include <unistd.h>
#include <utility>

namespace ring3::vmm {
namespace {

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

// Calls f(name) for each entry of a folder until it returns false. False: the folder cannot be read (errno).
template <class F> bool for_each_name(int folder, const char* path, F&& f) {
  const int fd = ::openat(folder, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return false;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(fd), ::closedir);
  if (entries == nullptr) {
    ::close(fd);
    return false;
  }
  while (const dirent* const e = ::readdir(entries.get())) {
    if (e->d_name[0] != '.' && !f(e->d_name)) break;
  }
  return true;
}

std::string read_text(int folder, const char* path) {
  const Descriptor file(::openat(folder, path, O_RDONLY | O_CLOEXEC));
  std::string text;
  std::array<char, 4096> part;
  ssize_t n = 0;
  while (file.get() >= 0 && (n = ::read(file.get(), part.data(), part.size())) > 0)
    text.append(part.data(), static_cast<std::size_t>(n));
  return text;
}

std::string printable_command(int process) {
  std::string text = read_text(process, "comm");
  if (text.ends_with('\n')) text.pop_back();
  for (char& c : text) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text;
}

// The number by which the process knows itself, which is another one outside its PID namespace; 0: unknown.
u32 own_number(int process) {
  const std::string status = read_text(process, "status");
  constexpr std::string_view key = "\nNStgid:";
  const std::size_t at = status.find(key);
  if (at == std::string::npos) return 0;
  std::string_view line = std::string_view(status).substr(at + key.size());
  line = line.substr(0, line.find('\n'));
  line.remove_prefix(std::min(line.size(), line.find_last_of(" \t") + 1));
  u32 number = 0;
  std::from_chars(line.data(), line.data() + line.size(), number);
  return number;
}

bool is_statistics(int process, const std::string& link) {
  const std::string wanted = fmt::format("/memfd:{} (deleted)", kvm::record_format::file_name);
  std::array<char, 64> target;
  const ssize_t n = ::readlinkat(process, link.c_str(), target.data(), target.size());
  return n >= 0 && std::string_view(target.data(), static_cast<std::size_t>(n)) == wanted;
}

enum class Nothing { gone, forbidden, none };

struct Look {
  std::optional<ProcessStats> stats;
  std::optional<Error> unreadable;
  Nothing why = Nothing::none; // with neither
};

// `process`: its folder in /proc. All is read through that, so that the number may become another process's.
Look look(pid_t pid, int process) {
  Look found;
  const u32 own = own_number(process);
  const auto examine = [&](const char* name) {
    const std::string link = std::string("fd/") + name;
    if (!is_statistics(process, link)) return true;
    // Not a wait for a writer, should it be something else meanwhile.
    const Descriptor file(::openat(process, link.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY | O_CLOEXEC));
    if (file.get() < 0) {
      if (errno == EACCES || errno == EPERM) found.why = Nothing::forbidden;
      return true;
    }
    Result<kvm::SeenProcess> seen = kvm::read_vcpu_records(file.get());
    if (!seen) {
      found.unreadable = std::move(seen.error());
      return true;
    }
    if (seen->process != own || own == 0) return true; // a parent's, inherited
    found.stats = {pid, printable_command(process), std::move(*seen)};
    return false;
  };
  if (!for_each_name(process, "fd", examine))
    found.why = errno == EACCES || errno == EPERM ? Nothing::forbidden : Nothing::gone;
  if (found.stats) found.unreadable.reset();
  if (found.unreadable)
    found.unreadable->message = fmt::format("process {}: {}", pid, found.unreadable->message);
  return found;
}

Descriptor folder_of(pid_t pid) {
  return Descriptor(::open(fmt::format("/proc/{}", pid).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

} // namespace

Result<ProcessStats> process_stats(pid_t pid) {
  const Descriptor process = folder_of(pid);
  Look found = process.get() < 0 ? Look{{}, {}, Nothing::gone} : look(pid, process.get());
  if (found.stats) return std::move(*found.stats);
  if (found.unreadable) return std::unexpected(std::move(*found.unreadable));
  switch (found.why) {
  case Nothing::gone:
    return fail(fmt::format("there is no process {}", pid),
                "ring3 stat without a PID shows those that there are");
  case Nothing::forbidden:
    return fail(fmt::format("process {} is not yours to look at", pid),
                "be the user that it runs as, or root");
  case Nothing::none: break;
  }
  if (read_text(process.get(), "maps").find(kvm::record_format::file_name) != std::string::npos)
    return fail(fmt::format("process {} has closed the descriptor of its statistics", pid),
                "run it under ring3 exec --stats FILE, which writes them when its VMs end");
  return fail(
      fmt::format("process {} has made no vCPU of ring3", pid),
      "name a VMM, not a shell or script around it; ring3 stat without a PID shows those that there are");
}

AllProcessStats all_process_stats() {
  AllProcessStats all;
  for_each_name(AT_FDCWD, "/proc", [&](const char* name) {
    pid_t pid = 0;
    const char* const end = name + std::strlen(name);
    if (const auto r = std::from_chars(name, end, pid); r.ec != std::errc{} || r.ptr != end) return true;
    const Descriptor process = folder_of(pid);
    if (process.get() < 0) return true;
    Look found = look(pid, process.get());
    if (found.stats) all.processes.push_back(std::move(*found.stats));
    if (found.unreadable) all.unreadable.push_back(std::move(*found.unreadable));
    return true;
  });
  std::ranges::sort(all.processes, {}, &ProcessStats::pid);
  return all;
}

} // namespace ring3::vmm
