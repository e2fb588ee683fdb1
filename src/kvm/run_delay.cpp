// SPDX-License-Identifier: Apache-2.0
#include "kvm/run_delay.h"

#include <atomic>
#include <charconv>
#include <fcntl.h>
#include <string_view>
#include <unistd.h>

namespace ring3::kvm {
namespace {

std::atomic<u64> threads_seen{0};

class SchedstatFile {
 public:
  SchedstatFile() : fd_(::open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC)) {}
  ~SchedstatFile() {
    if (fd_ >= 0) ::close(fd_);
  }
  SchedstatFile(const SchedstatFile&) = delete;
  SchedstatFile& operator=(const SchedstatFile&) = delete;

  // "time-on-cpu time-waiting timeslices" (Documentation/scheduler/sched-stats.rst).
  std::optional<RunDelay> read() const {
    char text[80];
    const ssize_t size = fd_ < 0 ? -1 : ::pread(fd_, text, sizeof text, 0);
    if (size <= 0) return std::nullopt;
    const std::string_view line(text, static_cast<std::size_t>(size));
    const std::size_t space = line.find(' ');
    if (space == std::string_view::npos) return std::nullopt;
    RunDelay delay{.thread = thread_, .ns = 0};
    const char* const end = line.data() + line.size();
    const auto parsed = std::from_chars(line.data() + space + 1, end, delay.ns);
    if (parsed.ec != std::errc{} || parsed.ptr == end || *parsed.ptr != ' ') return std::nullopt;
    return delay;
  }

 private:
  const int fd_;
  const u64 thread_ = threads_seen.fetch_add(1, std::memory_order_relaxed) + 1;
};

} // namespace

std::optional<RunDelay> thread_run_delay() {
  thread_local const SchedstatFile file;
  return file.read();
}

} // namespace ring3::kvm
