// SPDX-License-Identifier: Apache-2.0
// Vector loads and stores of which a mask selects elements: EVEX opmasks, VMASKMOV, MASKMOVDQU, compress and
// expand. What is not selected is not accessed and cannot fault (SDM vol. 1, 15.6.1).
#include "x86/interp/vector_run.h"

#include <bit>
#include <cstring>

namespace ring3::x86 {

namespace {

// Bit i: element i of the memory operand is wanted.
u64 enabled_elements(const Cpu& cpu, const VectorPlan& p) {
  const u64 mask = cpu.state.vector.k[p.mask] & low_mask(p.mask_bits);
  if (!p.replicates) return mask;
  u64 wanted = 0;
  for (unsigned i = 0; i < p.mask_bits; ++i) wanted |= (mask >> i & 1) << (i % p.elements);
  return wanted;
}

bool alignment_ok(Cpu& cpu, const Insn& in, u16 align_mask) {
  if (align_mask == 0) return true;
  const Segment& s = cpu.state.seg[in.seg];
  const bool flat =
      cpu.code64() && static_cast<Seg>(in.seg) != Seg::fs && static_cast<Seg>(in.seg) != Seg::gs;
  const u64 linear = cpu.effective_address(in) + (flat ? 0 : s.base);
  if ((linear & align_mask) == 0) return true;
  cpu.gp();
  return false;
}

u64 element_offset(const Cpu& cpu, const Insn& in, u64 i) {
  return (cpu.effective_address(in) + i) & Cpu::address_mask(in.addrsize);
}

template <class T> bool read_typed_elements(Cpu& cpu, const Insn& in, u64 wanted, std::byte* out) {
  const Seg seg = static_cast<Seg>(in.seg);
  for (; wanted != 0; wanted &= wanted - 1) {
    const unsigned i = static_cast<unsigned>(std::countr_zero(wanted)) * static_cast<unsigned>(sizeof(T));
    if (!cpu.read<T>(seg, element_offset(cpu, in, i), *reinterpret_cast<T*>(out + i))) return false;
  }
  return true;
}

bool read_elements(Cpu& cpu, const Insn& in, u64 wanted, unsigned size, std::byte* out) {
  switch (size) {
  case 1: return read_typed_elements<u8>(cpu, in, wanted, out);
  case 2: return read_typed_elements<u16>(cpu, in, wanted, out);
  case 4: return read_typed_elements<u32>(cpu, in, wanted, out);
  default: return read_typed_elements<u64>(cpu, in, wanted, out);
  }
}

bool write_elements(Cpu& cpu, const Insn& in, u64 wanted, unsigned size, const std::byte* data) {
  const Seg seg = static_cast<Seg>(in.seg);
  for (u64 w = wanted; w != 0; w &= w - 1) {
    const unsigned i = static_cast<unsigned>(std::countr_zero(w)) * size;
    if (!cpu.probe_write(seg, element_offset(cpu, in, i), size)) return false;
  }
  for (u64 w = wanted; w != 0; w &= w - 1) {
    const unsigned i = static_cast<unsigned>(std::countr_zero(w)) * size;
    if (!cpu.write_bytes(seg, element_offset(cpu, in, i), data + i, size)) return false;
  }
  return true;
}

// The whole operand lies in one page of plain memory, so any enabled element stands for all of them.
std::byte* store_pointer(Cpu& cpu, const Insn& in, unsigned bytes) {
  if (!cpu.code64()) return nullptr; // segment limits apply to elements
  GuestVirt a;
  if (!cpu.linear(static_cast<Seg>(in.seg), cpu.effective_address(in), bytes, true, a)) return nullptr;
  if (a.page_offset() + bytes > page_size) return nullptr;
  return cpu.host_for_update(a, bytes, static_cast<Seg>(in.seg));
}

const std::byte* load_pointer(Cpu& cpu, const Insn& in, unsigned bytes) {
  if (!cpu.code64()) return nullptr;
  GuestVirt a;
  if (!cpu.linear(static_cast<Seg>(in.seg), cpu.effective_address(in), bytes, false, a)) return nullptr;
  return read_pointer(cpu, a, bytes);
}

Step masked_load(Cpu& cpu, const Insn& in, const VectorPlan& p, u64 wanted) {
  if (!alignment_ok(cpu, in, p.align_mask)) return Step::abort;
  alignas(64) std::byte scratch[max_vector_bytes];
  void* memory = scratch;
  if (wanted == 0) {
    std::memset(scratch, 0, sizeof scratch);
  } else if (const std::byte* host = load_pointer(cpu, in, p.memory_bytes)) {
    memory = const_cast<std::byte*>(host);
  } else {
    std::memset(scratch, 0, sizeof scratch);
    if (!read_elements(cpu, in, wanted, p.element_bytes, scratch)) return Step::abort;
  }
  return p.run(&cpu.state, memory) != 0 ? simd_exception(cpu) : Step::next;
}

Step masked_store(Cpu& cpu, const Insn& in, const VectorPlan& p, u64 wanted, unsigned element_bytes) {
  if (!alignment_ok(cpu, in, p.align_mask)) return Step::abort;
  if (wanted != 0) {
    if (std::byte* memory = store_pointer(cpu, in, p.memory_bytes)) {
      const u32 stopped = p.run(&cpu.state, memory);
      cpu.update_done();
      return stopped != 0 ? simd_exception(cpu) : Step::next;
    }
    if (cpu.fault_pending) return Step::abort;
  }
  // A page fault comes before what the instruction itself may raise.
  for (u64 rest = wanted; rest != 0; rest &= rest - 1) {
    const u64 at = cpu.effective_address(in) + static_cast<unsigned>(std::countr_zero(rest)) * element_bytes;
    if (!cpu.probe_write(static_cast<Seg>(in.seg), at, element_bytes)) return Step::abort;
  }
  alignas(64) std::byte scratch[max_vector_bytes];
  const u32 mxcsr = cpu.state.x87.mxcsr;
  if (p.run(&cpu.state, scratch) != 0) return simd_exception(cpu);
  if (write_elements(cpu, in, wanted, element_bytes, scratch)) return Step::next;
  cpu.state.x87.mxcsr = mxcsr;
  return Step::abort;
}

Step run_masked_load(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  return masked_load(cpu, in, p, enabled_elements(cpu, p));
}

Step run_masked_store(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  return masked_store(cpu, in, p, enabled_elements(cpu, p), p.element_bytes);
}

// Exception classes without fault suppression: the whole operand is accessed whatever the mask says.
Step run_whole_store(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  if (!cpu.probe_write(static_cast<Seg>(in.seg), cpu.effective_address(in), p.memory_bytes))
    return Step::abort;
  return masked_store(cpu, in, p, enabled_elements(cpu, p), p.element_bytes);
}

Step run_whole_load(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  GuestVirt a;
  if (!vector_address(cpu, in, p, false, a)) return Step::abort;
  alignas(64) std::byte scratch[max_vector_bytes];
  if (!read_vector(cpu, a, static_cast<Seg>(in.seg), p.memory_bytes, scratch)) return Step::abort;
  return p.run(&cpu.state, scratch) != 0 ? simd_exception(cpu) : Step::next;
}

// --- compress and expand: as many elements as the mask has bits, side by side in memory ---

unsigned packed_bytes(const Cpu& cpu, const Insn& in, const VectorPlan& p) {
  const unsigned n = p.memory_bytes / in.aux;
  const u64 mask = in.vvvv == 0 ? low_mask(n) : cpu.state.vector.k[in.vvvv] & low_mask(n);
  return static_cast<unsigned>(std::popcount(mask)) * in.aux;
}

Step run_expand(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  alignas(64) std::byte scratch[max_vector_bytes] = {};
  const unsigned bytes = packed_bytes(cpu, in, p);
  if (bytes != 0 && !cpu.read_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), scratch, bytes)) {
    return Step::abort;
  }
  p.run(&cpu.state, scratch);
  return Step::next;
}

Step run_compress(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  alignas(64) std::byte scratch[max_vector_bytes];
  p.run(&cpu.state, scratch);
  const unsigned bytes = packed_bytes(cpu, in, p);
  if (bytes != 0 && !cpu.write_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), scratch, bytes)) {
    return Step::abort;
  }
  return Step::next;
}

// --- VMASKMOV and VPMASKMOV: the sign bits of the elements of a vector register ---

u64 sign_bits(const Cpu& cpu, const Insn& in) {
  const u8* mask = cpu.state.vector.zmm[in.vvvv];
  const unsigned n = in.plan->memory_bytes / in.aux;
  u64 wanted = 0;
  for (unsigned i = 0; i < n; ++i) wanted |= u64{mask[i * in.aux + in.aux - 1U]} >> 7 << i;
  return wanted;
}

Step run_vmaskmov_load(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  const u64 wanted = sign_bits(cpu, in);
  alignas(64) std::byte scratch[max_vector_bytes] = {};
  if (!read_elements(cpu, in, wanted, in.aux, scratch)) return Step::abort;
  p.run(&cpu.state, scratch);
  return Step::next;
}

Step run_vmaskmov_store(Cpu& cpu, const Insn& in) {
  const VectorPlan& p = *in.plan;
  if (!vector_needs_met(cpu.state, p.needs)) [[unlikely]]
    return refuse_vector(cpu, p.needs);
  return masked_store(cpu, in, p, sign_bits(cpu, in), in.aux);
}

// --- MASKMOVQ and MASKMOVDQU: bytes to [rDI] ---

template <unsigned size> Step store_masked_bytes(Cpu& cpu, const Insn& in, const u8* data, const u8* mask) {
  u64 wanted = 0;
  for (unsigned i = 0; i < size; ++i) wanted |= u64{mask[i]} >> 7 << i;
  return write_elements(cpu, in, wanted, 1, reinterpret_cast<const std::byte*>(data)) ? Step::next
                                                                                      : Step::abort;
}

Step run_maskmovdqu(Cpu& cpu, const Insn& in) {
  const VectorNeeds& n = in.aux != 0 ? vector_needs::vex : vector_needs::sse;
  if (!vector_needs_met(cpu.state, n)) return refuse_vector(cpu, n);
  return store_masked_bytes<16>(cpu, in, cpu.state.vector.zmm[in.reg], cpu.state.vector.zmm[in.rm]);
}

Step run_maskmovq(Cpu& cpu, const Insn& in) {
  if (!vector_needs_met(cpu.state, vector_needs::mmx)) return refuse_vector(cpu, vector_needs::mmx);
  X87State x = cpu.state.x87;
  enter_mmx(x);
  const Step step = store_masked_bytes<8>(cpu, in, x.st[in.reg], x.st[in.rm]);
  if (step == Step::next) cpu.state.x87 = x;
  return step;
}

Handler bind_maskmov(const Decoded& d, Insn& in) {
  if (d.operands < 2) return handle_ud;
  in.reg = d.operand[0].reg;
  in.rm = d.operand[1].reg;
  in.aux = d.encoding == Encoding::vex ? 1 : 0;
  in.base = rdi;
  in.index = reg_zero;
  in.disp = 0;
  in.seg = static_cast<u8>(Seg::ds);
  if (d.code_bits != 64) {
    if (has_prefix(d, 0x26)) in.seg = static_cast<u8>(Seg::es);
    if (has_prefix(d, 0x2e)) in.seg = static_cast<u8>(Seg::cs);
    if (has_prefix(d, 0x36)) in.seg = static_cast<u8>(Seg::ss);
  }
  if (has_prefix(d, 0x64)) in.seg = static_cast<u8>(Seg::fs);
  if (has_prefix(d, 0x65)) in.seg = static_cast<u8>(Seg::gs);
  return d.operand[0].kind == Operand::Kind::mmx ? run_maskmovq : run_maskmovdqu;
}

u8 w_element(const Decoded& d, u8 narrow, u8 wide) {
  const bool w = d.encoding == Encoding::evex
                     ? (d.bytes[d.evex_offset + 2U] & 0x80) != 0
                     : d.bytes[d.vex_offset] == 0xc4 && (d.bytes[d.vex_offset + 2U] & 0x80) != 0;
  return w ? wide : narrow;
}

} // namespace

bool is_masked_vector_handler(Handler h) {
  return h == run_masked_load || h == run_masked_store || h == run_whole_load || h == run_whole_store ||
         h == run_vmaskmov_load || h == run_vmaskmov_store || h == run_compress || h == run_expand;
}

Handler bind_vector_masked(const Decoded& d, Insn& in) {
  if (d.map == 1 && d.opcode == 0xf7) {
    in.plan = nullptr;
    return bind_maskmov(d, in);
  }
  if (!d.has_memory) return nullptr;
  if (d.encoding == Encoding::vex && d.map == 2) {
    switch (d.opcode) {
    case 0x2c:
    case 0x2e: in.aux = 4; break;
    case 0x2d:
    case 0x2f: in.aux = 8; break;
    case 0x8c:
    case 0x8e: in.aux = w_element(d, 4, 8); break;
    default: return nullptr;
    }
    // The mask is VEX.vvvv: the register between the destination and the memory operand, or first after
    // memory.
    in.vvvv = d.operand[1].reg;
    return d.memory_written ? run_vmaskmov_store : run_vmaskmov_load;
  }
  if (d.encoding != Encoding::evex) return nullptr;
  if (d.map == 2 && mandatory_prefix(d) == 1) {
    in.vvvv = d.evex_mask;
    switch (d.opcode) {
    case 0x62:
    case 0x63: in.aux = w_element(d, 1, 2); break;
    case 0x88:
    case 0x89:
    case 0x8a:
    case 0x8b: in.aux = w_element(d, 4, 8); break;
    default: in.aux = 0; break;
    }
    if (in.aux != 0) return d.memory_written ? run_compress : run_expand;
  }
  if (in.plan->element_bytes == 0) return nullptr;
  if (d.memory_written) return in.plan->suppresses ? run_masked_store : run_whole_store;
  return in.plan->suppresses ? run_masked_load : run_whole_load;
}

} // namespace ring3::x86
