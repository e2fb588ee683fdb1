// SPDX-License-Identifier: Apache-2.0
#include "kvm/guest_memfd.h"

#include "base/address.h"

#include <algorithm>
#include <cerrno>
#include <limits>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace ring3::kvm {

int GuestMemfd::create(int fd, u64 size, u64 flags, const void* owner, std::shared_ptr<GuestMemfd>& out) {
  if (flags != 0) return -EINVAL;
  if (static_cast<s64>(size) <= 0 || (size & page_offset_mask) != 0) return -EINVAL;
  if (syscall(SYS_ftruncate, fd, size) != 0) return -errno;
  void* const at = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
  if (at == MAP_FAILED) return -ENOMEM;
  out = std::make_shared<GuestMemfd>(static_cast<std::byte*>(at), size, owner);
  return 0;
}

GuestMemfd::~GuestMemfd() { munmap(host_, size_); }

int GuestMemfd::fallocate(int fd, int mode, s64 offset, s64 length) {
  constexpr int known = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
  // The kernel's own checks come first, then KVM's.
  if (offset < 0 || length <= 0) return -EINVAL;
  if ((mode & FALLOC_FL_KEEP_SIZE) == 0 || (mode & ~known) != 0) return -EOPNOTSUPP;
  if (offset > std::numeric_limits<s64>::max() - length) return -EFBIG;
  if (((static_cast<u64>(offset) | static_cast<u64>(length)) & page_offset_mask) != 0) return -EINVAL;
  const bool frees = (mode & FALLOC_FL_PUNCH_HOLE) != 0;
  const u64 end = static_cast<u64>(offset + length);
  if (!frees && end > size_) return -EINVAL;
  if (frees && static_cast<u64>(offset) >= size_) return 0;
  // The system call itself: the C library's name for it may be answered by whoever calls us.
  return syscall(SYS_fallocate, fd, mode, offset, length) == 0 ? 0 : -errno;
}

int GuestMemfd::bind(const void* owner, u64 offset, u64 size) {
  if (owner != owner_ || (offset & page_offset_mask) != 0) return -EINVAL;
  if (offset > size_ || size > size_ - offset) return -EINVAL;
  const bool taken = std::ranges::any_of(
      bindings_, [&](const Binding& b) { return b.offset < offset + size && offset < b.offset + b.size; });
  if (taken) return -EINVAL;
  bindings_.push_back({offset, size});
  return 0;
}

void GuestMemfd::unbind(u64 offset, u64 size) {
  std::erase_if(bindings_, [&](const Binding& b) { return b.offset == offset && b.size == size; });
}

} // namespace ring3::kvm
