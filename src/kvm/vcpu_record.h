// SPDX-License-Identifier: Apache-2.0
// Where a vCPU counts what it does: in a memory file that each process has for all of its vCPUs, so that
// `ring3 stat` can read along. Counting there costs what it costs anywhere else.
//
// The file is made with the first vCPU, with room for all (record_format.h), and mapped once. The descriptor
// stays open for others to find; nothing is done with its number any more, which by now may be another
// file's. Where there can be no such file (limits, seccomp), the counters are in ordinary memory.
//
// A child of fork() has nothing of its parent's file; vCPUs that it makes get a file of its own. It must not
// use a vCPU of its parent.
#pragma once

#include "kvm/record_format.h"

#include <memory>

namespace ring3::kvm {

// VMs are numbered from 1 in each process. Any thread.
u32 next_vm_number();

// Any thread makes and ends records; the counters in one have one writer.
class VcpuRecord {
 public:
  VcpuRecord(u32 vm, u32 vcpu);
  ~VcpuRecord();
  VcpuRecord(const VcpuRecord&) = delete;
  VcpuRecord& operator=(const VcpuRecord&) = delete;

  Counter& instructions() { return record_->instructions; }
  VcpuStats& stats() { return record_->stats; }
  // Room for the counters of what executes the vCPU, all zero. `layout`: tells what they are; not 0.
  std::span<std::byte> executor(u64 layout);

  // Can others see it?
  bool shared() const { return own_ == nullptr; }

 private:
  class File;

  File* file_ = nullptr; // null: there is none
  u32 place_ = 0;
  std::unique_ptr<record_format::Record> own_; // memory of its own
  record_format::Record* record_;
};

} // namespace ring3::kvm
