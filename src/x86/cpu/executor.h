// SPDX-License-Identifier: Apache-2.0
// What executes a Cpu's instructions, if it is not the interpreter (Cpu::interpret()).
#pragma once

#include "base/types.h"

#include <string>
#include <vector>

namespace ring3::x86 {

enum class CpuExit : u8;

// The host's registers where a signal has interrupted it: RAX to R15 in encoding order, RIP, and the frame
// with the vector registers (mcontext_t::fpregs).
struct HostRegisters {
  u64 gpr[16];
  u64 rip;
  const void* vectors;
};

// On the vCPU's thread.
class Executor {
 public:
  virtual ~Executor() = default;
  // Cpu::run().
  virtual CpuExit run() = 0;
  // CPUID or anything else changed what instructions mean, or where they are.
  virtual void forget_code() = 0;
  // The thread was taken out of the middle of translated code. Brings the Cpu's registers to where the
  // guest's instruction began, and true; false: the host was elsewhere. Async-signal-safe.
  virtual bool recover(const HostRegisters& host) = 0;
  // What it has done: a member of a JSON object, and lines for people. Any thread.
  virtual std::string stats_json() const = 0;
  virtual std::vector<std::string> stats_lines() const = 0;
};

} // namespace ring3::x86
