// SPDX-License-Identifier: Apache-2.0
// Gathers and scatters (SDM vol. 2, VGATHERDPS, VPGATHERDD, VPSCATTERDD): one element after the other, and an
// element's mask is cleared when it is done, so that a fault in the middle can be resumed.
#include "x86/interp/vector_run.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86 {

namespace {

// Insn fields: reg the data register, rm the index register, vvvv the mask register, aux as below.
constexpr u8 wide_data = 1, wide_index = 2, vl_shift = 2; // bits 3:2: vector length 128 << n

struct Shape {
  unsigned data, index, count;
};

Shape shape_of(const Insn& in) {
  const unsigned vector_bytes = 16U << (in.aux >> vl_shift);
  const unsigned data = (in.aux & wide_data) != 0 ? 8 : 4;
  const unsigned index = (in.aux & wide_index) != 0 ? 8 : 4;
  return {data, index, vector_bytes / std::max(data, index)};
}

u64 element_address(const Cpu& cpu, const Insn& in, const Shape& s, unsigned i) {
  const u8* at = cpu.state.vector.zmm[in.rm] + i * s.index;
  const u64 index = s.index == 8 ? load_raw<u64>(at) : static_cast<u64>(s64{load_raw<s32>(at)});
  return (cpu.state.regs[in.base] + (index << in.scale) + static_cast<u64>(s64{in.disp})) &
         Cpu::address_mask(in.addrsize);
}

bool gather_element(Cpu& cpu, const Insn& in, const Shape& s, unsigned i, u8* out) {
  const Seg seg = static_cast<Seg>(in.seg);
  const u64 offset = element_address(cpu, in, s, i);
  if (s.data == 4) return cpu.read<u32>(seg, offset, *reinterpret_cast<u32*>(out + i * 4));
  return cpu.read<u64>(seg, offset, *reinterpret_cast<u64*>(out + i * 8));
}

// Leaving for user space repeats the instruction, with the accesses replayed: then nothing may have changed.
bool keep_partial(const Cpu& cpu) { return cpu.fault_pending; }

Step run_gather_vex(Cpu& cpu, const Insn& in) {
  if (!vector_needs_met(cpu.state, vector_needs::vex)) return refuse_vector(cpu, vector_needs::vex);
  const Shape s = shape_of(in);
  alignas(64) u8 data[64];
  alignas(64) u8 mask[64];
  VectorState& v = cpu.state.vector;
  std::memcpy(data, v.zmm[in.reg], sizeof data);
  std::memcpy(mask, v.zmm[in.vvvv], sizeof mask);
  for (unsigned i = 0; i < s.count; ++i) {
    u8* m = mask + i * s.data;
    if ((m[s.data - 1] & 0x80) != 0) {
      if (!gather_element(cpu, in, s, i, data)) {
        if (keep_partial(cpu)) {
          std::memcpy(v.zmm[in.reg], data, sizeof data);
          std::memcpy(v.zmm[in.vvvv], mask, sizeof mask);
        }
        return Step::abort;
      }
    }
    std::memset(m, 0, s.data);
  }
  std::memset(data + s.count * s.data, 0, 64 - s.count * s.data);
  std::memcpy(v.zmm[in.reg], data, sizeof data);
  std::memset(v.zmm[in.vvvv], 0, 64);
  return Step::next;
}

Step run_gather_evex(Cpu& cpu, const Insn& in) {
  if (!vector_needs_met(cpu.state, vector_needs::evex)) return refuse_vector(cpu, vector_needs::evex);
  const Shape s = shape_of(in);
  VectorState& v = cpu.state.vector;
  alignas(64) u8 data[64];
  std::memcpy(data, v.zmm[in.reg], sizeof data);
  u64 mask = v.k[in.vvvv];
  for (unsigned i = 0; i < s.count; ++i) {
    if ((mask >> i & 1) == 0) continue;
    if (!gather_element(cpu, in, s, i, data)) {
      if (keep_partial(cpu)) {
        std::memcpy(v.zmm[in.reg], data, sizeof data);
        v.k[in.vvvv] = mask;
      }
      return Step::abort;
    }
    mask &= ~bit(i);
  }
  std::memset(data + s.count * s.data, 0, 64 - s.count * s.data);
  std::memcpy(v.zmm[in.reg], data, sizeof data);
  v.k[in.vvvv] = 0;
  return Step::next;
}

Step run_scatter(Cpu& cpu, const Insn& in) {
  if (!vector_needs_met(cpu.state, vector_needs::evex)) return refuse_vector(cpu, vector_needs::evex);
  const Shape s = shape_of(in);
  VectorState& v = cpu.state.vector;
  const u8* data = v.zmm[in.reg];
  u64 mask = v.k[in.vvvv];
  const Seg seg = static_cast<Seg>(in.seg);
  for (unsigned i = 0; i < s.count; ++i) {
    if ((mask >> i & 1) == 0) continue;
    const u64 offset = element_address(cpu, in, s, i);
    const bool done = s.data == 4 ? cpu.write<u32>(seg, offset, load_raw<u32>(data + i * 4))
                                  : cpu.write<u64>(seg, offset, load_raw<u64>(data + i * 8));
    if (!done) {
      if (keep_partial(cpu)) v.k[in.vvvv] = mask;
      return Step::abort;
    }
    mask &= ~bit(i);
  }
  v.k[in.vvvv] = 0;
  return Step::next;
}

} // namespace

Handler bind_vector_special(const Decoded& d, Insn& in) {
  if (!d.vsib) return nullptr;
  const bool gather = d.opcode >= 0x90 && d.opcode <= 0x93;
  const bool scatter = d.encoding == Encoding::evex && d.opcode >= 0xa0 && d.opcode <= 0xa3;
  if (d.map != 2 || (!gather && !scatter)) return handle_ud;
  const bool vex = d.encoding == Encoding::vex;
  if (vex ? !host::has_avx() : !host::has_avx512()) return handle_ud;
  if (!vex && d.evex_mask == 0) return handle_ud;
  const Operand& data = d.operand[gather ? 0 : 2];
  // W: EVEX and three-byte VEX have it at the same place; a gather cannot have the two-byte form.
  const unsigned at = vex ? d.vex_offset + 2U : d.evex_offset + 2U;
  in.reg = data.reg;
  in.rm = d.index;
  in.vvvv = vex ? d.operand[2].reg : d.evex_mask;
  in.aux =
      static_cast<u8>(((d.bytes[at] & 0x80) != 0 ? wide_data : 0) | ((d.opcode & 1) != 0 ? wide_index : 0) |
                      (d.vector_bits == 512   ? 2U << vl_shift
                       : d.vector_bits == 256 ? 1U << vl_shift
                                              : 0));
  if (gather && in.reg == in.rm) return handle_ud;
  if (vex && (in.vvvv == in.reg || in.vvvv == in.rm)) return handle_ud;
  if (vex) return run_gather_vex;
  return gather ? run_gather_evex : run_scatter;
}

} // namespace ring3::x86
