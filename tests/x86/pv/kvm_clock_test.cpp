// SPDX-License-Identifier: Apache-2.0
#include "pv_guest.h"

#include <cerrno>

namespace ring3::x86::test {
namespace {

constexpr u64 ms = 1'000'000;

// --- the conversion ---

TEST(PvclockScale, IsExactWhereItCanBe) {
  for (const u64 khz : {250'000u, 500'000u, 1'000'000u, 2'000'000u}) {
    const PvclockScale s = PvclockScale::for_khz(khz);
    for (const u64 milliseconds : {u64{0}, u64{8}, u64{1'000}, u64{86'400'000}, u64{12'345'678'901}}) {
      EXPECT_EQ(s.nanoseconds(milliseconds * khz), milliseconds * ms) << khz;
    }
  }
  const PvclockScale ghz = PvclockScale::for_khz(1'000'000);
  EXPECT_EQ(ghz.multiplier, 0x80000000u);
  EXPECT_EQ(ghz.shift, 1);
}

TEST(PvclockScale, KeepsTheMultipliersTopBitAtAnyFrequency) {
  for (u64 khz = 1; khz < 100'000'000; khz = khz * 5 / 3 + 1) {
    const PvclockScale s = PvclockScale::for_khz(khz);
    EXPECT_NE(s.multiplier & 0x80000000u, 0u) << khz;
    // An hour comes out within what 32 bits and the dropped bits of a tick allow, and never too long.
    const u64 hour = 3600;
    const long double exact = 3600.0L * 1e9L;
    const auto got = static_cast<long double>(s.nanoseconds(hour * khz * 1000));
    EXPECT_LE(got, exact) << khz;
    EXPECT_GE(got, exact * (1 - 1.0L / 0x40000000)) << khz;
  }
}

// --- the VM's clock ---

TEST(KvmClock, StartsAtZeroAndGoesLikeTheHosts) {
  MovableClock host;
  const KvmClock clock(host);
  EXPECT_EQ(clock.now_ns(), 0u);
  host.now += 7 * ms;
  EXPECT_EQ(clock.now_ns(), 7 * ms);
  host.wall += 7 * ms;
  EXPECT_EQ(clock.epoch_ns(), 1'700'000'000'000'000'000u);
}

TEST(KvmClock, GetSaysAllThreeClocks) {
  MovableClock host;
  const KvmClock clock(host);
  host.now += 7 * ms;
  kvm_clock_data d;
  std::memset(&d, 0xff, sizeof d);
  EXPECT_EQ(clock.get(d), 0);
  EXPECT_EQ(d.clock, 7 * ms);
  EXPECT_EQ(d.flags, u32{KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC});
  EXPECT_EQ(d.realtime, host.wall.load());
  EXPECT_EQ(d.host_tsc, host.now.load());
  EXPECT_EQ(d.pad[3], 0u);
}

TEST(KvmClock, SetTakesWhatGetSaid) {
  MovableClock host;
  KvmClock clock(host);
  host.now += 100 * ms;
  kvm_clock_data d{};
  EXPECT_EQ(clock.get(d), 0);
  host.now += 50 * ms;
  host.wall += 50 * ms;
  EXPECT_EQ(clock.set(d), 0);
  EXPECT_EQ(clock.now_ns(), 150 * ms) << "the time since then counts";
  d.flags = 0;
  EXPECT_EQ(clock.set(d), 0);
  EXPECT_EQ(clock.now_ns(), 100 * ms) << "without the real time it does not";
}

TEST(KvmClock, SetNeverStepsBackForARealTimeInTheFuture) {
  MovableClock host;
  KvmClock clock(host);
  kvm_clock_data d{};
  d.clock = 5 * ms;
  d.flags = KVM_CLOCK_REALTIME;
  d.realtime = host.wall + 1'000 * ms;
  EXPECT_EQ(clock.set(d), 0);
  EXPECT_EQ(clock.now_ns(), 5 * ms);
}

TEST(KvmClock, SetRefusesUnknownFlags) {
  MovableClock host;
  KvmClock clock(host);
  kvm_clock_data d{};
  d.clock = 5 * ms;
  for (const u32 flag : {1u, 16u, 1u << 31}) {
    d.flags = flag;
    EXPECT_EQ(clock.set(d), -EINVAL);
  }
  EXPECT_EQ(clock.now_ns(), 0u);
}

TEST(KvmClock, IsStableAsLongAsAllFrequenciesAgree) {
  MovableClock host;
  KvmClock clock(host);
  bool disagrees = true;
  EXPECT_TRUE(clock.same_frequency(1'000'000, disagrees));
  EXPECT_FALSE(disagrees);
  EXPECT_TRUE(clock.same_frequency(1'000'000, disagrees));
  EXPECT_FALSE(clock.same_frequency(2'000'000, disagrees));
  EXPECT_TRUE(disagrees);
  EXPECT_FALSE(clock.same_frequency(1'000'000, disagrees));
  EXPECT_FALSE(disagrees) << "the others are told once";
  EXPECT_EQ(clock.set(kvm_clock_data{}), 0); // all vCPUs start anew
  EXPECT_TRUE(clock.same_frequency(2'000'000, disagrees));
}

TEST(KvmClock, ShowsVmmsWhatGuestsOfAnyFrequencyRead) {
  constexpr u64 host_khz = 2'099'997;
  for (const u64 guest_khz : {u64{1'000'000}, host_khz, u64{3'333'333}, u64{17}}) {
    MovableClock host;
    host.khz = host_khz;
    KvmClock clock(host);
    bool disagrees = false;
    EXPECT_TRUE(clock.same_frequency(guest_khz, disagrees));
    const KvmClock::Reference r = clock.reference();
    const auto guest_tsc = [&](u64 host_tsc) { return scale_ticks(host_tsc, guest_khz, host_khz); };
    for (const u64 passed : {u64{0}, ms, 86'400'000 * ms}) {
      host.now = 5'000 * ms + passed;
      const u64 ticks = guest_tsc(host.tsc()) - guest_tsc(r.host_tsc);
      EXPECT_EQ(clock.now_ns(), r.system_time + PvclockScale::for_khz(guest_khz).nanoseconds(ticks));
      // Roundings, a tick, and the multiplier's last bit.
      EXPECT_NEAR(static_cast<double>(clock.now_ns()), static_cast<double>(passed),
                  2 + 1e6 / static_cast<double>(guest_khz) + static_cast<double>(passed) / 0x40000000);
    }
  }
}

// --- as guests see it ---

class KvmClockGuest : public PvGuest {
 protected:
  static constexpr u64 info = data_at;

  u32 version() const { return get<u32>(info); }
  u8 flags() const { return get<u8>(info + 29); }
  // The clock as a guest reads it with this TSC.
  u64 read(u64 tsc) const {
    const PvclockScale scale{.shift = get<s8>(info + 28), .multiplier = get<u32>(info + 24)};
    return get<u64>(info + 16) + scale.nanoseconds(tsc - get<u64>(info + 8));
  }
  // In the guest: its TSC.
  u64 guest_tsc() {
    EXPECT_EQ(run(Code().rdmsr(0x10).raw({0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0}).hlt()),
              u32{KVM_EXIT_HLT});
    return reg_rax();
  }
  void enable(u32 msr = MSR_KVM_SYSTEM_TIME_NEW, u64 at = info) {
    ASSERT_EQ(run(Code().wrmsr(msr, at | 1).hlt()), u32{KVM_EXIT_HLT});
  }
};

TEST_F(KvmClockGuest, EnablingWritesTheStructureBeforeTheNextInstruction) {
  start();
  clock_->now += 123 * ms;
  put<u32>(info, 0x33); // junk, as the guest may leave it
  // wrmsr, then mov eax, [info]
  ASSERT_EQ(run(Code().wrmsr(MSR_KVM_SYSTEM_TIME_NEW, info | 1).rbx(info).raw({0x8b, 0x03}).hlt()),
            u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xffffffff, version());
  EXPECT_EQ(version() % 2, 0u);
  EXPECT_GT(version(), 0x33u);
  EXPECT_EQ(flags(), 1) << "stable";
  EXPECT_EQ(read(guest_tsc()), 123 * ms);
  clock_->now += 55;
  EXPECT_EQ(read(guest_tsc()), 123 * ms + 55);
  EXPECT_EQ(get_msr(MSR_KVM_SYSTEM_TIME_NEW), info | 1);
  EXPECT_EQ(get_msr(MSR_KVM_SYSTEM_TIME), info | 1);
}

TEST_F(KvmClockGuest, FollowsTheGuestsWritesToItsTsc) {
  start();
  enable(MSR_KVM_SYSTEM_TIME);
  clock_->now += 10 * ms;
  ASSERT_EQ(run(Code().wrmsr(0x10, 42).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(guest_tsc(), 42u);
  EXPECT_EQ(read(guest_tsc()), 10 * ms);
  clock_->now += ms;
  EXPECT_EQ(read(guest_tsc()), 11 * ms);
}

TEST_F(KvmClockGuest, FollowsTheVmmsClockAndTsc) {
  start();
  enable();
  kvm_clock_data d{};
  d.clock = 9'000 * ms;
  ASSERT_EQ(vm_->set_clock(d), 0);
  EXPECT_EQ(read(guest_tsc()), 9'000 * ms);
  ASSERT_TRUE(set_msr(0x10, 0));
  clock_->now += ms;
  EXPECT_EQ(read(guest_tsc()), 9'001 * ms);
}

TEST_F(KvmClockGuest, TellsOnceThatTheGuestWasPaused) {
  start();
  EXPECT_EQ(vcpu_[0]->kvmclock_ctrl(), -EINVAL);
  enable();
  EXPECT_EQ(flags(), 1);
  EXPECT_EQ(vcpu_[0]->kvmclock_ctrl(), 0);
  guest_tsc();
  EXPECT_EQ(flags(), 3);
  // It stays until the guest has taken it back, and then stays away.
  vm_->update_clocks();
  guest_tsc();
  EXPECT_EQ(flags(), 3);
  put<u8>(info + 29, 1);
  vm_->update_clocks();
  guest_tsc();
  EXPECT_EQ(flags(), 1);
  ASSERT_EQ(run(Code().wrmsr(MSR_KVM_SYSTEM_TIME_NEW, 0).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(vcpu_[0]->kvmclock_ctrl(), -EINVAL);
}

TEST_F(KvmClockGuest, IsNotTouchedWhenItIsOff) {
  start();
  enable();
  ASSERT_EQ(run(Code().wrmsr(MSR_KVM_SYSTEM_TIME_NEW, info).hlt()), u32{KVM_EXIT_HLT});
  const u32 before = version();
  vm_->update_clocks();
  guest_tsc();
  EXPECT_EQ(version(), before);
}

TEST_F(KvmClockGuest, SkipsMemoryThatIsNotThere) {
  start();
  for (const u64 at :
       {memory_size, u64{0x7fff'ffff'f000}, ~u64{0xfff}, memory_size - 0x1000 - 16, memory_size - 16}) {
    enable(MSR_KVM_SYSTEM_TIME_NEW, at);
    EXPECT_EQ(get_msr(MSR_KVM_SYSTEM_TIME_NEW), at | 1);
  }
  for (u64 at = memory_size - 0x1010; at < memory_size; ++at)
    ASSERT_EQ(memory_[at], 0) << "across pages: not at all";
}

TEST_F(KvmClockGuest, MarksThePageDirty) {
  start();
  enable();
  kvm_userspace_memory_region slot{};
  slot.memory_size = memory_size;
  slot.userspace_addr = reinterpret_cast<u64>(memory_);
  slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  std::vector<u64> bitmap(memory_size / 4096 / 64);
  ASSERT_EQ(vm_->get_dirty_log(0, bitmap), 0);
  vm_->update_clocks();
  guest_tsc();
  ASSERT_EQ(vm_->get_dirty_log(0, bitmap), 0);
  EXPECT_NE(bitmap[info / 4096 / 64] >> (info / 4096 % 64) & 1, 0u);
}

TEST_F(KvmClockGuest, ReplacesCodeThatWasThere) {
  start();
  // A guest may put the structure on top of its own instructions.
  code(Code().raw({0xb0, 7, 0xf4}), info + 16); // mov al, 7; hlt
  enter(0, info + 16);
  EXPECT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xff, 7u);
  kvm_clock_data d{};
  d.clock = 0xf409b0; // mov al, 9; hlt
  ASSERT_EQ(vm_->set_clock(d), 0);
  // wrmsr; jmp there: all within one stay in the guest
  ASSERT_EQ(run(Code().wrmsr(MSR_KVM_SYSTEM_TIME_NEW, info | 1).rbx(info + 16).raw({0xff, 0xe3})),
            u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xff, 9u);
}

TEST_F(KvmClockGuest, WallClockIsTheTimeAtWhichTheClockWasZero) {
  start();
  constexpr u64 at = data_at + 0x100;
  clock_->now += 2'500 * ms;
  clock_->wall += 2'500 * ms;
  put<u32>(at, 7);
  ASSERT_EQ(run(Code().wrmsr(MSR_KVM_WALL_CLOCK_NEW, at).rbx(at).raw({0x8b, 0x03}).hlt()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax() & 0xffffffff, 10u) << "even, and another one";
  EXPECT_EQ(get<u32>(at), 10u);
  EXPECT_EQ(get<u32>(at + 4), 1'700'000'000u);
  EXPECT_EQ(get<u32>(at + 8), 0u);
  EXPECT_EQ(get_msr(MSR_KVM_WALL_CLOCK), at);
  // Anywhere, and nowhere: no more than a skipped update.
  for (const u64 nowhere : {u64{0}, memory_size - 4, memory_size, ~u64{0}}) {
    EXPECT_EQ(run(Code().wrmsr(MSR_KVM_WALL_CLOCK, nowhere).hlt()), u32{KVM_EXIT_HLT});
  }
}

TEST_F(KvmClockGuest, InitSwitchesItOff) {
  start(2, true);
  ASSERT_TRUE(set_msr(MSR_KVM_SYSTEM_TIME_NEW, info | 1, 1));
  ASSERT_TRUE(set_msr(MSR_KVM_STEAL_TIME, (data_at + 0x1000) | 1, 1));
  vcpu_[1]->post_init();
  vcpu_[1]->kick();
  vcpu_[1]->run();
  EXPECT_EQ(get_msr(MSR_KVM_SYSTEM_TIME_NEW, 1), 0u);
  EXPECT_EQ(get_msr(MSR_KVM_STEAL_TIME, 1), 0u);
}

TEST_F(KvmClockGuest, AllVcpusAgreeAlthoughTheirTscsDiffer) {
  start(2);
  code(Code().wrmsr(MSR_KVM_SYSTEM_TIME_NEW, info | 1).hlt());
  code(Code().wrmsr(0x10, 1'000'000).wrmsr(MSR_KVM_SYSTEM_TIME_NEW, (info + 64) | 1).hlt(), 0x4000);
  EXPECT_EQ(run(0), u32{KVM_EXIT_HLT});
  clock_->now += 77 * ms;
  enter(1, 0x4000);
  EXPECT_EQ(run(1), u32{KVM_EXIT_HLT});
  clock_->now += 3;
  const auto read_at = [&](u64 at, u64 tsc) {
    const PvclockScale scale{.shift = get<s8>(at + 28), .multiplier = get<u32>(at + 24)};
    return get<u64>(at + 16) + scale.nanoseconds(tsc - get<u64>(at + 8));
  };
  EXPECT_EQ(read_at(info, get_msr(0x10, 0)), 77 * ms + 3);
  EXPECT_EQ(read_at(info + 64, get_msr(0x10, 1)), 77 * ms + 3);
}

} // namespace
} // namespace ring3::x86::test
