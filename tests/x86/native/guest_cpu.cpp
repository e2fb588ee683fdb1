// SPDX-License-Identifier: Apache-2.0
#include "guest_cpu.h"

#include "../no_platform.h"
#include "x86/cpu/cpuid_model.h"
#include "x86/decode/block_cache.h"
#include "x86/interp/bind.h"
#include "x86/jit/jit.h"

#include <sys/mman.h>

namespace ring3::x86::native {

namespace {

// Ends instructions that jump to themselves.
class StoppingPlatform final : public test::NoPlatform {
 public:
  explicit StoppingPlatform(std::atomic<u32>& exit_word) : exit_word_(exit_word) {}
  void poll() override { exit_word_.store(1, std::memory_order_relaxed); }

 private:
  std::atomic<u32>& exit_word_;
};

} // namespace

GuestCpu::GuestCpu() : platform_(std::make_unique<StoppingPlatform>(exit_word_)) {
  ram_ =
      static_cast<u8*>(mmap(nullptr, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  kvm_userspace_memory_region region{};
  region.memory_size = ram_size;
  region.userspace_addr = reinterpret_cast<u64>(ram_);
  slots_.set(region);
  // One table of each level: all of the arena is within the same 2 MiB groups of the first GiB.
  const auto entry = [&](u64 table, u64 index, u64 value) {
    store_raw<u64>(ram_ + table + 8 * index, value);
  };
  entry(0x1000, 0, 0x2007);
  entry(0x2000, 0, 0x3007);
  const auto map = [&](u64 linear, u64 table, u64 physical) {
    entry(0x3000, linear >> 21 & 511, table | 7);
    for (u64 i = 0; i < arena::region_size / arena::page; ++i) {
      entry(table, (linear >> 12 & 511) + i, (physical + i * arena::page) | 0x67);
    }
  };
  static_assert(arena::data >> 21 != arena::stack >> 21);
  map(arena::data, 0x4000, data_at);
  map(arena::stack, 0x5000, stack_at);
  static_assert(arena::code >> 21 == arena::data >> 21);
  map(arena::code, 0x4000, code_at);

  cpu_ = std::make_unique<Cpu>(slots_, watch_, *platform_, exit_word_);
  // AMD's own instructions are not part of `max`; a host without them refuses.
  auto model = select_cpu_model("max,+sse4a,+clzero");
  if (!model) model = select_cpu_model("max");
  if (model) cpu_->cpuid.set(cpuid_entries(*model, 0, 1));
  CpuState& s = cpu_->state;
  s.cr0 = cr0::pe | cr0::mp | cr0::et | cr0::ne | cr0::wp | cr0::am | cr0::pg;
  s.cr4 = cr4::pae | cr4::pge | cr4::osfxsr | cr4::osxmmexcpt | cr4::osxsave | cr4::fsgsbase | cr4::de |
          cr4::umip;
  s.efer = efer::lme | efer::lma | efer::nxe | efer::sce;
  s.cr3 = 0x1000;
  s.xcr0 = cpu_->cpuid.xcr0_allowed() & 0xe7;
  s.cpl = 3;
  cpu_->mmu.reload_slots();
  cpu_->mmu.flush_all();
  set_mode(64);
}

GuestCpu::~GuestCpu() {
  cpu_.reset();
  munmap(ram_, ram_size);
}

void GuestCpu::set_mode(unsigned code_bits) {
  if (code_bits == code_bits_) return;
  code_bits_ = code_bits;
  CpuState& s = cpu_->state;
  for (const Seg i : {Seg::es, Seg::cs, Seg::ss, Seg::ds}) {
    Segment& seg = s.segment(i);
    seg = Segment{};
    seg.selector = selector::data;
    seg.type = 3;
    seg.dpl = 3;
    seg.s = seg.present = seg.db = seg.g = true;
    seg.limit = 0xffffffff;
  }
  for (const Seg i : {Seg::fs, Seg::gs, Seg::ldtr}) s.segment(i) = Segment{};
  Segment& cs = s.segment(Seg::cs);
  cs.selector = code_bits == 64 ? selector::code64 : selector::code32;
  cs.type = 0xb;
  cs.l = code_bits == 64;
  cs.db = code_bits == 32;
  cpu_->mode_changed();
}

bool GuestCpu::offers(const Decoded& d) {
  Insn in;
  bool ends = false;
  bind(d, cpu_->cpuid, in, ends);
  return in.handler != handle_ud;
}

void GuestCpu::execute(const Decoded& d, unsigned code_bits, const MachineState& in, Outcome& out) {
  set_mode(code_bits);
  Cpu& c = *cpu_;
  CpuState& s = c.state;
  std::memcpy(s.regs, in.gpr, sizeof in.gpr);
  const u64 old_flags = s.system_flags;
  s.set_rflags(in.flags | rflags::if_);
  if (s.system_flags != old_flags) c.flags_changed();
  s.x87 = in.x87;
  s.vector = in.vector;

  Insn insn;
  bool ends = false;
  bind(d, c.cpuid, insn, ends);
  out.faulted = out.stopped = false;
  out.note = nullptr;
  out.fault = Fault{};
  c.fault_pending = c.exit_pending = false;
  // A repeated string instruction may come back to itself to let interrupts in.
  for (unsigned round = 0; round < 64; ++round) {
    s.regs[reg_rip] = (arena::instruction + d.length) & c.ip_mask();
    const Step step = insn.handler(c, insn);
    if (step == Step::abort) {
      s.regs[reg_rip] = arena::instruction;
      out.faulted = c.fault_pending;
      out.fault = c.fault;
      if (!c.fault_pending) {
        out.stopped = true;
        out.note = c.internal_error != nullptr ? c.internal_error : "an exit to user space";
      }
      break;
    }
    if (s.regs[reg_rip] != arena::instruction) break;
  }
  if (c.exit_pending && !out.stopped && !out.faulted) {
    out.stopped = true;
    out.note = "an exit to user space";
  }
  std::memcpy(out.state.gpr, s.regs, sizeof out.state.gpr);
  out.state.rip = s.regs[reg_rip];
  out.state.flags = s.rflags();
  out.state.x87 = s.x87;
  out.state.vector = s.vector;
}

u64 GuestCpu::compared() const {
  const auto* const jit = static_cast<const jit::Jit*>(cpu_->executor());
  return jit != nullptr ? jit->statistics().compared.value() : 0;
}

bool GuestCpu::engines_agree(const Decoded& d, const MachineState& in) {
  set_mode(64);
  Cpu& c = *cpu_;
  CpuState& s = c.state;
  if (c.executor() == nullptr) c.set_executor(std::make_unique<jit::Jit>(c, true));
  // Wherever it goes there is a HLT, which ends it: there are no handlers for its #GP.
  u8* const page = ram_ + code_at;
  std::memset(page, 0xf4, arena::page);
  std::memcpy(page + (arena::instruction - arena::code), d.bytes.data(), d.length);
  c.synchronize_code();
  std::memcpy(s.regs, in.gpr, sizeof in.gpr);
  s.regs[reg_rip] = arena::instruction;
  s.set_rflags(in.flags | rflags::if_);
  s.x87 = in.x87;
  s.vector = in.vector;
  s.activity = Activity::running;
  c.flags_changed();
  c.internal_error = nullptr;
  exit_word_.store(0, std::memory_order_relaxed);
  c.poll_at = c.instructions + 100;
  return c.run() != CpuExit::internal_error;
}

} // namespace ring3::x86::native
