// SPDX-License-Identifier: Apache-2.0
#include "shim/stats_report.h"

#include "shim/real_calls.h"

#include <algorithm>
#include <cstdlib>
#include <fcntl.h>
#include <fmt/format.h>
#include <mutex>
#include <unistd.h>
#include <vector>

namespace ring3::shim {

namespace {

const char* stats_file() {
  static const char* const name = std::getenv("RING3_STATS");
  return name != nullptr && *name != '\0' ? name : nullptr;
}

struct Watched {
  std::mutex lock;
  std::vector<std::pair<x86::Vm*, pid_t>> vms;
};
Watched& watched() {
  static Watched* const w = std::make_unique<Watched>().release(); // used until the process is gone
  return *w;
}

// One write, so that lines of several processes do not mix.
void write_report(x86::Vm& vm) {
  const int fd = real::open(stats_file(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (fd < 0) return; // `ring3 exec` has seen that it can be written
  const std::string line = fmt::format("{{\"pid\":{},{}}}\n", getpid(), vm.stats_json());
  static_cast<void>(!write(fd, line.data(), line.size()));
  real::close(fd);
}

// Programs end without closing their VMs.
__attribute__((destructor)) void report_the_rest() {
  if (stats_file() == nullptr) return;
  const std::scoped_lock guard(watched().lock);
  for (const auto& [vm, process] : watched().vms) {
    if (process == getpid()) write_report(*vm);
  }
  watched().vms.clear();
}

} // namespace

void watch_vm(x86::Vm& vm) {
  if (stats_file() == nullptr) return;
  const std::scoped_lock guard(watched().lock);
  watched().vms.emplace_back(&vm, getpid());
}

void report_vm(x86::Vm& vm) {
  if (stats_file() == nullptr) return;
  const std::scoped_lock guard(watched().lock);
  if (std::erase_if(watched().vms, [&](const auto& e) { return e.first == &vm; }) != 0) write_report(vm);
}

void forget_vm(x86::Vm& vm) {
  if (stats_file() == nullptr) return;
  const std::scoped_lock guard(watched().lock);
  std::erase_if(watched().vms, [&](const auto& e) { return e.first == &vm; });
}

} // namespace ring3::shim
