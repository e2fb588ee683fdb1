// SPDX-License-Identifier: Apache-2.0
// MMX, SSE, AVX and AVX-512 instructions, executed by the host (SDM vol. 1, chapters 9 to 15).
#include "x86/interp/vector_run.h"

#include <cstring>

namespace ring3::x86 {

namespace {

Step no_code_memory(Cpu& cpu, const Insn&) {
  cpu.internal_error = "no executable memory for vector instructions";
  cpu.request_exit(CpuExit::internal_error);
  return Step::abort;
}

template <bool mmx> Step run_registers(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  if constexpr (mmx) enter_mmx(cpu.state.x87);
  if (p.run(&cpu.state, nullptr) != 0) [[unlikely]]
    return simd_exception(cpu);
  return Step::next;
}

template <bool mmx> Step run_load(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  GuestVirt a;
  if (!vector_address(cpu, in, p, false, a)) return Step::abort;
  alignas(64) std::byte scratch[max_vector_bytes];
  void* memory = const_cast<std::byte*>(read_pointer(cpu, a, p.memory_bytes));
  if (memory == nullptr) {
    if (!read_vector(cpu, a, static_cast<Seg>(in.seg), p.memory_bytes, scratch)) return Step::abort;
    memory = scratch;
  }
  if constexpr (mmx) enter_mmx(cpu.state.x87);
  if (p.run(&cpu.state, memory) != 0) [[unlikely]]
    return simd_exception(cpu);
  return Step::next;
}

template <bool mmx> Step run_store(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  GuestVirt a;
  if (!vector_address(cpu, in, p, true, a)) return Step::abort;
  const Seg seg = static_cast<Seg>(in.seg);
  if (std::byte* memory = cpu.host_for_update(a, p.memory_bytes, seg)) [[likely]] {
    if constexpr (mmx) enter_mmx(cpu.state.x87);
    const u32 stopped = p.run(&cpu.state, memory);
    cpu.update_done();
    return stopped != 0 ? simd_exception(cpu) : Step::next;
  }
  if (cpu.fault_pending) return Step::abort;
  // A device, or two pages. The store may still have to wait for user space: nothing may have changed then.
  // A page fault comes before what the instruction itself may raise.
  if (!cpu.probe_write(seg, cpu.effective_address(in), p.memory_bytes)) return Step::abort;
  alignas(64) std::byte scratch[max_vector_bytes];
  const X87State before = cpu.state.x87;
  if constexpr (mmx) enter_mmx(cpu.state.x87);
  if (p.run(&cpu.state, scratch) != 0) return simd_exception(cpu);
  if (cpu.write_bytes(seg, cpu.effective_address(in), scratch, p.memory_bytes)) return Step::next;
  cpu.state.x87 = before;
  return Step::abort;
}

Step run_emms(Cpu& cpu, const Insn&) {
  if (!vector_needs_met(cpu.state, vector_needs::mmx)) return refuse_vector(cpu, vector_needs::mmx);
  set_x87_top(cpu.state.x87, 0); // SDM vol. 1, table 9-3
  cpu.state.x87.ftw = 0;
  return Step::next;
}

// Outside 64-bit mode there are eight registers (SDM vol. 2, VZEROUPPER).
template <unsigned keep> Step run_vzero(Cpu& cpu, const Insn&) {
  if (!vector_needs_met(cpu.state, vector_needs::vex)) return refuse_vector(cpu, vector_needs::vex);
  const unsigned n = cpu.code64() ? 16 : 8;
  for (unsigned i = 0; i < n; ++i) std::memset(cpu.state.vector.zmm[i] + keep, 0, 64 - keep);
  return Step::next;
}

} // namespace

void set_x87_top(X87State& x, unsigned top) {
  // The image holds registers in stack order, so that ST(0) comes first: turn it around.
  const unsigned shift = (top - (x.fsw >> 11 & 7U)) & 7;
  if (shift != 0) {
    u8 old[8][16];
    std::memcpy(old, x.st, sizeof old);
    for (unsigned i = 0; i < 8; ++i) std::memcpy(x.st[i], old[(i + shift) & 7], 16);
  }
  x.fsw = static_cast<u16>((x.fsw & ~0x3800U) | top << 11);
}

bool runs_on_vector_registers(const Insn& in) {
  return in.handler == run_registers<false> || in.handler == run_load<false> ||
         in.handler == run_store<false> || in.handler == run_vzero<0> || in.handler == run_vzero<16> ||
         is_masked_vector_handler(in.handler);
}

bool runs_on_mmx_registers(const Insn& in) {
  return in.handler == run_registers<true> || in.handler == run_load<true> || in.handler == run_store<true> ||
         in.handler == run_emms;
}

Handler bind_vector(const Decoded& d, Insn& in, const CpuidTable&) {
  if (d.op != Op::vector) return nullptr;
  if (d.lock) return handle_ud;
  if (d.map == 1 && d.opcode == 0x77) {
    if (d.encoding == Encoding::legacy) return run_emms;
    return d.vector_bits == 256 ? run_vzero<0> : run_vzero<16>;
  }
  if (const Handler special = bind_vector_special(d, in)) return special;
  switch (find_plan(d, in.plan)) {
  case PlanStatus::absent: return handle_ud;
  case PlanStatus::no_memory: return no_code_memory;
  case PlanStatus::ok: break;
  }
  if (const Handler masked = bind_vector_masked(d, in)) return masked;
  bool mmx = false;
  for (unsigned i = 0; i < d.operands; ++i) mmx |= d.operand[i].kind == Operand::Kind::mmx;
  if (!d.has_memory) return mmx ? run_registers<true> : run_registers<false>;
  if (d.memory_written) return mmx ? run_store<true> : run_store<false>;
  return mmx ? run_load<true> : run_load<false>;
}

} // namespace ring3::x86
