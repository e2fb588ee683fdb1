// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/kvm_clock.h"

#include "x86/api/guest_tsc.h"
#include "x86/pv/shared_struct.h"

#include <cerrno>
#include <cstddef>

namespace ring3::x86 {
namespace {

constexpr u64 second = 1'000'000'000;

// The layouts of msr.rst; the kernel's header with them is not for user space.
struct TimeInfo {
  u32 version;
  u32 pad0;
  u64 tsc_timestamp;
  u64 system_time;
  u32 tsc_to_system_mul;
  s8 tsc_shift;
  u8 flags;
  u8 pad[2];
};
static_assert(sizeof(TimeInfo) == 32);
constexpr u8 tsc_stable_flag = 1 << 0;
constexpr u8 guest_stopped_flag = 1 << 1;

struct WallClock {
  u32 version;
  u32 sec;
  u32 nsec;
};
static_assert(sizeof(WallClock) == 12);

} // namespace

HostTime read_host_time(const kvm::Clock& clock) {
  // The wall clock is read between two readings of the TSC. If the thread was interrupted there, once more.
  const u64 microsecond = clock.tsc_khz() / 1000;
  HostTime best;
  u64 best_gap = ~u64{0};
  for (int attempt = 0; attempt < 5 && best_gap > microsecond; ++attempt) {
    const u64 before = clock.tsc();
    const u64 wall = clock.wall_ns();
    const u64 gap = clock.tsc() - before;
    if (gap >= best_gap) continue;
    best_gap = gap;
    best = {.tsc = before + gap / 2, .wall_ns = wall};
  }
  return best;
}

PvclockScale PvclockScale::for_khz(u64 tsc_khz) {
  // second / hz = multiplier / 2^32 * 2^shift, with the multiplier's top bit set: 32 good bits.
  const u128 hz = u128{tsc_khz} * 1000;
  int shift = 0;
  u128 numerator = second; // numerator / denominator in [1/2, 1)
  u128 denominator = hz;
  while (numerator >= denominator) {
    denominator <<= 1;
    ++shift;
  }
  while (numerator * 2 < denominator) {
    numerator <<= 1;
    --shift;
  }
  return {.shift = static_cast<s8>(shift), .multiplier = static_cast<u32>((numerator << 32) / denominator)};
}

u64 PvclockScale::nanoseconds(u64 ticks) const {
  ticks = shift >= 0 ? ticks << shift : ticks >> -shift;
  return static_cast<u64>(u128{ticks} * multiplier >> 32);
}

// --- the VM's clock ---

KvmClock::KvmClock(const kvm::Clock& clock)
    : clock_(clock), reference_{.host_tsc = clock.tsc(), .system_time = 0} {}

KvmClock::Reference KvmClock::reference() const {
  const std::scoped_lock guard(lock_);
  return reference_;
}

// With the arithmetic of the guests, so that what VMMs and guests see is the same to the nanosecond.
u64 KvmClock::at(u64 host_tsc) const {
  const std::scoped_lock guard(lock_);
  // The caller's moment may have been just before somebody set the clock.
  if (static_cast<s64>(host_tsc - reference_.host_tsc) < 0) return reference_.system_time;
  const u64 host_khz = clock_.tsc_khz();
  const u64 khz = tsc_khz_ != 0 ? tsc_khz_ : host_khz;
  const u64 ticks = scale_ticks(host_tsc, khz, host_khz) - scale_ticks(reference_.host_tsc, khz, host_khz);
  return reference_.system_time + PvclockScale::for_khz(khz).nanoseconds(ticks);
}

u64 KvmClock::now_ns() const { return at(clock_.tsc()); }

u64 KvmClock::epoch_ns() const {
  const HostTime now = read_host_time(clock_);
  return now.wall_ns - at(now.tsc);
}

int KvmClock::get(kvm_clock_data& out) const {
  const HostTime now = read_host_time(clock_);
  out = {};
  out.clock = at(now.tsc);
  out.realtime = now.wall_ns;
  out.host_tsc = now.tsc;
  out.flags = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
  return 0;
}

int KvmClock::set(const kvm_clock_data& in) {
  // All that get() says may come back; only the real time has a meaning.
  constexpr u32 known = KVM_CLOCK_TSC_STABLE | KVM_CLOCK_REALTIME | KVM_CLOCK_HOST_TSC;
  if ((in.flags & ~known) != 0) return -EINVAL;
  const HostTime now = read_host_time(clock_);
  u64 value = in.clock;
  // Count what has passed since the value was taken, but never step back.
  if ((in.flags & KVM_CLOCK_REALTIME) != 0 && now.wall_ns > in.realtime) value += now.wall_ns - in.realtime;
  const std::scoped_lock guard(lock_);
  reference_ = {.host_tsc = now.tsc, .system_time = value};
  tsc_khz_ = 0;
  mixed_ = false;
  return 0;
}

bool KvmClock::same_frequency(u64 tsc_khz, bool& disagrees) {
  const std::scoped_lock guard(lock_);
  disagrees = !mixed_ && tsc_khz_ != 0 && tsc_khz_ != tsc_khz;
  if (tsc_khz_ == 0) tsc_khz_ = tsc_khz;
  mixed_ |= disagrees;
  return !mixed_;
}

// --- what guests see ---

void write_wall_clock(Mmu& mmu, const KvmClock& clock, GuestPhys at) {
  if (at.value == 0) return;
  u32 version = 0;
  if (!mmu.read_phys(at, &version, sizeof version, Mmu::View::host)) return;
  version = (version + 1) | 1; // whatever was there, odd
  if (!mmu.write_phys(at, &version, sizeof version, Mmu::View::host)) return;
  const u64 epoch = clock.epoch_ns();
  const WallClock w{
      .version = version, .sec = static_cast<u32>(epoch / second), .nsec = static_cast<u32>(epoch % second)};
  if (!mmu.write_phys(at, &w, sizeof w, Mmu::View::host)) return;
  ++version;
  mmu.write_phys(at, &version, sizeof version, Mmu::View::host);
}

int VcpuClock::notify_paused() {
  if (!active()) return -EINVAL;
  paused_ = true;
  return 0;
}

void VcpuClock::update(Mmu& mmu, const KvmClock::Reference& reference, u64 tsc_at_reference, u64 tsc_khz,
                       bool stable) {
  if (!active()) return;
  SharedStruct s(mmu, GuestPhys{msr_ & ~u64{1}}, sizeof(TimeInfo));
  if (!s.valid()) return;
  const PvclockScale scale = PvclockScale::for_khz(tsc_khz);
  // Any vCPU may read any other's structure at any time: the version is odd while it changes.
  const u32 version = (s.load<u32>(offsetof(TimeInfo, version)) + 1) | 1;
  s.store<u32>(offsetof(TimeInfo, version), version);
  // The guest takes the "stopped" flag back itself when it has seen it.
  u8 flags = s.load<u8>(offsetof(TimeInfo, flags)) & guest_stopped_flag;
  if (paused_) flags |= guest_stopped_flag;
  if (stable) flags |= tsc_stable_flag;
  paused_ = false;
  s.store<u32>(offsetof(TimeInfo, pad0), 0);
  s.store<u64>(offsetof(TimeInfo, tsc_timestamp), tsc_at_reference);
  s.store<u64>(offsetof(TimeInfo, system_time), reference.system_time);
  s.store<u32>(offsetof(TimeInfo, tsc_to_system_mul), scale.multiplier);
  s.store<u8>(offsetof(TimeInfo, tsc_shift), static_cast<u8>(scale.shift));
  s.store<u8>(offsetof(TimeInfo, flags), flags);
  s.store<u16>(offsetof(TimeInfo, pad), 0);
  s.store<u32>(offsetof(TimeInfo, version), version + 1);
}

} // namespace ring3::x86
