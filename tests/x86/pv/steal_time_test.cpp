// SPDX-License-Identifier: Apache-2.0
#include "pv_guest.h"

#include <thread>

namespace ring3::x86::test {
namespace {

using Delay = std::optional<kvm::RunDelay>;

TEST(RunDelay, IsOfTheThreadThatAsks) {
  const auto first = kvm::thread_run_delay();
  if (!first) GTEST_SKIP() << "no schedstat here";
  const auto again = kvm::thread_run_delay();
  EXPECT_EQ(again->thread, first->thread);
  EXPECT_GE(again->ns, first->ns);
  std::thread([&] {
    const auto other = kvm::thread_run_delay();
    ASSERT_TRUE(other);
    EXPECT_NE(other->thread, first->thread);
  }).join();
}

class StealTimeGuest : public PvGuest {
 protected:
  static constexpr u64 at = data_at + 0x40;

  void SetUp() override {
    if (!kvm::thread_run_delay()) GTEST_SKIP() << "no schedstat here";
    start();
  }
  u64 steal() const { return get<u64>(at); }
  u32 version() const { return get<u32>(at + 8); }
  u8 preempted() const { return get<u8>(at + 16); }
};

TEST_F(StealTimeGuest, RefusesReservedBits) {
  for (u64 bits = 2; bits < 64; bits += 2) {
    EXPECT_FALSE(set_msr(MSR_KVM_STEAL_TIME, at | bits | 1)) << bits;
    EXPECT_FALSE(set_msr(MSR_KVM_STEAL_TIME, at | bits)) << bits;
  }
  EXPECT_EQ(get_msr(MSR_KVM_STEAL_TIME), 0u);
  EXPECT_TRUE(set_msr(MSR_KVM_STEAL_TIME, at | 1));
  EXPECT_EQ(get_msr(MSR_KVM_STEAL_TIME), at | 1);
  EXPECT_EQ(run(Code().wrmsr(MSR_KVM_STEAL_TIME, at | 3).hlt()), u32{KVM_EXIT_SHUTDOWN}) << "#GP";
}

TEST_F(StealTimeGuest, PreemptedIsSetOutsideKvmRunOnly) {
  // wrmsr; mov al, [preempted]; out; mov al, [preempted]; hlt
  code(
      Code().wrmsr(MSR_KVM_STEAL_TIME, at | 1).rbx(at + 16).raw({0x8a, 0x03}).exit().raw({0x8a, 0x03}).hlt());
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_EQ(reg_rax() & 0xff, 0u);
  EXPECT_EQ(preempted(), KVM_VCPU_PREEMPTED);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xff, 0u);
  EXPECT_EQ(preempted(), KVM_VCPU_PREEMPTED);
}

TEST_F(StealTimeGuest, PreemptedOfASavedGuestIsClearedWhenItRunsAgain) {
  put<u8>(at + 16, KVM_VCPU_PREEMPTED);
  ASSERT_TRUE(set_msr(MSR_KVM_STEAL_TIME, at | 1));
  EXPECT_EQ(run(Code().rbx(at + 16).raw({0x8a, 0x03}).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xff, 0u);
}

// The guest reads a page, and while it is away its translation is changed without an INVLPG.
TEST_F(StealTimeGuest, FlushOfTheTlbIsMadeAtTheNextEntry) {
  for (const bool flush : {false, true}) {
    constexpr u64 page = 0x20000;
    put<u64>(tables_at + 0x3000 + (page >> 12) * 8, page | 7);
    put<u8>(page, 0x11);
    put<u8>(page + 0x1000, 0x22);
    code(Code()
             .wrmsr(MSR_KVM_STEAL_TIME, at | 1)
             .rbx(page)
             .raw({0x8a, 0x03})
             .exit()
             .raw({0x8a, 0x03})
             .exit()
             .hlt());
    enter(0, code_at);
    EXPECT_EQ(run(), u32{KVM_EXIT_IO});
    EXPECT_EQ(reg_rax() & 0xff, 0x11u);
    put<u64>(tables_at + 0x3000 + (page >> 12) * 8, (page + 0x1000) | 7);
    if (flush) put<u8>(at + 16, KVM_VCPU_PREEMPTED | KVM_VCPU_FLUSH_TLB);
    EXPECT_EQ(run(), u32{KVM_EXIT_IO});
    EXPECT_EQ(reg_rax() & 0xff, flush ? 0x22u : 0x11u);
  }
}

TEST_F(StealTimeGuest, IsRecordedOnceAMillisecondAndAfterAnAbsence) {
  const Code c = Code().wrmsr(MSR_KVM_STEAL_TIME, at | 1).hlt();
  put<u32>(at + 8, 5); // junk
  EXPECT_EQ(run(c), u32{KVM_EXIT_HLT});
  EXPECT_EQ(version(), 8u);
  const u32 first = version();
  EXPECT_EQ(run(Code().hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(version(), first) << "no time has passed";
  clock_->now += StealTime::long_absence_ns - 1;
  EXPECT_EQ(run(Code().hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(version(), first) << "hardly any";
  clock_->now += StealTime::long_absence_ns;
  EXPECT_EQ(run(Code().hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(version(), first + 2);
  // And while the guest does not leave: mov ecx, 20000; loop; read the version.
  clock_->now += StealTime::interval_ns;
  code(Code().rcx(20000).raw({0xe2, 0xfe}).rbx(at + 8).raw({0x8b, 0x03}).hlt());
  enter(0, code_at);
  const u32 before = version();
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_GT(reg_rax() & 0xffffffff, before);
}

// --- the count itself, with a host that the test plays ---

class StealTimeCount : public testing::Test {
 protected:
  static constexpr u64 at = 0x1000;
  StealTimeCount() : mmu(state, slots, watch) {
    kvm_userspace_memory_region slot{};
    slot.memory_size = sizeof memory;
    slot.userspace_addr = reinterpret_cast<u64>(memory);
    EXPECT_EQ(slots.set(slot), 0);
    mmu.reload_slots();
  }
  u64 stolen() const { return load_raw<u64>(memory + at); }

  alignas(4096) u8 memory[0x2000] = {};
  CpuState state;
  kvm::MemorySlots slots;
  kvm::CodeWatch watch;
  Mmu mmu{state, slots, watch};
};

TEST_F(StealTimeCount, AddsWhatTheThreadWaitedSinceTheLastTime) {
  StealTime s;
  if (!s.set_msr(at | 1)) GTEST_SKIP() << "no schedstat here";
  store_raw<u64>(memory + at, 1000); // what the guest had before it moved here
  s.record(mmu, 0, Delay({1, 500}));
  EXPECT_EQ(stolen(), 1000u) << "what the thread waited before this guest had it is not the guest's";
  s.record(mmu, 0, Delay({1, 700}));
  EXPECT_EQ(stolen(), 1200u);
  s.record(mmu, 0, Delay({2, 9'000'000}));
  EXPECT_EQ(stolen(), 1200u) << "another thread counts from its own start";
  s.record(mmu, 0, Delay({2, 9'000'001}));
  EXPECT_EQ(stolen(), 1201u);
  const u32 version = load_raw<u32>(memory + at + 8);
  s.record(mmu, 0, std::nullopt);
  EXPECT_EQ(load_raw<u32>(memory + at + 8), version);
}

TEST_F(StealTimeCount, MemoryThatIsNotThereIsNoFault) {
  StealTime s;
  if (!s.set_msr(0x7fff'0001)) GTEST_SKIP() << "no schedstat here";
  s.record(mmu, 0, Delay({1, 500}));
  s.leave(mmu, 0);
  EXPECT_FALSE(s.enter(mmu, 0));
}

} // namespace
} // namespace ring3::x86::test
