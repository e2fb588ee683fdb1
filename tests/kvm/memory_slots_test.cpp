// SPDX-License-Identifier: Apache-2.0
#include "kvm/memory_slots.h"

#include <cerrno>
#include <gtest/gtest.h>
#include <map>
#include <random>
#include <thread>

namespace ring3::kvm {
namespace {

constexpr u64 host_base = 0x7f00'0000'0000;

kvm_userspace_memory_region region(u32 slot, u64 gpa, u64 size, u32 flags = 0, u64 host = host_base) {
  return {.slot = slot, .flags = flags, .guest_phys_addr = gpa, .memory_size = size, .userspace_addr = host};
}

TEST(MemorySlots, RejectsWhatKvmRejects) {
  MemorySlots slots;
  EXPECT_EQ(slots.set(region(0, 0, 0x1001)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0x800, 0x1000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x1000, 0, host_base + 1)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, ~u64{0xfff}, 0x2000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x1000, 4)), -EINVAL);
  EXPECT_EQ(slots.set(region(32764, 0, 0x1000)), -EINVAL);
  EXPECT_EQ(slots.set(region(2 << 16, 0, 0x1000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, (u64{1} << 31) * page_size, 0, 0x1000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x1000, 0, ~u64{0xfff})), -EINVAL);
  EXPECT_EQ(slots.set(region(0, (u64{1} << 52) - 0x1000, 0x2000)), -EINVAL);
  EXPECT_EQ(slots.set(region(3, 0, 0)), -EINVAL);
  EXPECT_EQ(slots.count(), 0u);
  EXPECT_EQ(slots.generation(), 0u);
  EXPECT_EQ(slots.set(region(0, 0, 0x7fff'ffff * page_size, 0, 0x1000)), 0);
}

TEST(MemorySlots, LiveSlotChangesOnlyPlaceAndDirtyLogging) {
  MemorySlots slots;
  ASSERT_EQ(slots.set(region(0, 0x10000, 0x4000)), 0);
  const u64 generation = slots.generation();
  EXPECT_EQ(slots.set(region(0, 0x10000, 0x4000)), 0);
  EXPECT_EQ(slots.generation(), generation) << "nothing changed";
  EXPECT_EQ(slots.set(region(0, 0x10000, 0x3000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0x10000, 0x4000, 0, host_base + 0x1000)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0x10000, 0x4000, KVM_MEM_READONLY)), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0x12000, 0x4000)), 0) << "a move may overlap the old place";
  EXPECT_EQ(slots.snapshot().find(GuestPhys{0x11fff}), nullptr);
  EXPECT_NE(slots.snapshot().find(GuestPhys{0x15fff}), nullptr);
  EXPECT_EQ(slots.set(region(1, 0x15000, 0x1000)), -EEXIST);
  EXPECT_EQ(slots.set(region(1, 0x11000, 0x2000)), -EEXIST);
  EXPECT_EQ(slots.set(region(1, 0x11000, 0x1000)), 0);
  EXPECT_EQ(slots.set(region(1, 0x11000, 0)), 0);
  EXPECT_EQ(slots.count(), 1u);
}

TEST(MemorySlots, AddressSpacesAreApart) {
  MemorySlots slots;
  constexpr u32 smm = 1 << 16;
  ASSERT_EQ(slots.set(region(3, 0x10000, 0x4000)), 0);
  ASSERT_EQ(slots.set(region(smm | 3, 0x12000, 0x4000, 0, host_base + 0x10000)), 0) << "no overlap";
  EXPECT_EQ(slots.set(region(smm | 4, 0x13000, 0x1000)), -EEXIST);
  EXPECT_EQ(slots.set(region(smm | 32764, 0x80000, 0x1000)), -EINVAL);
  EXPECT_EQ(slots.snapshot(0).find(GuestPhys{0x12000})->host, reinterpret_cast<std::byte*>(host_base));
  const SlotSnapshot second = slots.snapshot(1);
  EXPECT_EQ(second.find(GuestPhys{0x12000})->host, reinterpret_cast<std::byte*>(host_base + 0x10000));
  EXPECT_EQ(second.find(GuestPhys{0x12000})->id, smm | 3);
  EXPECT_EQ(second.find(GuestPhys{0x10000}), nullptr);
  EXPECT_EQ(slots.set(region(smm | 3, 0, 0)), 0);
  EXPECT_EQ(slots.snapshot(1).find(GuestPhys{0x12000}), nullptr);
  EXPECT_NE(slots.snapshot(0).find(GuestPhys{0x12000}), nullptr);
}

TEST(MemorySlots, DirtyLog) {
  MemorySlots slots;
  bool cleared = false;
  std::vector<u64> out(2);
  EXPECT_EQ(slots.get_dirty_log(0, out, cleared), -ENOENT);
  EXPECT_EQ(slots.get_dirty_log(2 << 16, out, cleared), -EINVAL);
  ASSERT_EQ(slots.set(region(0, 0, 100 * page_size)), 0);
  EXPECT_EQ(slots.get_dirty_log(0, out, cleared), -ENOENT);
  ASSERT_EQ(slots.set(region(0, 0, 100 * page_size, KVM_MEM_LOG_DIRTY_PAGES)), 0);
  const SlotSnapshot before_move = slots.snapshot();
  before_move.find(GuestPhys{0})->dirty->mark(3);
  ASSERT_EQ(slots.set(region(0, 0x100000, 100 * page_size, KVM_MEM_LOG_DIRTY_PAGES)), 0);
  before_move.find(GuestPhys{0})->dirty->mark(99); // a vCPU that has not let go yet
  before_move.find(GuestPhys{0})->dirty->mark(1000);
  EXPECT_EQ(slots.get_dirty_log(0, std::span(out).first(1), cleared), -EINVAL);
  EXPECT_EQ(slots.get_dirty_log(0, out, cleared), 0);
  EXPECT_EQ(out, (std::vector<u64>{8, u64{1} << 35}));
  EXPECT_EQ(slots.get_dirty_log(0, out, cleared), 0);
  EXPECT_EQ(out, (std::vector<u64>{0, 0}));
  ASSERT_EQ(slots.set(region(0, 0x100000, 100 * page_size)), 0);
  EXPECT_EQ(slots.snapshot().find(GuestPhys{0x100000})->dirty, nullptr);
}

TEST(MemorySlots, MatchesNaiveModel) {
  MemorySlots slots;
  std::map<u32, kvm_userspace_memory_region> model;
  std::mt19937 random(1);
  const auto pick = [&random](u32 n) { return static_cast<u32>(random() % n); };
  for (int step = 0; step < 20000; ++step) {
    const u32 id = pick(40);
    const auto live = model.find(id);
    auto r =
        region(id, u64{pick(200)} << 12, u64{pick(12)} << 12, pick(4) == 0 ? KVM_MEM_LOG_DIRTY_PAGES : 0u);
    if (live != model.end() && pick(2) == 0) r.memory_size = live->second.memory_size;
    int expected = 0;
    if (r.memory_size == 0) {
      expected = live == model.end() ? -EINVAL : 0;
    } else if (live != model.end() && live->second.memory_size != r.memory_size) {
      expected = -EINVAL;
    } else {
      for (const auto& [other, o] : model)
        if (other != id && o.guest_phys_addr < r.guest_phys_addr + r.memory_size &&
            r.guest_phys_addr < o.guest_phys_addr + o.memory_size)
          expected = -EEXIST;
    }
    ASSERT_EQ(slots.set(r), expected) << step;
    if (expected == 0 && r.memory_size == 0) model.erase(id);
    if (expected == 0 && r.memory_size != 0) model[id] = r;
    ASSERT_EQ(slots.count(), model.size());
    if (step % 20 != 0) continue;
    const SlotSnapshot snapshot = slots.snapshot();
    for (u64 page = 0; page < 215; ++page) {
      const MemorySlot* const found = snapshot.find(GuestPhys{page << 12 | 0x123});
      const kvm_userspace_memory_region* want = nullptr;
      for (const auto& [other, o] : model)
        if ((page << 12) - o.guest_phys_addr < o.memory_size) want = &o;
      ASSERT_EQ(found != nullptr, want != nullptr) << page;
      if (want == nullptr) continue;
      ASSERT_EQ(found->id, want->slot);
      ASSERT_EQ(found->flags, want->flags);
      ASSERT_EQ(found->base.value, want->guest_phys_addr);
    }
  }
}

TEST(MemorySlots, AllOfThemAtOnce) {
  MemorySlots slots;
  for (u32 id = 0; id < max_memory_slots; ++id) ASSERT_EQ(slots.set(region(id, u64{id} << 13, 0x1000)), 0);
  const SlotSnapshot full = slots.snapshot();
  for (u32 id = 0; id < max_memory_slots; ++id) {
    ASSERT_EQ(full.find(GuestPhys{(u64{id} << 13) + 0xfff})->id, id);
    ASSERT_EQ(full.find(GuestPhys{(u64{id} << 13) + 0x1000}), nullptr);
  }
  for (u32 id = 0; id < max_memory_slots; ++id) ASSERT_EQ(slots.set(region(id, 0, 0)), 0);
  EXPECT_EQ(slots.count(), 0u);
  EXPECT_EQ(full.find(GuestPhys{0})->id, 0u) << "an old snapshot does not change";
}

TEST(MemorySlots, ReadersAndWritersMeet) {
  MemorySlots slots;
  std::atomic<bool> stop{false};
  std::thread reader([&] {
    while (!stop.load()) {
      const SlotSnapshot snapshot = slots.snapshot();
      if (const MemorySlot* const s = snapshot.find(GuestPhys{0x5000}); s != nullptr && s->dirty)
        s->dirty->mark(0);
    }
  });
  for (int i = 0; i < 2000; ++i) {
    ASSERT_EQ(slots.set(region(5, 0x5000, 0x1000, KVM_MEM_LOG_DIRTY_PAGES)), 0);
    std::vector<u64> out(1);
    bool cleared = false;
    ASSERT_EQ(slots.get_dirty_log(5, out, cleared), 0);
    ASSERT_EQ(slots.set(region(5, 0, 0)), 0);
  }
  stop = true;
  reader.join();
}

} // namespace
} // namespace ring3::kvm
