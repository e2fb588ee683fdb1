// SPDX-License-Identifier: Apache-2.0
#include "kvm/code_watch.h"
#include "kvm/memory_slots.h"
#include "x86/mmu/mmu.h"

#include <cstring>
#include <gtest/gtest.h>
#include <memory>
#include <sys/mman.h>

namespace ring3::x86 {
namespace {

constexpr u64 memory_size = 1 << 20;
constexpr u64 p = 1, w = 2, u = 4, a = 0x20, d = 0x40, large = 0x80, nx = bit(63);

// Page tables at fixed places; the leaf for linear address 0x1000 (and the page above it) is what tests vary.
class WalkerTest : public testing::Test {
 protected:
  static constexpr u64 pml5 = 0x9000, pml4 = 0x1000, pdpt = 0x2000, pd = 0x3000, pt = 0x4000, page = 0x8000;

  WalkerTest() {
    memory_ = static_cast<u8*>(
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    kvm_userspace_memory_region slot{};
    slot.memory_size = memory_size;
    slot.userspace_addr = reinterpret_cast<u64>(memory_);
    EXPECT_EQ(slots_.set(slot), 0);
    mmu_ = std::make_unique<Mmu>(state_, slots_, watch_);
    mmu_->set_max_phys_bits(40);
    state_.cr0 = cr0::pe | cr0::pg | cr0::wp;
  }
  ~WalkerTest() override { munmap(memory_, memory_size); }

  void long_mode() {
    state_.cr4 = cr4::pae;
    state_.efer = efer::lme | efer::lma | efer::nxe;
    state_.cr3 = pml4;
    put64(pml4, pdpt | p | w | u);
    put64(pdpt, pd | p | w | u);
    put64(pd, pt | p | w | u);
    put64(pt + 8, page | p | w | u);
  }
  void put64(u64 at, u64 v) { std::memcpy(memory_ + at, &v, 8); }
  void put32(u64 at, u32 v) { std::memcpy(memory_ + at, &v, 4); }
  u64 get64(u64 at) const {
    u64 v;
    std::memcpy(&v, memory_ + at, 8);
    return v;
  }
  u32 get32(u64 at) const {
    u32 v;
    std::memcpy(&v, memory_ + at, 4);
    return v;
  }
  // The error code of the #PF, or -1 when the access is allowed.
  int walk(Access access, bool user, u64 va = 0x1234, bool implicit = false) {
    Fault fault;
    if (mmu_->walk(GuestVirt{va}, access, user, implicit, result_, fault)) return -1;
    EXPECT_EQ(fault.vector, Vector::pf);
    EXPECT_EQ(fault.cr2, va);
    return static_cast<int>(fault.error_code);
  }

  u8* memory_;
  CpuState state_;
  kvm::MemorySlots slots_;
  kvm::CodeWatch watch_;
  std::unique_ptr<Mmu> mmu_;
  Translation result_;
};

TEST_F(WalkerTest, SetsAccessedEverywhereAndDirtyOnlyForStores) {
  long_mode();
  EXPECT_EQ(walk(Access::read, true), -1);
  EXPECT_EQ(result_.pa, GuestPhys{page + 0x234});
  EXPECT_FALSE(result_.dirty);
  for (const u64 at : {pml4, pdpt, pd, pt + 8}) EXPECT_EQ(get64(at) & (a | d), a);
  EXPECT_EQ(walk(Access::write, true), -1);
  EXPECT_EQ(get64(pt + 8) & d, d);
  EXPECT_EQ(get64(pd) & d, 0u);
  EXPECT_TRUE(result_.dirty);
}

TEST_F(WalkerTest, RefusedAccessLeavesTheTablesAlone) {
  long_mode();
  put64(pt + 8, page | p | u);
  EXPECT_EQ(walk(Access::write, true), 7);
  for (const u64 at : {pml4, pdpt, pd, pt + 8}) EXPECT_EQ(get64(at) & (a | d), 0u);
}

TEST_F(WalkerTest, RightsAreTheConjunctionOfAllLevels) {
  long_mode();
  put64(pd, pt | p | u); // not writable above a writable leaf
  EXPECT_EQ(walk(Access::write, true), 7);
  put64(pd, pt | p | w); // supervisor above a user leaf
  EXPECT_EQ(walk(Access::read, true), 5);
  EXPECT_EQ(walk(Access::read, false), -1);
  put64(pd, pt | p | w | u | nx);
  EXPECT_EQ(walk(Access::fetch, true), 0x15);
  EXPECT_EQ(walk(Access::read, true), -1);
}

TEST_F(WalkerTest, WriteProtectAppliesToSupervisorsOnlyWithWp) {
  long_mode();
  put64(pt + 8, page | p | u);
  EXPECT_EQ(walk(Access::write, false), 3);
  state_.cr0 &= ~cr0::wp;
  EXPECT_EQ(walk(Access::write, false), -1);
  EXPECT_EQ(walk(Access::write, true), 7);
}

TEST_F(WalkerTest, SmepAndSmapGuardUserPages) {
  long_mode();
  EXPECT_EQ(walk(Access::fetch, false), -1);
  state_.cr4 |= cr4::smep;
  EXPECT_EQ(walk(Access::fetch, false), 0x11);
  state_.cr4 |= cr4::smap;
  EXPECT_EQ(walk(Access::read, false), 1);
  state_.system_flags |= rflags::ac;
  EXPECT_EQ(walk(Access::read, false), -1);
  EXPECT_EQ(walk(Access::read, false, 0x1234, true), 1); // implicit accesses ignore AC
}

TEST_F(WalkerTest, ReservedBitsFollowTheGuestsPhysicalWidth) {
  long_mode();
  put64(pt + 8, page | p | w | u | bit(39));
  EXPECT_EQ(walk(Access::read, true), -1);
  put64(pt + 8, page | p | w | u | bit(40));
  EXPECT_EQ(walk(Access::read, true), 0xd);
  put64(pt + 8, page | p | w | u);
  put64(pml4, pdpt | p | w | u | large); // PS in a PML4E
  EXPECT_EQ(walk(Access::read, true), 0xd);
  long_mode();
  state_.efer &= ~efer::nxe;
  put64(pt + 8, page | p | w | u | nx);
  EXPECT_EQ(walk(Access::read, true), 0xd);
}

TEST_F(WalkerTest, LargePages) {
  long_mode();
  put64(pd, 0x200000 | p | w | u | large);
  EXPECT_EQ(walk(Access::read, true, 0x12345), -1);
  EXPECT_EQ(result_.pa, GuestPhys{0x212345});
  EXPECT_TRUE(result_.large);
  put64(pd, 0x202000 | p | w | u | large); // bit 13: reserved in a 2 MiB page
  EXPECT_EQ(walk(Access::read, true), 0xd);
  put64(pdpt, 0x40000000 | p | w | u | large);
  EXPECT_EQ(walk(Access::read, true, 0x12345), -1);
  EXPECT_EQ(result_.pa, GuestPhys{0x40012345});
  mmu_->set_gbpages(false);
  EXPECT_EQ(walk(Access::read, true), 0xd);
}

TEST_F(WalkerTest, FiveLevels) {
  long_mode();
  state_.cr4 |= cr4::la57;
  state_.cr3 = pml5;
  EXPECT_EQ(walk(Access::read, true), 4); // nothing there yet
  put64(pml5 + 8, pml4 | p | w | u);
  EXPECT_EQ(walk(Access::read, true, bit(48) | 0x1234), -1);
  EXPECT_EQ(result_.pa, GuestPhys{page + 0x234});
}

TEST_F(WalkerTest, ProtectionKeys) {
  long_mode();
  state_.cr4 |= cr4::pke;
  put64(pt + 8, page | p | w | u | u64{3} << 59);
  state_.pkru = 1u << 6; // key 3: no access
  EXPECT_EQ(walk(Access::read, true), 0x25);
  EXPECT_EQ(walk(Access::read, false), 0x21);
  EXPECT_EQ(walk(Access::fetch, true), -1);
  state_.pkru = 2u << 6; // key 3: no stores
  EXPECT_EQ(walk(Access::read, true), -1);
  EXPECT_FALSE(result_.writable);
  EXPECT_EQ(walk(Access::write, true), 0x27);
  state_.cr0 &= ~cr0::wp;
  EXPECT_EQ(walk(Access::write, false), -1);
}

TEST_F(WalkerTest, ThirtyTwoBitPagingWithAndWithoutPse) {
  state_.cr3 = 0x1000;
  put32(0x1000, 0x2000 | p | w | u);
  put32(0x2000 + 4, page | p | w | u);
  EXPECT_EQ(walk(Access::write, true), -1);
  EXPECT_EQ(result_.pa, GuestPhys{page + 0x234});
  EXPECT_EQ(get32(0x2004) & (a | d), a | d);
  // A 4 MiB page with address bits 39:32 in bits 20:13.
  state_.cr4 |= cr4::pse;
  put32(0x1000, 0x00400000 | 0x3 << 13 | p | w | u | large);
  EXPECT_EQ(walk(Access::read, true), -1);
  EXPECT_EQ(result_.pa, GuestPhys{0x3'0040'1234});
  put32(0x1000, 0x00600000 | p | w | u | large); // bit 21
  EXPECT_EQ(walk(Access::read, true), 0xd);
}

TEST_F(WalkerTest, PaeTakesItsPointersFromTheRegisters) {
  state_.cr4 = cr4::pae;
  put64(0x1000, pd | p);
  put64(pd, pt | p | w | u);
  put64(pt + 8, page | p | w | u);
  EXPECT_TRUE(mmu_->load_pdptes(0x1000));
  put64(0x1000, 0); // no effect until CR3 is loaded again
  EXPECT_EQ(walk(Access::read, true), -1);
  EXPECT_EQ(result_.pa, GuestPhys{page + 0x234});
  put64(pt + 8, page | p | w | u | bit(55)); // PAE has no ignored high bits
  EXPECT_EQ(walk(Access::read, true), 0xd);
  put64(0x1000, pd | p | w); // bit 1 is reserved in a PDPTE
  EXPECT_FALSE(mmu_->load_pdptes(0x1000));
}

TEST_F(WalkerTest, TablesOutsideMemoryReadAsAllOnes) {
  long_mode();
  put64(pd, 0x7000'0000 | p | w | u);
  EXPECT_EQ(walk(Access::read, true), 0xd);
}

} // namespace
} // namespace ring3::x86
