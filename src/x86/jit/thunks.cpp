// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/thunks.h"

#include "x86/interp/host_code.h"
#include "x86/interp/vector_emitter.h"
#include "x86/jit/vector_copy.h"

#include <iterator>

namespace ring3::x86::jit {

namespace {

constexpr HostReg callee_saved[] = {rbx, rbp, r12, r13, r14, r15};

void load_registers(Emitter& e, const Layout& l) {
  for (const HostReg r : identity) e.mov(r, l.reg(r));
  e.mov(guest_rsp, l.reg(rsp));
}

void store_registers(Emitter& e, const Layout& l) {
  for (const HostReg r : identity) e.mov(l.reg(r), r);
  e.mov(l.reg(rsp), guest_rsp);
}

// CpuState is in RDI. 16 registers of 256 bits where the guest has no AVX-512 (or of 128, where the host has
// no AVX), else all there are.
void move_vectors(Emitter& e, bool all, bool load) {
  host::Emitter v;
  const unsigned bits = all ? 512 : 256;
  for (unsigned r = 0; r < (all ? 32u : 16u); ++r) {
    if (!host::has_avx()) {
      load ? v.load_xmm(r) : v.store_xmm(r);
    } else {
      load ? v.load_vector(r, bits) : v.store_vector(r, bits);
    }
  }
  for (unsigned k = 0; all && k < 8; ++k) {
    load ? v.load_mask(k, host::has_avx512bw()) : v.store_mask(k, host::has_avx512bw());
  }
  if (load) {
    v.load_mxcsr(host::mxcsr_offset);
  } else {
    v.store_mxcsr(host::mxcsr_offset);
    if (host::has_avx()) v.bytes({0xc5, 0xf8, 0x77}); // vzeroupper: C++ uses SSE
  }
  e.bytes(v.span());
}

// Jumps over what follows unless the byte has the bit.
u8* unless(Emitter& e, s32 byte, u8 bit) {
  e.test8_imm(HostMem::in_cpu(byte), bit);
  return e.jcc(Cond::e);
}

// What CpuState and an FXSAVE image have in common, but for the pointers to the last instruction and its
// operand: those are only in CpuState.
void copy_x87_state(Emitter& e, s32 to, s32 from, HostReg temporary) {
  const auto copy = [&](std::size_t at, bool wide) {
    e.mov(wide, temporary, HostMem::in_cpu(from + static_cast<s32>(at)));
    e.mov(wide, HostMem::in_cpu(to + static_cast<s32>(at)), temporary);
  };
  copy(offsetof(X87State, fcw), false); // and FSW
  e.movzx8(temporary, HostMem::in_cpu(from + s32{offsetof(X87State, ftw)}));
  e.mov8(HostMem::in_cpu(to + s32{offsetof(X87State, ftw)}), temporary);
  for (std::size_t at = 0; at < sizeof(X87State::st); at += 8) copy(offsetof(X87State, st) + at, true);
}

// Where vectors are not live the image's are loaded, and of no use to anybody.
void load_x87(Emitter& e, const Layout& l) {
  const auto image = [&](s32 at) { return HostMem::in_cpu(l.x87_image + at); };
  u8* const none = unless(e, l.vectors_live, vector_level::vectors);
  e.fxsave64(image(0));
  e.aim_here(none);
  e.stmxcsr(image(offsetof(X87State, mxcsr)));
  copy_x87_state(e, l.x87_image, l.x87, scratch_a);
  // Some processors check the pointers that they load.
  e.mov16_imm(image(offsetof(X87State, fop)), 0);
  e.mov_imm(image(offsetof(X87State, fip)), 0);
  e.mov_imm(image(offsetof(X87State, fdp)), 0);
  e.fxrstor64(image(0));
  e.or8_imm(HostMem::in_cpu(l.vectors_live), vector_level::x87);
  e.mov8_imm(HostMem::in_cpu(l.x87_used), 1);
}

// C++ wants no register in use and its own control word. FNINIT would clear the status word, too, but takes
// far longer.
void save_x87(Emitter& e, const Layout& l) {
  u8* const none = unless(e, l.vectors_live, vector_level::x87);
  e.fxsave64(HostMem::in_cpu(l.x87_image));
  e.emms();
  e.fldcw(HostMem::in_cpu(l.host_fcw));
  copy_x87_state(e, l.x87, l.x87_image, rax);
  e.aim_here(none);
}

void save_vector_registers(Emitter& e, const Layout& l, const Cpu* cpu) {
  u8* const none = unless(e, l.vectors_live, vector_level::vectors);
  e.mov_imm(rdi, reinterpret_cast<u64>(cpu) + static_cast<u64>(s64{l.regs}));
  u8* done = nullptr;
  if (host::has_avx512()) {
    u8* const few = unless(e, l.vectors_live, vector_level::avx512);
    move_vectors(e, true, false);
    done = e.jmp();
    e.aim_here(few);
  }
  move_vectors(e, false, false);
  if (done != nullptr) e.aim_here(done);
  e.load_host_mxcsr(HostMem::in_cpu(l.host_mxcsr));
  e.aim_here(none);
}

// General registers are in CpuState already.
void save_vectors(Emitter& e, const Layout& l, const Cpu* cpu) {
  u8* const none = unless(e, l.vectors_live, 0xff);
  save_x87(e, l);
  save_vector_registers(e, l, cpu);
  e.mov8_imm(HostMem::in_cpu(l.vectors_live), 0);
  e.aim_here(none);
}

} // namespace

Thunks emit_thunks(Emitter& e, const u8* executable, const Layout& layout, const Cpu* cpu,
                   StepFunction step) {
  Thunks t;
  const auto place = [&] { return executable + e.size(); };

  const HostMem budget = HostMem::in_cpu(layout.budget);
  const auto move = [&](bool wide, const HostMem& to, const HostMem& from) {
    e.mov(wide, scratch_b, from);
    e.mov(wide, to, scratch_b);
  };
  // What C++ code may have changed. `behind`: how far the host's RSP is below the frame.
  const auto fill_frame = [&](s32 behind) {
    const auto in_frame = [&](const HostMem& m) { return HostMem::at(rsp, m.disp + behind); };
    move(false, in_frame(frame::budget), budget);
    move(true, in_frame(frame::tlb), HostMem::in_cpu(layout.tlb));
    move(true, in_frame(frame::jumps), HostMem::in_cpu(layout.jumps));
  };

  // enter(cpu, code): six registers and the frame keep the stack aligned for calls.
  static_assert((8 + sizeof callee_saved * 8 + frame::size) % 16 == 0);
  t.enter = reinterpret_cast<Thunks::Enter>(reinterpret_cast<u64>(place()));
  for (const HostReg r : callee_saved) e.push(r);
  e.lea_rsp(-frame::size);
  fill_frame(0);
  e.mov(scratch_a, HostReg{rsi});
  load_registers(e, layout);
  e.jmp(scratch_a);

  t.leave = place();
  store_registers(e, layout);
  move(false, budget, frame::budget);
  save_vectors(e, layout, cpu);
  e.mov(HostReg{rax}, scratch_a);
  u8* const out = e.here();
  e.lea_rsp(frame::size);
  for (auto r = std::rbegin(callee_saved); r != std::rend(callee_saved); ++r) e.pop(*r);
  e.ret();

  t.step = place();
  store_registers(e, layout);
  move(false, budget, HostMem::at(rsp, frame::budget.disp + 8));
  save_vectors(e, layout, cpu);
  e.lea_rsp(-8);
  e.mov_imm(rdi, reinterpret_cast<u64>(cpu));
  e.mov(HostReg{rsi}, scratch_a);
  e.mov_imm(rax, reinterpret_cast<u64>(step));
  e.call(HostReg{rax});
  e.lea_rsp(8);
  fill_frame(8);
  e.test(rax, rax);
  u8* const elsewhere = e.jcc(Cond::ne);
  load_registers(e, layout);
  e.ret();
  e.aim_here(elsewhere);
  e.lea_rsp(8); // its return address
  e.mov(scratch_a, HostReg{rax});
  load_registers(e, layout);
  e.jmp(scratch_a);

  t.stop = place();
  e.xor32(rax, rax);
  Emitter::aim(e.jmp(), out);

  t.load_vectors = place();
  e.mov(scratch_b, HostReg{rdi});
  e.mov_imm(rdi, reinterpret_cast<u64>(cpu) + static_cast<u64>(s64{layout.regs}));
  u8* loaded = nullptr;
  if (host::has_avx512()) {
    u8* const few = unless(e, layout.vectors_usable, vector_level::avx512);
    move_vectors(e, true, true);
    loaded = e.jmp();
    e.aim_here(few);
  }
  move_vectors(e, false, true);
  if (loaded != nullptr) e.aim_here(loaded);
  e.mov(HostReg{rdi}, scratch_b);
  e.movzx8(scratch_a, HostMem::in_cpu(layout.vectors_usable));
  e.and32(scratch_a, vector_level::vectors);
  e.or8(HostMem::in_cpu(layout.vectors_live), scratch_a);
  e.ret();

  t.load_x87 = place();
  load_x87(e, layout);
  e.ret();

  t.strings = emit_string_thunks(e, executable, layout);
  return t;
}

} // namespace ring3::x86::jit
