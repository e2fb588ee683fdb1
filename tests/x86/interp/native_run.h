// SPDX-License-Identifier: Apache-2.0
// Executes one instruction on the processor itself, with every register given and read back. Needs AVX-512.
#pragma once

#include "base/bits.h"
#include "x86/cpu/state.h"

#include <csetjmp>
#include <csignal>
#include <cstring>
#include <span>
#include <sys/mman.h>

namespace ring3::x86::test {

struct NativeState {
  u8 zmm[32][64];
  u64 k[8];
  u64 gpr[16]; // RSP is not loaded
  u64 mmx[8];
  u64 flags;
  u32 mxcsr;
};

inline sigjmp_buf native_fault;
inline void on_native_fault(int) { siglongjmp(native_fault, 1); }

class NativeRunner {
 public:
  NativeRunner() {
    code_ = static_cast<u8*>(
        mmap(nullptr, 0x4000, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    state_ = reinterpret_cast<NativeState*>(code_ + 0x2000);
  }
  ~NativeRunner() { munmap(code_, 0x4000); }
  NativeRunner(const NativeRunner&) = delete;
  NativeRunner& operator=(const NativeRunner&) = delete;

  // False: the instruction faulted.
  bool run(std::span<const u8> instruction, NativeState& s) {
    *state_ = s;
    emit(instruction);
    struct sigaction action {
    }, old[3];
    action.sa_handler = on_native_fault;
    const int signals[3] = {SIGILL, SIGSEGV, SIGFPE};
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &action, &old[i]);
    bool ok = false;
    if (sigsetjmp(native_fault, 1) == 0) {
      reinterpret_cast<void (*)()>(code_)();
      ok = true;
    }
    const u32 mxcsr = 0x1f80;
    asm volatile("ldmxcsr %0; emms" : : "m"(mxcsr));
    for (int i = 0; i < 3; ++i) sigaction(signals[i], &old[i], nullptr);
    if (ok) s = *state_;
    return ok;
  }

 private:
  void bytes(std::initializer_list<unsigned> list) {
    for (const unsigned b : list) code_[at_++] = static_cast<u8>(b);
  }
  // ModRM for [rip + ...] to a field of the state.
  void field(unsigned reg, const void* p) {
    bytes({5 | (reg & 7) << 3});
    const u64 next = reinterpret_cast<u64>(code_) + at_ + 4;
    store_raw<u32>(code_ + at_, static_cast<u32>(reinterpret_cast<u64>(p) - next));
    at_ += 4;
  }
  void move_vectors(unsigned opcode) {
    for (unsigned i = 0; i < 32; ++i) {
      bytes({0x62, (i & 8 ? 0U : 0x80) | 0x60 | (i & 16 ? 0U : 0x10) | 1, 0x7c, 0x48, opcode});
      field(i, state_->zmm[i]);
    }
  }
  void move_masks(unsigned opcode) {
    for (unsigned i = 0; i < 8; ++i) {
      bytes({0xc4, 0xe1, 0xf8, opcode});
      field(i, &state_->k[i]);
    }
  }
  void move_gprs(unsigned opcode) {
    for (unsigned i = 0; i < 16; ++i) {
      if (i == 4) continue;
      bytes({i & 8 ? 0x4cU : 0x48U, opcode});
      field(i, &state_->gpr[i]);
    }
  }
  void move_mmx(unsigned opcode) {
    for (unsigned i = 0; i < 8; ++i) {
      bytes({0x0f, opcode});
      field(i, &state_->mmx[i]);
    }
  }
  void emit(std::span<const u8> instruction) {
    at_ = 0;
    bytes({0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57});
    move_vectors(0x10);
    move_masks(0x90);
    move_mmx(0x6f);
    bytes({0x0f, 0xae});
    field(2, &state_->mxcsr);
    bytes({0xff});
    field(6, &state_->flags);
    bytes({0x9d});
    move_gprs(0x8b);
    for (const u8 b : instruction) bytes({b});
    move_gprs(0x89);
    bytes({0x9c, 0x8f});
    field(0, &state_->flags);
    bytes({0x0f, 0xae});
    field(3, &state_->mxcsr);
    move_vectors(0x11);
    move_masks(0x91);
    move_mmx(0x7f);
    bytes({0x0f, 0x77, 0xc5, 0xf8, 0x77});
    bytes({0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3});
  }

  u8* code_;
  NativeState* state_;
  unsigned at_ = 0;
};

} // namespace ring3::x86::test
