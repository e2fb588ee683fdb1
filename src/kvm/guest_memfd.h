// SPDX-License-Identifier: Apache-2.0
// Memory that is for guests only (api.rst 4.142, KVM_CREATE_GUEST_MEMFD): a file that slots are bound to and
// whose pages guests see where they are private.
//
// Underneath is an ordinary memory file. Keeping the VMM from its contents is the work of whoever hands out
// the descriptor; against a VMM that means to look there is no protection in one process.
#pragma once

#include "base/types.h"

#include <atomic>
#include <cstddef>
#include <memory>
#include <vector>

namespace ring3::kvm {

class GuestMemfd {
 public:
  // Gives the empty memory file `fd`, which the caller keeps, its size and maps it. `owner`: the memory slots
  // that it may be bound to. 0, or -EINVAL for unknown flags or a size that is not one of pages, -ENOMEM.
  static int create(int fd, u64 size, u64 flags, const void* owner, std::shared_ptr<GuestMemfd>& out);
  // Takes over a mapping of the file. For create().
  GuestMemfd(std::byte* host, u64 size, const void* owner) : host_(host), size_(size), owner_(owner) {}
  ~GuestMemfd();
  GuestMemfd(const GuestMemfd&) = delete;
  GuestMemfd& operator=(const GuestMemfd&) = delete;

  u64 size() const { return size_; }
  // Valid as long as this object.
  std::byte* host() const { return host_; }

  // fallocate(2) with FALLOC_FL_KEEP_SIZE: allocates, or with FALLOC_FL_PUNCH_HOLE frees, after which the
  // pages read as zeros for guests that have them mapped too. `fd`: the file. 0 or -errno as KVM's. Any
  // thread.
  int fallocate(int fd, int mode, s64 offset, s64 length);

  // One slot's claim to [offset, offset + size). -EINVAL for another owner, beyond the file, or what another
  // slot has. Under the lock of the slots.
  int bind(const void* owner, u64 offset, u64 size);
  void unbind(u64 offset, u64 size);

  // The last descriptor is closed: nobody gets at the pages any more. Any thread.
  void close() { closed_.store(true, std::memory_order_release); }
  bool closed() const { return closed_.load(std::memory_order_acquire); }

 private:
  struct Binding {
    u64 offset;
    u64 size;
  };
  std::byte* const host_;
  const u64 size_;
  const void* const owner_;
  std::atomic<bool> closed_{false};
  std::vector<Binding> bindings_;
};

} // namespace ring3::kvm
