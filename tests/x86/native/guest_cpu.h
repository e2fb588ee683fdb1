// SPDX-License-Identifier: Apache-2.0
// Our processor in user mode, with the arena at the same addresses as the native side has it, though in other
// memory.
#pragma once

#include "arena.h"
#include "x86/cpu/cpu.h"
#include "x86/decode/decoded.h"

#include <memory>
#include <span>

namespace ring3::x86::native {

class GuestCpu {
 public:
  GuestCpu();
  ~GuestCpu();
  GuestCpu(const GuestCpu&) = delete;
  GuestCpu& operator=(const GuestCpu&) = delete;

  // Is the instruction one that this processor has? Without executing it.
  bool offers(const Decoded& d);
  void execute(const Decoded& d, unsigned code_bits, const MachineState& in, Outcome& out);
  // Does the translator do with it what the interpreter does? 64-bit code; memory is not as it was
  // afterwards.
  bool engines_agree(const Decoded& d, const MachineState& in);
  u64 compared() const; // how often there was something to compare

  u8* data() { return ram_ + data_at; }
  u8* stack() { return ram_ + stack_at; }
  const CpuidTable& cpuid() const { return cpu_->cpuid; }

 private:
  static constexpr u64 ram_size = 0x40000;
  static constexpr u64 data_at = 0x10000, stack_at = 0x20000, code_at = 0x30000;

  void set_mode(unsigned code_bits);

  u8* ram_ = nullptr;
  kvm::MemorySlots slots_;
  kvm::CodeWatch watch_;
  std::unique_ptr<Platform> platform_;
  std::atomic<u32> exit_word_{0};
  std::unique_ptr<Cpu> cpu_;
  unsigned code_bits_ = 0;
};

} // namespace ring3::x86::native
