// SPDX-License-Identifier: Apache-2.0
// A processor in ring 0 of 64-bit mode, with a few pages of memory, for tests of single translations. Code is
// executed until HLT, often enough to be translated.
#pragma once

#include "x86/jit/jit.h"

#include "../no_platform.h"
#include "x86/cpu/cpuid_model.h"

#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <vector>

namespace ring3::x86::jit::test {

using x86::test::NoPlatform;

class JitGuest {
 public:
  static constexpr u64 ram_size = 0x100000, page_table = 0x4000, idt = 0x5000, gdt = 0x6000,
                       fault_handler = 0x7000, code = 0x8000, stack = 0x10000;
  static constexpr u64 data = 0x20000; // the pages behind it are nothing else
  static constexpr u64 user = 0x80000; // a page of ring 3's

  // `checked`: with Lockstep.
  explicit JitGuest(bool checked, NoPlatform* platform = nullptr)
      : platform_(platform != nullptr ? *platform : own_platform_),
        ram_(static_cast<u8*>(
            ::mmap(nullptr, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    store_raw<u64>(ram_ + 0x1000, 0x2007);
    store_raw<u64>(ram_ + 0x2000, 0x3007);
    store_raw<u64>(ram_ + 0x3000, page_table | 7);
    for (u64 at = 0; at < ram_size; at += page_size) map(at, at == user ? 0x67 : 0x63);
    store_raw<u64>(ram_ + gdt + 0x10, 0x00cf93000000ffff);
    store_raw<u64>(ram_ + gdt + 0x18, 0x00af9b000000ffff);
    for (const u64 vector : {6, 13, 14}) {
      store_raw<u64>(ram_ + idt + 16 * vector, fault_handler | 0x18 << 16 | u64{0x8e00} << 32);
      store_raw<u64>(ram_ + idt + 16 * vector + 8, 0);
    }
    ram_[fault_handler] = 0xf4;
    kvm_userspace_memory_region region{};
    region.memory_size = ram_size;
    region.userspace_addr = reinterpret_cast<u64>(ram_);
    EXPECT_EQ(slots_.set(region), 0);
    cpu_ = std::make_unique<Cpu>(slots_, watch_, platform_, exit_word_);
    if (const auto model = select_cpu_model("max")) cpu_->cpuid.set(cpuid_entries(*model, 0, 1));
    auto made = std::make_unique<Jit>(*cpu_, checked);
    jit_ = made.get();
    cpu_->set_executor(std::move(made));
    CpuState& s = cpu_->state;
    s.cr0 = cr0::pe | cr0::et | cr0::ne | cr0::mp | cr0::wp | cr0::pg;
    s.cr4 = cr4::pae | cr4::osfxsr | cr4::osxmmexcpt | cr4::smap | cr4::fsgsbase | cr4::osxsave;
    s.efer = efer::lme | efer::lma;
    s.cr3 = 0x1000;
    s.gdtr = TableRegister{gdt, 0x1f};
    s.idtr = TableRegister{idt, 0x1ff};
    for (const Seg which : {Seg::cs, Seg::ss, Seg::ds, Seg::es, Seg::fs, Seg::gs}) {
      Segment& x = s.segment(which);
      x = Segment{};
      x.selector = which == Seg::cs ? 0x18 : 0x10;
      x.type = which == Seg::cs ? 0xb : 3;
      x.s = x.present = x.g = true;
      x.l = which == Seg::cs;
      x.db = which != Seg::cs;
      x.limit = 0xffffffff;
    }
    cpu_->mmu.reload_slots();
    cpu_->mode_changed();
  }
  ~JitGuest() {
    cpu_.reset();
    ::munmap(ram_, ram_size);
  }
  JitGuest(const JitGuest&) = delete;
  JitGuest& operator=(const JitGuest&) = delete;

  Cpu& cpu() { return *cpu_; }
  CpuState& state() { return cpu_->state; }
  u64& reg(Gpr r) { return cpu_->state.regs[r]; }
  u8* ram() { return ram_; }
  std::atomic<u32>& exit_word() { return exit_word_; }
  kvm::CodeWatch& watch() { return watch_; }
  void map(u64 at, u64 rights) { store_raw<u64>(ram_ + page_table + 8 * (at >> 12), at | rights); }

  void load(std::vector<u8> program) {
    program.push_back(0xf4);
    std::memcpy(ram_ + code, program.data(), program.size());
    cpu_->synchronize_code();
  }
  CpuExit once() {
    CpuState& s = cpu_->state;
    s.regs[reg_rip] = code;
    s.regs[rsp] = stack;
    s.activity = Activity::running;
    cpu_->poll_at = cpu_->instructions + 100'000;
    return cpu_->run();
  }
  // `before` is called each time. True if it came to the HLT behind the code, and not to the handler of
  // faults.
  bool often(const std::function<void()>& before, unsigned times = 40) {
    bool well = true;
    for (unsigned i = 0; i < times; ++i) {
      before();
      if (i == times - 2) missed_ = jit_->statistics().missed.value();
      if (i == times - 2) handled_ = handled();
      well &= once() == CpuExit::halt && cpu_->state.rip() != fault_handler + 1;
    }
    return well;
  }
  // In the last two times: instructions that handlers executed, though they can be host code, and those that
  // cannot, but for HLT; Lockstep translates none of those.
  u64 missed() const { return jit_->statistics().missed.value() - missed_; }
  u64 left_to_handlers() const { return compared() ? 0 : handled() - handled_ - 2; }
  bool compared() const { return jit_->statistics().compared.value() != 0; }
  Jit& jit() { return *jit_; }

 private:
  u64 handled() const {
    u64 sum = 0;
    for (const Counter& c : jit_->statistics().handled) sum += c.value();
    return sum;
  }

  NoPlatform own_platform_;
  NoPlatform& platform_;
  u8* const ram_;
  kvm::MemorySlots slots_;
  kvm::CodeWatch watch_;
  std::atomic<u32> exit_word_{0};
  std::unique_ptr<Cpu> cpu_;
  Jit* jit_ = nullptr;
  u64 missed_ = 0, handled_ = 0;
};

} // namespace ring3::x86::jit::test
