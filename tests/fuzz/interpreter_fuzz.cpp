// SPDX-License-Identifier: Apache-2.0
// Random bytes as code, in every mode and at both ends of the rings, with random registers: the interpreter
// never crashes, comes back when asked to, and touches no host memory but the guest's, which lies between
// pages that fault. With FUZZ_LOCKSTEP: and neither does the translator, which does the same.
#include "x86/api/vm_settings.h"
#include "x86/cpu/cpu.h"
#include "x86/cpu/cpuid_model.h"
#include "x86/cpu/smm.h"
#include "x86/decode/block_cache.h"
#include "x86/jit/jit.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <sys/time.h>

namespace {

using namespace ring3;
using namespace ring3::x86;

constexpr u64 ram_size = 0x40000;
constexpr u64 guard_size = 0x100000;
constexpr u64 gdt = 0x1000, idt = 0x2000, tables = 0x3000, tss = 0x8000, code = 0x10000, stack = 0x30000;
constexpr u64 instructions_each = 2000;

std::atomic<u32> exit_word{0};
volatile std::sig_atomic_t ticks = 0;

// Guests that fault for ever retire nothing, so a clock ends them; run() must then come back soon.
void on_tick(int) {
  exit_word.store(1, std::memory_order_relaxed);
  ticks = ticks + 1;
  if (ticks > 200) std::abort(); // 200 ticks of 20 ms: a hang
}

class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 next() {
    u64 z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }

 private:
  u64 state_;
};

class FuzzPlatform final : public Platform {
 public:
  Cpu* cpu = nullptr;
  bool port_read(u16 port, u8, u32& value) override {
    value = port;
    return port % 2 == 0;
  }
  bool port_write(u16 port, u8, u32) override { return port % 2 == 0; }
  bool mmio_read(GuestPhys a, std::span<std::byte> data) override {
    std::ranges::fill(data, std::byte{0x5a});
    return (a.value & 0x1000) != 0;
  }
  bool mmio_write(GuestPhys a, std::span<const std::byte>) override { return (a.value & 0x1000) != 0; }
  bool claims_page(GuestPhys page) const override { return page.value == 0x38000; }
  u64 tsc() const override { return 12345; }
  u8 cr8() const override { return 0; }
  void set_cr8(u8) override {}
  bool read_apic_msr(u32, u64& value) override {
    value = 0;
    return true;
  }
  bool write_apic_msr(u32, u64, bool) override { return true; }
  void tsc_changed() override {}
  u64 tsc_khz() const override { return 1000000; }
  u64 tsc_offset_for(u64 value) override { return value; }
  void pause() override {}
  bool has_pv_msr(u32) const override { return true; }
  bool read_pv_msr(u32, u64& value) override {
    value = 0;
    return true;
  }
  bool write_pv_msr(u32, u64 value) override { return value % 2 == 0; }
  std::optional<s64> hypercall(u64 number, const std::array<u64, 4>&, bool) override {
    if (number % 4 == 0) return std::nullopt;
    return static_cast<s64>(number);
  }
  std::optional<u32> put_off_access(GuestPhys, const std::byte*) override { return std::nullopt; }
  const VmSettings& settings() const override { return settings_; }
  void poll() override { exit_word.store(1, std::memory_order_relaxed); }
  void code_page_found() override {}

 private:
  VmSettings settings_;
};

struct Machine {
  u8* ram = nullptr;
  kvm::MemorySlots slots;
  kvm::CodeWatch watch;
  FuzzPlatform platform;
  std::unique_ptr<Cpu> cpu;

  Machine() {
    auto* all = static_cast<u8*>(mmap(nullptr, ram_size + 2 * guard_size, PROT_NONE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    ram = all + guard_size;
    mprotect(ram, ram_size, PROT_READ | PROT_WRITE);
    for (const u32 space : {0u, 1u}) { // SMM sees the same
      const auto add = [&](u32 slot, u64 start, u64 end, u32 flags) {
        kvm_userspace_memory_region region{};
        region.slot = space << 16 | slot;
        region.flags = flags;
        region.guest_phys_addr = start;
        region.memory_size = end - start;
        region.userspace_addr = reinterpret_cast<u64>(ram + start);
        slots.set(region);
      };
#ifdef FUZZ_LOCKSTEP
      // Guests that change their page tables and do not say so may see them or not.
      add(0, 0, tables, 0);
      add(1, tables, tss, KVM_MEM_READONLY);
      add(2, tss, ram_size, 0);
#else
      add(0, 0, ram_size, 0);
#endif
    }
    cpu = std::make_unique<Cpu>(slots, watch, platform, exit_word);
    if (const auto model = select_cpu_model("max")) cpu->cpuid.set(cpuid_entries(*model, 0, 1));
    cpu->mmu.reload_slots();
#ifdef FUZZ_LOCKSTEP
    cpu->set_executor(std::make_unique<jit::Jit>(*cpu, true));
#endif
    struct sigaction action {};
    action.sa_handler = on_tick;
    action.sa_flags = SA_RESTART;
    sigaction(SIGALRM, &action, nullptr);
    const itimerval every{{0, 20000}, {0, 20000}};
    setitimer(ITIMER_REAL, &every, nullptr);
  }
};

void put64(u8* ram, u64 at, u64 v) { std::memcpy(ram + at, &v, 8); }

void write_tables(u8* ram, Random& r, bool wide) {
  constexpr u64 descriptors[] = {0,
                                 0x00cf9b000000ffff,
                                 0x00cf93000000ffff, // ring 0, 32 bits
                                 0x00af9b000000ffff, // ring 0, 64 bits
                                 0x000f9b000000ffff, // ring 0, 16 bits
                                 0x00cffb000000ffff,
                                 0x00cff3000000ffff, // ring 3
                                 0x00affb000000ffff};
  for (unsigned i = 0; i < 8; ++i) put64(ram, gdt + 8 * i, descriptors[i]);
  for (unsigned i = 8; i < 64; ++i) put64(ram, gdt + 8 * i, r.next());
  for (u64 i = 0; i < 256; ++i) {
    const u64 handler = code + (r.next() & 0x1ff);
    const u64 gate =
        (handler & 0xffff) | (wide ? 0x18ULL : 8ULL) << 16 | 0xee00ULL << 32 | handler >> 16 << 48;
    if (wide) {
      put64(ram, idt + 16 * i, gate);
      put64(ram, idt + 16 * i + 8, 0);
    } else {
      put64(ram, idt + 8 * i, (r.next() & 15) == 0 ? r.next() : gate);
    }
  }
  // Long mode: one page of each level, in 2 MiB pages; 32-bit paging in 4 MiB pages from the same root would
  // differ, so that has a root of its own.
  put64(ram, tables, (tables + 0x1000) | 7);
  put64(ram, tables + 0x1000, (tables + 0x2000) | 7);
  for (u64 i = 0; i < 8; ++i) put64(ram, tables + 0x2000 + 8 * i, (i << 21 & 0x1fffff) | 0x87);
  for (u64 i = 8; i < 16; ++i) put64(ram, tables + 0x2000 + 8 * i, r.next());
  for (u64 i = 0; i < 512; ++i) put64(ram, tables + 0x3000 + 8 * i, 0x8700000087);
}

void set_segment(CpuState& s, Seg which, u16 selector, u8 type, u8 dpl, bool l, bool db) {
  Segment& seg = s.segment(which);
  seg = Segment{};
  seg.selector = selector;
  seg.type = type;
  seg.dpl = dpl;
  seg.s = seg.present = seg.g = true;
  seg.l = l;
  seg.db = db;
  seg.limit = 0xffffffff;
}

void enter_mode(Cpu& c, u8 mode, Random& r) {
  CpuState& s = c.state;
  const bool user = (mode & 8) != 0;
  const bool paging = (mode & 16) != 0;
  const u8 dpl = user ? 3 : 0;
  s.gdtr = TableRegister{gdt, 0x1ff};
  s.idtr = TableRegister{idt, 0xfff};
  Segment& tr = s.segment(Seg::tr);
  tr.selector = 0x40;
  tr.base = tss;
  tr.limit = 0x2067;
  tr.type = 11;
  tr.present = true;
  s.cr0 = cr0::et | cr0::ne | (r.next() & (cr0::mp | cr0::am | cr0::wp));
  s.cr4 = cr4::osfxsr | cr4::osxmmexcpt | cr4::osxsave | cr4::pse |
          (r.next() &
           (cr4::fsgsbase | cr4::pge | cr4::umip | cr4::smep | cr4::smap | cr4::de | cr4::vme | cr4::tsd));
  s.xcr0 = c.cpuid.xcr0_allowed();
  switch (mode & 7) {
  case 0:
  case 1: // real mode
    for (const Seg seg : {Seg::es, Seg::cs, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) {
      Segment& x = s.segment(seg);
      x.selector = seg == Seg::cs ? code >> 4 : static_cast<u16>(r.next() & 0x3fff);
      x.base = u64{x.selector} << 4;
      x.limit = (mode & 1) != 0 ? 0xffffffff : 0xffff;
    }
    s.idtr = TableRegister{0, 0x3ff};
    s.regs[reg_rip] = 0;
    break;
  case 2: // virtual 8086
    s.cr0 |= cr0::pe;
    s.system_flags |= rflags::vm | (r.next() & rflags::iopl);
    for (const Seg seg : {Seg::es, Seg::cs, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) {
      Segment& x = s.segment(seg);
      x = Segment{};
      x.selector = code >> 4;
      x.base = code;
      x.type = 3;
      x.dpl = 3;
      x.s = x.present = true;
      x.limit = 0xffff;
    }
    s.cpl = 3;
    s.regs[reg_rip] = 0;
    break;
  case 3:
  case 4:
  case 5: { // protected, 16 or 32 bits
    const bool wide = (mode & 7) != 3;
    s.cr0 |= cr0::pe;
    set_segment(s, Seg::cs, user ? 0x2b : wide ? 8 : 0x20, 0xb, dpl, false, wide);
    for (const Seg seg : {Seg::es, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) {
      set_segment(s, seg, user ? 0x33 : 0x10, 3, dpl, false, wide);
    }
    s.cpl = dpl;
    if (paging) {
      s.cr0 |= cr0::pg;
      s.cr3 = tables + 0x3000;
    }
    s.regs[reg_rip] = code;
    break;
  }
  default: // long mode, 64 bits or compatibility
    s.cr0 |= cr0::pe | cr0::pg;
    s.cr4 |= cr4::pae;
    s.efer = efer::lme | efer::lma | efer::sce | efer::nxe;
    s.cr3 = tables;
    set_segment(s, Seg::cs, user ? 0x3b : 0x18, 0xb, dpl, (mode & 1) == 0, (mode & 1) != 0);
    for (const Seg seg : {Seg::es, Seg::ss, Seg::ds, Seg::fs, Seg::gs}) {
      set_segment(s, seg, user ? 0x33 : 0x10, 3, dpl, false, true);
    }
    s.cpl = dpl;
    s.regs[reg_rip] = code;
    s.lstar = s.cstar = code + (r.next() & 0xff);
    s.star = 0x0023001000000000 | (r.next() & 0xffffffff);
    break;
  }
}

void check(bool ok) {
  if (!ok) std::abort();
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  if (size < 10) return 0;
  static Machine m;
  Cpu& c = *m.cpu;
  const u8 mode = data[0];
  u64 seed;
  std::memcpy(&seed, data + 1, 8);
  data += 9;
  size -= 9;
  Random r(seed);

  c.reset(false);
  write_tables(m.ram, r, (mode & 7) >= 6);
  for (u64 at = 0x20000; at < 0x20400; at += 8) put64(m.ram, at, r.next());
  std::memset(m.ram + code, 0x90, 0x1000);
  // The code again and again, so that most of what a jump may reach is it.
  for (u64 at = 0; at + size <= 0x1000; at += std::max<u64>(size, 64))
    std::memcpy(m.ram + code + at, data, size);
  if (size > 0x1000) std::memcpy(m.ram + code, data, 0x1000);
  CpuState& s = c.state;
  for (unsigned i = 0; i < 16; ++i) {
    const u64 v = r.next();
    s.regs[i] = (v & 3) == 0 ? v : (v & 3) == 1 ? v >> 48 : 0x20000 + (v >> 8 & 0xfff);
  }
  s.regs[rsp] = stack;
  for (auto& z : s.vector.zmm) {
    const u64 v = r.next();
    std::memcpy(z, &v, 8);
  }
  for (u64& k : s.vector.k) k = r.next();
  s.x87 = X87State{};
  s.set_rflags(r.next() & (rflags::arithmetic | rflags::df | rflags::if_ | rflags::ac |
                           ((mode & 0xe0) == 0 ? rflags::tf : 0)));
  enter_mode(c, mode, r);
  if ((mode & 0xe0) == 0x20) {
    s.dr7 = r.next() & 0xffff03ff;
    for (u64& d : s.dr) d = code + (r.next() & 0x3f);
  }
  c.mmu.select_context(0);
  c.mmu.flush_all();
  c.mode_changed();
  c.debug_registers_changed();
  c.synchronize_code();
  if ((mode & 0xe0) == 0x40) {
    // Through SMM and back, with a state that its handler has changed.
    s.smbase = ram_size - 0x10000;
    check(enter_smm(c));
    for (u64 changes = r.next() % 4; changes != 0; --changes)
      m.ram[ram_size - 0x200 + r.next() % 0x200] = static_cast<u8>(r.next());
    if (!leave_smm(c)) return 0;
  }

  ticks = 0;
  exit_word.store(0, std::memory_order_relaxed);
  c.instructions = 0;
  c.poll_at = instructions_each;
  for (unsigned exits = 0; exits < 64; ++exits) {
    const CpuExit why = c.run();
    check(s.regs[reg_zero] == 0);
    check(c.internal_error == nullptr || std::strstr(c.internal_error, "disagree") == nullptr);
    if (why == CpuExit::io || why == CpuExit::mmio || why == CpuExit::hypercall) {
      check(c.external.size <= 8);
      c.complete_external(r.next());
      continue;
    }
    if (why == CpuExit::halt) {
      s.activity = Activity::running;
      if (!c.can_take_interrupt() || !c.deliver_interrupt(static_cast<u8>(32 + r.next() % 200))) break;
      continue;
    }
    break; // asked to, shutdown, or internal error
  }
  return 0;
}
