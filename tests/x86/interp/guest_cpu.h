// SPDX-License-Identifier: Apache-2.0
// A Cpu in 64-bit mode whose memory is at the same addresses in the guest and in this process, so that an
// instruction can be executed by both with the same registers.
#pragma once

#include "../no_platform.h"

#include "x86/cpu/cpu.h"
#include "x86/decode/block_cache.h"
#include "x86/decode/decoded.h"
#include "x86/interp/bind.h"

#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <sys/mman.h>
#include <vector>

namespace ring3::x86::test {

class GuestCpu {
 public:
  static constexpr u64 base = 0x40000000;
  static constexpr u64 size = 0x400000;
  static constexpr u64 data = base + 0x200000; // 4 KiB pages from here
  static constexpr u64 hole = data + 0x10000;  // a page that is not present; its neighbours are

  GuestCpu() {
    void* p = mmap(reinterpret_cast<void*>(base), size, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    EXPECT_EQ(p, reinterpret_cast<void*>(base));
    kvm_userspace_memory_region region{};
    region.guest_phys_addr = base;
    region.memory_size = size;
    region.userspace_addr = base;
    EXPECT_EQ(slots.set(region), 0);
    const u64 pml4 = base + 0x1000, pdpt = base + 0x2000, pd = base + 0x3000, pt = base + 0x4000;
    at<u64>(pml4) = pdpt | 7;
    at<u64>(pdpt + 8) = pd | 7;
    at<u64>(pd) = base | 0x87;
    at<u64>(pd + 8) = pt | 7;
    for (u64 i = 0; i < 512; ++i) at<u64>(pt + 8 * i) = (data + i * page_size) | 7;
    at<u64>(pt + (hole - data) / page_size * 8) = 0;
    cpu = std::make_unique<Cpu>(slots, watch, platform, exit_word);
    CpuState& s = cpu->state;
    s.cr0 = cr0::pe | cr0::pg | cr0::ne | cr0::mp | cr0::wp | cr0::et;
    s.cr4 = cr4::pae | cr4::osfxsr | cr4::osxmmexcpt | cr4::osxsave;
    s.efer = efer::lme | efer::lma;
    s.cr3 = pml4;
    s.xcr0 = 0x2e7;
    s.x87 = X87State{};
    for (Segment& seg : s.seg) {
      seg = Segment{};
      seg.type = 3;
      seg.s = seg.present = seg.db = seg.g = true;
      seg.limit = 0xffffffff;
    }
    Segment& cs = s.segment(Seg::cs);
    cs.type = 0xb;
    cs.l = true;
    cs.db = false;
    s.regs[reg_rip] = 0x1000;
    cpu->mmu.reload_slots();
    cpu->mmu.flush_all();
    cpu->mode_changed();
  }
  ~GuestCpu() {
    cpu.reset();
    munmap(reinterpret_cast<void*>(base), size);
  }

  // 32-bit flat protected mode without paging.
  void flat32() {
    CpuState& s = cpu->state;
    s.cr0 &= ~cr0::pg;
    s.efer = 0;
    s.segment(Seg::cs).l = false;
    s.segment(Seg::cs).db = true;
    cpu->mmu.flush_all();
    cpu->mode_changed();
    code_bits = 32;
  }

  template <class T> static T& at(u64 address) { return *reinterpret_cast<T*>(address); }

  // Decodes, binds and executes one instruction with the three binders.
  Step execute(std::span<const u8> bytes) {
    Decoded d;
    if (decode(bytes.data(), bytes.size(), code_bits, d) != DecodeStatus::ok) return Step::jump;
    return execute(d);
  }
  Step execute(const Decoded& d) {
    Insn in{};
    prepare(d, in);
    return run(in);
  }
  Step execute(std::initializer_list<u8> bytes) {
    return execute(std::span<const u8>(bytes.begin(), bytes.size()));
  }
  Step run(const Insn& in) {
    cpu->fault_pending = cpu->exit_pending = false;
    return in.handler(*cpu, in);
  }
  void prepare(const Decoded& d, Insn& in) {
    in = Insn{};
    in.len = d.length;
    in.opsize = d.operand_bytes;
    in.addrsize = d.address_bytes;
    in.base = in.index = reg_zero;
    if (d.has_memory) {
      in.base = d.base;
      in.index = d.vsib ? static_cast<u8>(reg_zero) : d.index;
      in.scale = d.scale;
      in.disp = static_cast<s32>(d.displacement);
      in.seg = static_cast<u8>(d.segment);
    }
    in.handler = bind_vector(d, in, cpu->cpuid);
    if (in.handler == nullptr) in.handler = bind_x87(d, in, cpu->cpuid);
    if (in.handler == nullptr) in.handler = bind_state_save(d, in, cpu->cpuid);
    if (in.handler == nullptr) in.handler = handle_ud;
  }
  CpuState& state() { return cpu->state; }
  bool faulted(Vector v) const { return cpu->fault_pending && cpu->fault.vector == v; }

  unsigned code_bits = 64;
  kvm::MemorySlots slots;
  kvm::CodeWatch watch;
  NoPlatform platform;
  std::atomic<u32> exit_word{0};
  std::unique_ptr<Cpu> cpu;
};

} // namespace ring3::x86::test
