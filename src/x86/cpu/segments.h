// SPDX-License-Identifier: Apache-2.0
// Segment descriptors: fetching them, checking them, and loading segment registers (SDM vol. 3, chapters 3
// and 5).
#pragma once

#include "x86/cpu/cpu.h"

namespace ring3::x86 {

// An 8-byte descriptor as it lies in a table, with the upper half of 16-byte system descriptors in long mode.
struct Descriptor {
  u64 raw = 0;
  u64 high = 0;
  GuestVirt at; // where it was read, to set the accessed and busy bits

  u8 type() const { return static_cast<u8>(field(raw, 43, 40)); }
  bool s() const { return (raw & bit(44)) != 0; }
  u8 dpl() const { return static_cast<u8>(field(raw, 46, 45)); }
  bool present() const { return (raw & bit(47)) != 0; }
  bool code() const { return s() && (type() & 8) != 0; }
  bool conforming() const { return (type() & 4) != 0; }
  bool l() const { return (raw & bit(53)) != 0; }
  bool db() const { return (raw & bit(54)) != 0; }
  Segment segment(u16 selector) const;

  // Gates (SDM vol. 3, 5.8.3 and 6.11).
  u16 gate_selector() const { return static_cast<u16>(field(raw, 31, 16)); }
  u64 gate_offset() const {
    return field(raw, 15, 0) | (field(raw, 63, 48) << 16) | (field(high, 31, 0) << 32);
  }
};

namespace system_type {
constexpr u8 tss16 = 1, ldt = 2, tss16_busy = 3, call_gate16 = 4, task_gate = 5, interrupt_gate16 = 6,
             trap_gate16 = 7, tss = 9, tss_busy = 11, call_gate = 12, interrupt_gate = 14, trap_gate = 15;
} // namespace system_type

// Reads the descriptor that a selector names. False: outside the table (fault `v` with the selector as error
// code) or a page fault. `wide`: a 16-byte system descriptor.
bool read_descriptor(Cpu& cpu, u16 selector, Descriptor& out, Vector v = Vector::gp, u32 ext = 0,
                     bool wide = false);
// Sets the accessed bit of a code or data descriptor.
bool mark_accessed(Cpu& cpu, Descriptor& d);
bool set_tss_busy(Cpu& cpu, const Descriptor& d, bool busy);

// MOV Sreg, POP Sreg, LDS and the like, in every mode. CS is not loaded this way. False: fault recorded.
bool load_data_segment(Cpu& cpu, Seg s, u16 selector, Vector v = Vector::gp);
// Real-mode and virtual-8086 rule: base = selector * 16.
void load_real_segment(Cpu& cpu, Seg s, u16 selector);
// Sets CS from a checked descriptor and recomputes the mode. `rpl` becomes the selector's RPL and the CPL.
void set_code_segment(Cpu& cpu, u16 selector, const Descriptor& d, u8 cpl);
void set_stack_segment(Cpu& cpu, u16 selector, const Descriptor& d);
void set_null_stack_segment(Cpu& cpu, u8 cpl);
// On a return to an outer ring, data segments that the new CPL may not use become null (SDM vol. 3, 5.8.6).
void null_inaccessible_segments(Cpu& cpu);

// RSP/ESP and SS for a ring from the current TSS. False: #TS recorded.
bool read_tss_stack(Cpu& cpu, u8 ring, u16& ss, u64& sp, u32 ext);
bool read_tss_ist(Cpu& cpu, unsigned ist, u64& sp, u32 ext);

inline bool null_selector(u16 s) { return (s & 0xfffc) == 0; }
inline u8 rpl(u16 s) { return s & 3; }
inline u32 selector_error(u16 s, u32 ext = 0) { return (s & 0xfffcu) | ext; }

// Far transfers (interp/far_transfer.cpp). RIP holds the next instruction; all change it on success.
bool far_jump(Cpu& cpu, u16 selector, u64 offset, u8 opsize);
bool far_call(Cpu& cpu, u16 selector, u64 offset, u8 opsize);
bool far_return(Cpu& cpu, u8 opsize, u16 extra);
bool interrupt_return(Cpu& cpu, u8 opsize);

// Hardware task switch (cpu/task_switch.cpp; SDM vol. 3, 7.3).
enum class TaskSwitch : u8 { jump, call, iret, gate };
// For `gate`, error is pushed on the new task's stack.
bool switch_task(Cpu& cpu, u16 selector, TaskSwitch reason, std::optional<u32> error, u32 ext);

} // namespace ring3::x86
