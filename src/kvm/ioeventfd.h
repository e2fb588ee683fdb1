// SPDX-License-Identifier: Apache-2.0
// KVM_IOEVENTFD (api.rst 4.59): writes to a port or a guest-physical address that signal an eventfd instead
// of leaving for user space.
//
// Threads: write() from any thread, without locks; control() from any thread but one that is inside write().
// When a deassignment returns, no write signals that eventfd any more.
#pragma once

#include "kvm/eventfd.h"
#include "kvm/io_space.h"
#include "kvm/published.h"

#include <array>
#include <cstddef>
#include <linux/kvm.h>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

namespace ring3::kvm {

class IoEventFds {
 public:
  // 0 or -errno. Assigning: EINVAL for a length other than 0, 1, 2, 4 and 8, a range that wraps, an unknown
  // flag (virtio-ccw's too: there is no such bus on x86), a length of 0 with DATAMATCH, or a descriptor that
  // is no eventfd; EBADF; EEXIST where a write could match both this one and another. Deassigning: ENOENT
  // unless address, length, match and eventfd are those of an assignment.
  int control(const kvm_ioeventfd& args);

  // The guest writes `data`, 1 to 8 bytes. True: an eventfd has been signalled and the write is done. The
  // address must be the registered one, the length too unless that is 0.
  bool write(IoSpace space, u64 address, std::span<const std::byte> data) const;

 private:
  struct Entry {
    u64 address;
    u32 length; // 0: any
    bool any;   // any data
    u64 data;   // unless `any`
    std::shared_ptr<const EventFd> event;

    bool collides(const Entry& other) const;
    bool matches(std::span<const std::byte> written) const;
  };
  using Table = std::vector<Entry>; // by address
  static auto at(const Table& table, u64 address);

  int assign(IoSpace space, const kvm_ioeventfd& args);
  int deassign(IoSpace space, const kvm_ioeventfd& args);
  void publish(IoSpace space, Table table);

  std::mutex lock_;                        // one writer at a time
  std::array<Published<Table>, 2> tables_; // by IoSpace
};

} // namespace ring3::kvm
