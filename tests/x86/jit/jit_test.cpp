// SPDX-License-Identifier: Apache-2.0
// What the translator keeps stays bounded.
#include "x86/jit/jit.h"

#include "../no_platform.h"
#include "x86/cpu/cpuid_model.h"

#include <cstring>
#include <gtest/gtest.h>
#include <sys/mman.h>

namespace ring3::x86::jit {
namespace {

constexpr u64 ram_size = 0x100000, code = 0x8000, first_table = 0x10000, tables = 80, linear = 1u << 30;

// One page of code at very many addresses, executed at each of them.
TEST(Jit, OnePageAtManyAddresses) {
  auto* const ram =
      static_cast<u8*>(::mmap(nullptr, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(ram, MAP_FAILED);
  const auto entry = [&](u64 table, u64 index, u64 value) {
    store_raw<u64>(ram + table + 8 * index, value | 7);
  };
  entry(0x1000, 0, 0x2000);
  entry(0x2000, linear >> 30, 0x3000);
  for (u64 t = 0; t < tables; ++t) {
    entry(0x3000, t, first_table + t * page_size);
    for (u64 i = 0; i < 512; ++i) entry(first_table + t * page_size, i, code);
  }
  constexpr u8 next_page[] = {0x48, 0x05, 0, 0x10, 0, 0, 0xff, 0xe0}; // add rax, 4096; jmp rax
  std::memcpy(ram + code, next_page, sizeof next_page);

  kvm::MemorySlots slots;
  kvm_userspace_memory_region region{};
  region.memory_size = ram_size;
  region.userspace_addr = reinterpret_cast<u64>(ram);
  ASSERT_EQ(slots.set(region), 0);
  kvm::CodeWatch watch;
  test::NoPlatform platform;
  std::atomic<u32> exit_word{0};
  Cpu cpu(slots, watch, platform, exit_word);
  const auto model = select_cpu_model("max");
  ASSERT_TRUE(model);
  cpu.cpuid.set(cpuid_entries(*model, 0, 1));
  auto made = std::make_unique<Jit>(cpu, true); // translates at the first time
  const Jit& jit = *made;
  cpu.set_executor(std::move(made));
  CpuState& s = cpu.state;
  s.cr0 = cr0::pe | cr0::et | cr0::ne | cr0::pg;
  s.cr4 = cr4::pae;
  s.efer = efer::lme | efer::lma;
  s.cr3 = 0x1000;
  Segment& cs = s.segment(Seg::cs);
  cs = Segment{};
  cs.type = 0xb;
  cs.s = cs.present = cs.l = true;
  s.regs[rax] = s.regs[reg_rip] = linear;
  cpu.mmu.reload_slots();
  cpu.mode_changed();

  // Behind the last one is nothing, and no handler for that.
  EXPECT_EQ(cpu.run(), CpuExit::shutdown);
  EXPECT_EQ(s.regs[rax], linear + tables * 512 * page_size);
  EXPECT_GE(jit.statistics().translations.value(), tables * 512);
  EXPECT_GT(jit.statistics().flushes.value(), 1u) << "only when it was made";
  EXPECT_GE(jit.statistics().instructions.value(), jit.statistics().translations.value());
  EXPECT_GE(jit.statistics().host_bytes.value(), jit.statistics().instructions.value());
  cpu.set_executor(nullptr);
  ::munmap(ram, ram_size);
}

} // namespace
} // namespace ring3::x86::jit
