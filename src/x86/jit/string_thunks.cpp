// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/string_thunks.h"

#include "x86/cpu/cpu.h"
#include "x86/jit/tlb_probe.h"

#include <cstddef>

namespace ring3::x86::jit {

namespace {

// Returns where the host's own instruction is.
const u8* emit_repeated(Emitter& e, const u8* executable, const Layout& l, bool moves, unsigned log2) {
  const auto run = [&](std::size_t member) {
    return HostMem::in_cpu(l.string_run + static_cast<s32>(member));
  };
  const HostMem source = run(offsetof(StringRun, host_source)), to = run(offsetof(StringRun, host_to));
  const HostMem rsi_before = run(offsetof(StringRun, rsi)), rdi_before = run(offsetof(StringRun, rdi));
  const HostMem rcx_before = run(offsetof(StringRun, rcx)), chunk = run(offsetof(StringRun, chunk));
  u8* handler[4] = {};
  const auto probe = [&](HostReg at, bool write, const HostMem& host) {
    e.mov(scratch_b, at);
    emit_probe(e, HostMem::in_cpu(l.tlb), 1, write);
    u8* const miss = e.jcc(Cond::ne);
    e.mov(scratch_b, HostMem::at(scratch_b, offsetof(TlbEntry, addend)));
    e.lea(scratch_b, {.base = scratch_b, .index = at});
    e.mov(host, scratch_b);
    return miss;
  };

  e.cmp_imm(true, rcx, Cpu::string_batch);
  handler[0] = e.jcc(Cond::nbe);
  e.mov8_imm(run(offsetof(StringRun, moves)), moves ? 1 : 0);
  u8* const again = e.here();
  e.test(rcx, rcx);
  u8* const done = e.jcc(Cond::e);
  if (moves) handler[1] = probe(rsi, false, source);
  handler[2] = probe(rdi, true, to);
  e.mov(rcx_before, rcx);
  e.mov(rdi_before, rdi);
  // Elements that lie in both pages.
  e.mov(false, scratch_a, rdi);
  e.and32(scratch_a, page_offset_mask);
  if (moves) {
    e.mov(rsi_before, rsi);
    e.mov(false, scratch_b, rsi);
    e.and32(scratch_b, page_offset_mask);
    e.cmp(false, scratch_a, scratch_b);
    e.cmov(Cond::b, scratch_a, scratch_b);
  }
  e.xor32_imm(scratch_a, page_offset_mask);
  e.add32_imm(scratch_a, 1);
  if (log2 != 0) e.shr(scratch_a, static_cast<u8>(log2));
  handler[3] = e.jcc(Cond::e);
  e.cmp(true, rcx, scratch_a);
  e.cmov(Cond::nbe, rcx, scratch_a);
  e.mov(chunk, rcx);
  if (moves) e.mov(HostReg{rsi}, source);
  e.mov(HostReg{rdi}, to);
  const u8* const at = executable + e.size();
  e.rep(moves ? 0xa4 : 0xaa, 1u << log2);
  e.mov(HostReg{rcx}, rcx_before);
  e.mov(scratch_a, chunk);
  e.sub(rcx, scratch_a);
  e.mov(HostReg{rdi}, rdi_before);
  e.lea(rdi, {.base = rdi, .index = scratch_a, .scale = static_cast<u8>(log2)});
  if (moves) {
    e.mov(HostReg{rsi}, rsi_before);
    e.lea(rsi, {.base = rsi, .index = scratch_a, .scale = static_cast<u8>(log2)});
  }
  if (!e.overflowed()) Emitter::aim(e.jmp(), again);
  for (u8* const h : handler) {
    if (h != nullptr) e.aim_here(h);
  }
  e.test(rcx, rcx); // it is not 0
  e.aim_here(done);
  e.ret();
  return at;
}

} // namespace

StringThunks emit_string_thunks(Emitter& e, const u8* executable, const Layout& layout) {
  StringThunks t;
  for (unsigned log2 = 0; log2 < 4; ++log2) {
    t.movs[log2] = executable + e.size();
    t.movs_at[log2] = emit_repeated(e, executable, layout, true, log2);
    t.stos[log2] = executable + e.size();
    t.stos_at[log2] = emit_repeated(e, executable, layout, false, log2);
  }
  return t;
}

std::optional<unsigned> StringThunks::element_bits(const u8* at) const {
  for (unsigned log2 = 0; log2 < 4; ++log2) {
    if (at == movs_at[log2] || at == stos_at[log2]) return log2;
  }
  return std::nullopt;
}

} // namespace ring3::x86::jit
