// SPDX-License-Identifier: Apache-2.0
#include "shim/vm_stats_object.h"

#include "kvm/stats.h"
#include "shim/real_calls.h"

#include <cerrno>
#include <unistd.h>

namespace ring3::shim {

long VmStatsObject::create(const std::shared_ptr<VmObject>& vm) {
  const int fd = vm->vm().open_stats();
  if (fd < 0) return fd;
  const int result = adopt_descriptor(fd, std::make_shared<VmStatsObject>(vm));
  if (result < 0) real::close(fd);
  return result;
}

long VmStatsObject::ioctl(unsigned long, unsigned long) { return -ENOTTY; }

// As KVM's: it tells the position and does not move.
s64 VmStatsObject::seek(int fd) const { return real::lseek(fd, 0, SEEK_CUR); }

int VmStatsObject::before_read(u64 offset, u64 size) {
  const kvm::StatsLayout& layout = kvm::StatsLayout::vm();
  const u64 first = layout.data_offset() + kvm::StatsLayout::vm_page_counters;
  const bool wanted = offset < layout.size() && (offset >= first || first - offset < size);
  // A child of fork() has other memory; there the numbers stay what they were.
  if (!wanted || !ours()) return 0;
  if (const auto vm = vm_.lock()) vm->vm().refresh_stats();
  return 0;
}

} // namespace ring3::shim
