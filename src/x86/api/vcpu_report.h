// SPDX-License-Identifier: Apache-2.0
// How the counters of a vCPU are shown, its own process's (`ring3 exec --stats`) or another's (`ring3 stat`).
#pragma once

#include "base/error.h"
#include "kvm/record_reader.h"

#include <string>
#include <vector>

namespace ring3::x86 {

// Members of a JSON object: "id":0,"instructions":1,"exits":2,...
std::string vcpu_members(u32 id, u64 instructions, const kvm::VcpuStats& stats);

// One record of a process: its translator's counters included, unless they are another build's.
class VcpuReport {
 public:
  static Result<VcpuReport> of(const kvm::SeenVcpu& vcpu); // which outlives it

  // A JSON object.
  std::string json() const;
  // For people: lines without a prefix, the first about the vCPU and what it left the guest for.
  std::vector<std::string> lines() const;

 private:
  explicit VcpuReport(const kvm::SeenVcpu& vcpu) : vcpu_(&vcpu) {}
  const kvm::SeenVcpu* vcpu_;
};

} // namespace ring3::x86
