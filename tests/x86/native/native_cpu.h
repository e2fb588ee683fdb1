// SPDX-License-Identifier: Apache-2.0
// Executes one instruction on the processor itself, in user mode, with every register given and read back,
// and with faults caught. One per process: it owns fixed addresses and signal handlers.
#pragma once

#include "arena.h"

#include <csignal>
#include <span>
#include <vector>

namespace ring3::x86::native {

class NativeCpu {
 public:
  NativeCpu();
  ~NativeCpu();
  NativeCpu(const NativeCpu&) = delete;
  NativeCpu& operator=(const NativeCpu&) = delete;

  // Null when the native side is usable here, else why not.
  const char* unusable() const { return unusable_; }

  void execute(std::span<const u8> instruction, unsigned code_bits, const MachineState& in, Outcome& out);

  // The arena's memory as the instruction sees it.
  u8* data() { return reinterpret_cast<u8*>(arena::data); }
  u8* stack() { return reinterpret_cast<u8*>(arena::stack); }
  u64 xsave_mask() const { return mask_; }

 private:
  static void on_signal(int number, siginfo_t* info, void* context);
  void emit_stubs();
  void load_area(const MachineState& in);
  void read_area(const u8* area, MachineState& out) const;

  const char* unusable_ = nullptr;
  u64 mask_ = 0;
  u32 ymm_offset_ = 0, k_offset_ = 0, zmm_high_offset_ = 0, zmm16_offset_ = 0;
  std::vector<u8> signal_stack_;
  u64 exit_stub_ = 0, fault_stub_ = 0;
  u64 enter64_ = 0, enter32_ = 0;
  u64 passed_[2] = {}, forward_[2] = {}, backward_[2] = {}; // by mode: 64, 32
  Outcome* current_ = nullptr;
};

} // namespace ring3::x86::native
