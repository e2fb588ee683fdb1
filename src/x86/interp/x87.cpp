// SPDX-License-Identifier: Apache-2.0
// x87 instructions (SDM vol. 1, chapter 8): arithmetic runs on the host between XRSTOR and XSAVE of the
// guest's registers; control instructions are done here. FOP, FIP and FDP are kept by us, FCS and FDS are 0.
#include "x86/interp/vector_emitter.h"
#include "x86/interp/vector_run.h"
#include "x86/interp/x87_environment.h"

#include <array>
#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

namespace ring3::x86 {

namespace {

constexpr u32 invalid = 1, overflow = 8, underflow = 16;

enum class Operand87 : u8 { none, load, store };

struct alignas(64) XsaveArea {
  X87State x87;
  u8 unused[512 - sizeof(X87State)];
  u64 header[8];
};

bool available(Cpu& cpu) {
  if ((cpu.state.cr0 & (cr0::em | cr0::ts)) == 0) return true;
  cpu.raise(Vector::nm);
  return false;
}

// Waiting instructions first report what an earlier one left. With CR0.NE clear the processor would assert
// FERR# and wait for IRQ 13; that path is not modelled, the guest gets #MF.
bool ready(Cpu& cpu) {
  if (!available(cpu)) return false;
  if (!x87_exception_pending(cpu.state.x87)) return true;
  cpu.raise(Vector::mf);
  return false;
}

bool read_number(Cpu& cpu, Seg seg, u64 offset, unsigned size, std::byte* out) {
  switch (size) {
  case 2: return cpu.read<u16>(seg, offset, *reinterpret_cast<u16*>(out));
  case 4: return cpu.read<u32>(seg, offset, *reinterpret_cast<u32*>(out));
  case 8: return cpu.read<u64>(seg, offset, *reinterpret_cast<u64*>(out));
  default: return cpu.read_bytes(seg, offset, out, size);
  }
}

bool write_number(Cpu& cpu, Seg seg, u64 offset, unsigned size, const std::byte* data) {
  switch (size) {
  case 2: return cpu.write<u16>(seg, offset, load_raw<u16>(data));
  case 4: return cpu.write<u32>(seg, offset, load_raw<u32>(data));
  case 8: return cpu.write<u64>(seg, offset, load_raw<u64>(data));
  default: return cpu.write_bytes(seg, offset, data, size);
  }
}

// Insn fields: imm the opcode as FOP has it, aux the operand's size.
template <Operand87 kind> Step run_x87(Cpu& cpu, const Insn& in) {
  if (!ready(cpu)) return Step::abort;
  alignas(16) std::byte memory[16] = {};
  const Seg seg = static_cast<Seg>(in.seg);
  const u64 offset = kind == Operand87::none ? 0 : cpu.effective_address(in);
  if constexpr (kind == Operand87::load) {
    if (!read_number(cpu, seg, offset, in.aux, memory)) return Step::abort;
  }
  XsaveArea area;
  X87State& x = cpu.state.x87;
  area.x87 = x;
  // Some processors check the pointers that they load.
  area.x87.fip = area.x87.fdp = area.x87.fop = 0;
  std::memset(area.header, 0, sizeof area.header);
  area.header[0] = 1;
  const u32 flags = in.plan->run_x87(&area, memory, cpu.state.flags);
  if constexpr (kind == Operand87::store) {
    // An unmasked exception found before the result exists leaves memory alone (SDM vol. 1, 8.5).
    const bool stored = (area.x87.fsw & ~unsigned{area.x87.fcw} & (invalid | overflow | underflow)) == 0;
    // The page is looked at all the same.
    if (!stored && !cpu.probe_write(seg, offset, in.aux)) return Step::abort;
    if (stored && !write_number(cpu, seg, offset, in.aux, memory)) return Step::abort;
  }
  cpu.state.flags = static_cast<u16>(flags);
  x.fsw = area.x87.fsw;
  x.ftw = area.x87.ftw;
  std::memcpy(x.st, area.x87.st, sizeof x.st);
  x.fop = static_cast<u16>(in.imm);
  x.fip = (cpu.state.regs[reg_rip] - in.len) & cpu.ip_mask();
  if constexpr (kind != Operand87::none) x.fdp = offset;
  return Step::next;
}

Step run_fwait(Cpu& cpu, const Insn&) {
  constexpr u64 both = cr0::mp | cr0::ts;
  if ((cpu.state.cr0 & both) == both) return cpu.raise(Vector::nm);
  return x87_exception_pending(cpu.state.x87) ? cpu.raise(Vector::mf) : Step::next;
}

Step run_fnop(Cpu& cpu, const Insn& in) {
  if (!ready(cpu)) return Step::abort;
  (void)in;
  return Step::next;
}

Step run_obsolete(Cpu& cpu, const Insn&) { return available(cpu) ? Step::next : Step::abort; }

Step run_fninit(Cpu& cpu, const Insn&) {
  if (!available(cpu)) return Step::abort;
  x87_initialise(cpu.state.x87);
  return Step::next;
}

Step run_fnclex(Cpu& cpu, const Insn&) {
  if (!available(cpu)) return Step::abort;
  cpu.state.x87.fsw &= 0x7f00;
  return Step::next;
}

Step run_fnstsw_ax(Cpu& cpu, const Insn&) {
  if (!available(cpu)) return Step::abort;
  cpu.set_reg<u16>(rax * 8, cpu.state.x87.fsw);
  return Step::next;
}

Step run_fnstsw(Cpu& cpu, const Insn& in) {
  return available(cpu) && cpu.write_operand<u16>(in, cpu.state.x87.fsw) ? Step::next : Step::abort;
}

Step run_fnstcw(Cpu& cpu, const Insn& in) {
  return available(cpu) && cpu.write_operand<u16>(in, cpu.state.x87.fcw) ? Step::next : Step::abort;
}

Step run_fldcw(Cpu& cpu, const Insn& in) {
  u16 v;
  if (!ready(cpu) || !cpu.read_operand<u16>(in, v)) return Step::abort;
  x87_set_control(cpu.state.x87, v);
  return Step::next;
}

// Insn.aux: 14 or 28 bytes of environment.
template <bool registers> Step run_fnstenv(Cpu& cpu, const Insn& in) {
  if (!available(cpu)) return Step::abort;
  u8 image[x87_max_image];
  unsigned size = x87_store_environment(cpu.state.x87, in.aux, cpu.state.real_or_v86(), image);
  if constexpr (registers) {
    for (unsigned i = 0; i < 8; ++i, size += 10) std::memcpy(image + size, cpu.state.x87.st[i], 10);
  }
  if (!cpu.write_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), image, size)) return Step::abort;
  if constexpr (registers) {
    x87_initialise(cpu.state.x87);
  } else {
    x87_set_control(cpu.state.x87, cpu.state.x87.fcw | 0x3f);
  }
  return Step::next;
}

template <bool registers> Step run_fldenv(Cpu& cpu, const Insn& in) {
  if (!ready(cpu)) return Step::abort;
  u8 image[x87_max_image];
  const unsigned size = in.aux + (registers ? 80U : 0U);
  if (!cpu.read_bytes(static_cast<Seg>(in.seg), cpu.effective_address(in), image, size)) return Step::abort;
  X87State& x = cpu.state.x87;
  x87_load_environment(x, in.aux, cpu.state.real_or_v86(), image);
  if constexpr (registers) {
    for (unsigned i = 0; i < 8; ++i) {
      std::memcpy(x.st[i], image + in.aux + i * 10, 10);
      std::memset(x.st[i] + 10, 0, 6);
    }
  }
  return Step::next;
}

// FCMOVcc reads EFLAGS, FCOMI and its kin write them.
bool uses_flags(u8 opcode, u8 modrm) {
  if (modrm < 0xc0) return false;
  if (opcode == 0xda) return modrm < 0xe0;
  return (opcode == 0xdb || opcode == 0xdf) && (modrm < 0xe0 || modrm >= 0xe8);
}

X87Stub make_stub(u8 opcode, u8 modrm) {
  host::Emitter e;
  e.bytes({0x89, 0xd1});                   // mov ecx, edx
  e.bytes({0x31, 0xd2, 0xb8, 1, 0, 0, 0}); // xor edx, edx; mov eax, 1
  e.bytes({0x48, 0x0f, 0xae, 0x2f});       // xrstor64 [rdi]
  const bool flags = uses_flags(opcode, modrm);
  if (flags) e.bytes({0x89, 0xc8, 0x04, 0x7f, 0x9e}); // mov eax, ecx; add al, 0x7f; sahf
  e.bytes({opcode, modrm});
  if (flags) e.bytes({0x9f, 0x0f, 0x90, 0xc0, 0x0f, 0xb7, 0xc8}); // lahf; seto al; movzx ecx, ax
  e.bytes({0x31, 0xd2, 0xb8, 1, 0, 0, 0});
  e.bytes({0x48, 0x0f, 0xae, 0x27});       // xsave64 [rdi]
  e.bytes({0xdb, 0xe3, 0x89, 0xc8, 0xc3}); // fninit; mov eax, ecx; ret
  return reinterpret_cast<X87Stub>(const_cast<void*>(host::publish_code(e.span())));
}

// There are few encodings, once addressing is left out: a table holds them all.
class X87Plans {
 public:
  const VectorPlan* find(u8 opcode, u8 modrm) {
    std::atomic<const VectorPlan*>& slot = plans_[(opcode & 7U) << 8 | modrm];
    if (const VectorPlan* p = slot.load(std::memory_order_acquire)) return p;
    const std::scoped_lock guard(lock_);
    if (const VectorPlan* p = slot.load(std::memory_order_relaxed)) return p;
    auto& owner = owners_[(opcode & 7U) << 8 | modrm];
    owner = std::make_unique<VectorPlan>();
    owner->run_x87 = make_stub(opcode, modrm);
    if (owner->run_x87 == nullptr) return nullptr;
    slot.store(owner.get(), std::memory_order_release);
    return owner.get();
  }

 private:
  std::mutex lock_;
  std::array<std::atomic<const VectorPlan*>, 2048> plans_{};
  std::array<std::unique_ptr<VectorPlan>, 2048> owners_;
};

X87Plans& plans() {
  static X87Plans p;
  return p;
}

Step no_code_memory(Cpu& cpu, const Insn&) {
  cpu.internal_error = "no executable memory for x87 instructions";
  cpu.request_exit(CpuExit::internal_error);
  return Step::abort;
}

Handler control_instruction(const Decoded& d, Insn& in) {
  const u8 reg = d.modrm >> 3 & 7;
  if (d.has_memory) {
    in.aux = static_cast<u8>(d.operand_bytes == 2 ? 14 : 28);
    if (d.opcode == 0xd9) {
      switch (reg) {
      case 4: return run_fldenv<false>;
      case 5: return run_fldcw;
      case 6: return run_fnstenv<false>;
      case 7: return run_fnstcw;
      default: return nullptr;
      }
    }
    if (d.opcode == 0xdd) {
      switch (reg) {
      case 4: return run_fldenv<true>;
      case 6: return run_fnstenv<true>;
      case 7: return run_fnstsw;
      default: return nullptr;
      }
    }
    return nullptr;
  }
  if (d.opcode == 0xd9 && d.modrm == 0xd0) return run_fnop;
  if (d.opcode == 0xdf && d.modrm == 0xe0) return run_fnstsw_ax;
  if (d.opcode != 0xdb) return nullptr;
  switch (d.modrm) {
  case 0xe0:
  case 0xe1:
  case 0xe4: return run_obsolete; // FENI, FDISI, FSETPM
  case 0xe2: return run_fnclex;
  case 0xe3: return run_fninit;
  default: return nullptr;
  }
}

} // namespace

Handler bind_x87(const Decoded& d, Insn& in, const CpuidTable&) {
  if (d.op != Op::x87) return nullptr;
  if (d.lock) return handle_ud;
  if (d.opcode == 0x9b) return run_fwait;
  if (d.opcode < 0xd8 || d.opcode > 0xdf || d.modrm_offset == 0) return handle_ud;
  if (const Handler h = control_instruction(d, in)) return h;
  in.imm = (d.opcode & 7U) << 8 | d.modrm;
  in.aux = static_cast<u8>(d.memory_bits / 8);
  if (d.has_memory && (in.aux == 0 || in.aux > 10)) return handle_ud;
  in.plan = plans().find(d.opcode, d.has_memory ? static_cast<u8>((d.modrm & 0x38) | 6) : d.modrm);
  if (in.plan == nullptr) return no_code_memory;
  if (!d.has_memory) return run_x87<Operand87::none>;
  return d.memory_written ? run_x87<Operand87::store> : run_x87<Operand87::load>;
}

} // namespace ring3::x86
