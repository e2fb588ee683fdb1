// SPDX-License-Identifier: Apache-2.0
// KVM's binary statistics (api.rst 4.133, KVM_GET_STATS_FD): a file of a header, a name, descriptors and the
// counters themselves.
//
// The counters live where the file's data block lies: nothing is counted twice or copied. Names, types and
// units are KVM's (x86, Linux 6.12) where it has the number. What has no meaning without hardware or a host
// kernel (host_state_reload, halt polling, the shadow MMU's) is left out, as KVM lets each build choose.
#pragma once

#include "base/types.h"

#include <array>
#include <atomic>
#include <cstddef>
#include <linux/kvm.h>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace ring3::kvm {

// One number. The vCPU's counters have one writer, its thread: no locked instruction. A VM's are written
// under its lock. Readers see a value that was true at some time.
class Counter {
 public:
  void add(u64 n) { value_.store(value_.load(std::memory_order_relaxed) + n, std::memory_order_relaxed); }
  Counter& operator++() {
    add(1);
    return *this;
  }
  Counter& operator+=(u64 n) {
    add(n);
    return *this;
  }
  void set(u64 v) { value_.store(v, std::memory_order_relaxed); }
  u64 value() const { return value_.load(std::memory_order_relaxed); }

 private:
  std::atomic<u64> value_{0};
};
static_assert(sizeof(Counter) == sizeof(u64));

// KVM's logarithmic histogram: bucket 0 counts zeros, bucket n values from 2^(n-1) on, the last all above.
class LogHistogram {
 public:
  static constexpr std::size_t buckets = 32; // HALT_POLL_HIST_COUNT
  void add(u64 value);
  u64 bucket(std::size_t i) const { return counts_[i].value(); }

 private:
  std::array<Counter, buckets> counts_;
};

// The data block of a vCPU, in the order of its descriptors (stats.cpp).
struct VcpuStats {
  // As every architecture has them.
  Counter halt_wakeup;  // a halt ended because something happened
  Counter halt_wait_ns; // time spent waiting for events
  LogHistogram halt_wait_hist;
  Counter blocking; // 1 while it waits
  // x86.
  Counter exits; // times the guest was left
  Counter io_exits, mmio_exits;
  Counter signal_exits; // returns with -EINTR
  Counter irq_window_exits, nmi_window_exits;
  Counter halt_exits;
  Counter request_irq_exits; // returns because user space asked for the interrupt window
  Counter hypercalls;
  Counter irq_injections, nmi_injections;
  Counter req_event; // times that events were looked for because somebody posted one
  // Ours: KVM has no such number.
  Counter guest_ns; // time spent executing the guest
};

// The data block of a VM.
struct VmStats {
  Counter remote_tlb_flush; // all vCPUs were made to drop translations or permissions, and waited for
  Counter remote_tlb_flush_requests; // the same, wanted
  // How the guest's memory is mapped (kvm/mapping_sizes.h), as it was when somebody looked: they are made
  // when they are read.
  Counter pages_4k, pages_2m;
  Counter pages_1g; // always 0
};

// What one kind of file looks like.
class StatsLayout {
 public:
  struct Descriptor {
    std::string_view name;
    u32 flags; // KVM_STATS_TYPE_* | KVM_STATS_UNIT_* | KVM_STATS_BASE_*
    s16 exponent;
    u16 size; // numbers
  };

  static constexpr u32 name_size = 48; // KVM_STATS_NAME_SIZE

  static const StatsLayout& vcpu();
  static const StatsLayout& vm();

  // Where the counters that are made when they are read lie among a VM's.
  static constexpr u64 vm_page_counters = offsetof(VmStats, pages_4k);

  // Bytes of the whole file, and where the counters lie in it.
  u64 size() const { return data_offset_ + data_size_; }
  u64 data_offset() const { return data_offset_; }
  std::span<const Descriptor> descriptors() const { return descriptors_; }

  // Everything before the data. `id`: what the file is about, less than name_size bytes.
  void write_header(std::string_view id, std::span<std::byte> file) const;

 private:
  explicit StatsLayout(std::span<const Descriptor> descriptors, u64 data_size);

  std::span<const Descriptor> descriptors_;
  u64 data_offset_;
  u64 data_size_;
};

// The counters of a data block, by name: "name":1,"histogram":[1,2]. Valid inside the braces of a JSON
// object.
std::string stats_json(const StatsLayout& layout, const void* data);

// The memory of one such file, mapped here and, once somebody asked for it, shared with the VMM.
class StatsFile {
 public:
  // Throws std::bad_alloc without memory.
  StatsFile(const StatsLayout& layout, std::string id);
  ~StatsFile();
  StatsFile(const StatsFile&) = delete;
  StatsFile& operator=(const StatsFile&) = delete;

  // "kvm-<pid>" and "kvm-<pid>/vcpu-<id>", as KVM names them.
  static std::string vm_id();
  static std::string vcpu_id(u32 id);

  // KVM_GET_STATS_FD: a new descriptor, to read only, with a position of its own. It shows the live numbers
  // and, when this object is gone, the last ones. -EMFILE, -ENOMEM. Not while somebody writes a counter: for
  // a vCPU's, it does not run; for a VM's, under the VM's lock.
  int open();

  void* data() const { return base_ + layout_.data_offset(); }

 private:
  int share();

  const StatsLayout& layout_;
  std::byte* base_ = nullptr; // stays the same when the memory becomes the file's
  u64 bytes_;                 // whole pages
  int file_ = -1;             // -1: not shared yet
};

// A file whose data block is a T.
template <class T> class Stats {
 public:
  Stats(const StatsLayout& layout, std::string id) : file_(layout, std::move(id)) {
    std::construct_at(static_cast<T*>(file_.data()));
  }
  T* operator->() const { return static_cast<T*>(file_.data()); }
  T& operator*() const { return *static_cast<T*>(file_.data()); }
  int open() { return file_.open(); }

 private:
  StatsFile file_;
};

} // namespace ring3::kvm
