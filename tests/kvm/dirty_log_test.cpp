// SPDX-License-Identifier: Apache-2.0
#include "kvm/dirty_log.h"

#include "base/address.h"
#include "base/bits.h"
#include "kvm/dirty_ring.h"
#include "kvm/memory_slots.h"

#include <bit>
#include <cerrno>
#include <gtest/gtest.h>
#include <thread>
#include <vector>

namespace ring3::kvm {
namespace {

TEST(DirtyBitmap, MarksAndClears) {
  DirtyBitmap b(130);
  EXPECT_EQ(b.words(), 3u);
  EXPECT_TRUE(b.mark(129));
  EXPECT_FALSE(b.mark(129)) << "set already";
  EXPECT_TRUE(b.is_marked(129));
  EXPECT_FALSE(b.mark(130));
  EXPECT_FALSE(b.mark(~u64{0}));
  EXPECT_FALSE(b.is_marked(130));
  std::vector<u64> out(3);
  b.copy(out);
  EXPECT_EQ(out, (std::vector<u64>{0, 0, 2}));
  EXPECT_TRUE(b.take(out));
  EXPECT_EQ(out, (std::vector<u64>{0, 0, 2}));
  EXPECT_FALSE(b.take(out));
  EXPECT_TRUE(b.mark(64));
  EXPECT_TRUE(b.clear_page(64));
  EXPECT_FALSE(b.clear_page(64));
  EXPECT_FALSE(b.clear_page(1 << 20));
}

TEST(DirtyBitmap, InitiallySetCoversThePagesOnly) {
  DirtyBitmap b(70, true);
  std::vector<u64> out(2);
  b.copy(out);
  EXPECT_EQ(out, (std::vector<u64>{~u64{0}, 0x3f}));
  EXPECT_FALSE(b.clear(64, std::vector<u64>{~u64{0x3f}})) << "no such pages";
  EXPECT_TRUE(b.clear(64, std::vector<u64>{~u64{0}}));
  EXPECT_FALSE(b.clear(64, std::vector<u64>{~u64{0}}));
  EXPECT_FALSE(b.clear(128, std::vector<u64>{~u64{0}}));
}

constexpr u64 logged_pages = 100;

class ClearLog : public testing::Test {
 protected:
  void create(u32 flags = KVM_MEM_LOG_DIRTY_PAGES) {
    kvm_userspace_memory_region r{};
    r.flags = flags;
    r.memory_size = logged_pages * page_size;
    r.userspace_addr = 0x7f00'0000'0000;
    ASSERT_EQ(slots_.set(r), 0);
  }
  int clear(u64 first, u32 pages, std::vector<u64> bits, u32 slot = 0) {
    kvm_clear_dirty_log args{};
    args.slot = slot;
    args.first_page = first;
    args.num_pages = pages;
    return slots_.clear_dirty_log(args, bits, cleared_);
  }
  std::vector<u64> get() {
    std::vector<u64> out(2);
    bool cleared = false;
    EXPECT_EQ(slots_.get_dirty_log(0, out, cleared), 0);
    return out;
  }
  void mark(u64 page) { slots_.snapshot().find(GuestPhys{page << page_shift})->dirty->mark(page); }

  MemorySlots slots_;
  bool cleared_ = false;
};

TEST_F(ClearLog, ManualProtectFlags) {
  DirtyLog& log = slots_.dirty_log();
  EXPECT_EQ(log.set_manual_protect(KVM_DIRTY_LOG_INITIALLY_SET), -EINVAL) << "only with ENABLE";
  EXPECT_EQ(log.set_manual_protect(4 | KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), -EINVAL);
  EXPECT_EQ(log.set_manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0);
  EXPECT_TRUE(log.manual());
  EXPECT_FALSE(log.initially_set());
  EXPECT_EQ(log.set_manual_protect(0), 0);
  EXPECT_FALSE(log.manual());
}

TEST_F(ClearLog, RangesAsKvm) {
  EXPECT_EQ(clear(0, 64, {1}), -ENOENT);
  create(0);
  EXPECT_EQ(clear(0, 64, {1}), -ENOENT) << "not logged";
  create();
  EXPECT_EQ(clear(0, 64, {1}, 2 << 16), -EINVAL);
  EXPECT_EQ(clear(0, 64, {1}, max_memory_slots), -EINVAL);
  EXPECT_EQ(clear(1, 64, {1}), -EINVAL);
  EXPECT_EQ(clear(1, 64, {1}, 5), -EINVAL) << "before -ENOENT";
  EXPECT_EQ(clear(0, 63, {1}), -EINVAL);
  EXPECT_EQ(clear(0, 101, {1, 1}), -EINVAL);
  EXPECT_EQ(clear(128, 0, {}), -EINVAL);
  EXPECT_EQ(clear(64, 64, {1}), -EINVAL);
  EXPECT_EQ(clear(64, 35, {1}), -EINVAL);
  EXPECT_EQ(clear(0, 64, {1}), 0);
  EXPECT_EQ(clear(64, 36, {1}), 0) << "to the end of the slot";
  EXPECT_EQ(clear(0, 100, {1, 1}), 0);
  EXPECT_EQ(clear(64, 0, {}), 0);
  EXPECT_EQ(clear(u64{1} << 60, 64, {1}), -EINVAL);
}

TEST_F(ClearLog, GetDoesNotClearWhereTheVmmDoes) {
  ASSERT_EQ(slots_.dirty_log().set_manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE), 0);
  create();
  mark(3);
  mark(99);
  const std::vector<u64> both{8, u64{1} << 35};
  EXPECT_EQ(get(), both);
  EXPECT_EQ(get(), both);
  EXPECT_EQ(clear(0, 64, {4}), 0);
  EXPECT_FALSE(cleared_) << "not a bit that was set: nothing to revoke";
  EXPECT_EQ(clear(64, 36, {~u64{0}}), 0);
  EXPECT_TRUE(cleared_);
  EXPECT_EQ(get(), (std::vector<u64>{8, 0}));
}

TEST_F(ClearLog, InitiallySet) {
  ASSERT_EQ(slots_.dirty_log().set_manual_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE |
                                                  KVM_DIRTY_LOG_INITIALLY_SET),
            0);
  create();
  EXPECT_EQ(get(), (std::vector<u64>{~u64{0}, low_mask(36)}));
}

TEST_F(ClearLog, RingsTakeThePlaceOfTheBitmap) {
  ASSERT_EQ(slots_.dirty_log().enable_ring(65536, false), 0);
  create();
  std::vector<u64> out(2);
  bool cleared = false;
  EXPECT_EQ(slots_.get_dirty_log(0, out, cleared), -ENXIO);
  EXPECT_EQ(slots_.get_dirty_log(1 << 16, out, cleared), -ENXIO) << "before all else";
  EXPECT_EQ(clear(0, 64, {1}), -ENXIO);
  mark(5);
  EXPECT_TRUE(slots_.reset_dirty(0, 5));
  EXPECT_FALSE(slots_.reset_dirty(0, 5));
  EXPECT_FALSE(slots_.reset_dirty(0, logged_pages));
  EXPECT_FALSE(slots_.reset_dirty(7, 5));
  EXPECT_FALSE(slots_.reset_dirty(~0u, ~u64{0}));
}

TEST(DirtyLogSettings, RingSizesAsKvm) {
  constexpr u32 entry = sizeof(kvm_dirty_gfn);
  DirtyLog log;
  EXPECT_EQ(log.enable_ring(0, false), -EINVAL);
  EXPECT_EQ(log.enable_ring(3 * 4096, false), -EINVAL);
  EXPECT_EQ(log.enable_ring(512 * entry, false), -EINVAL) << "less than what is reserved";
  EXPECT_EQ(log.enable_ring(2 * 65536 * entry, false), -E2BIG);
  EXPECT_EQ(log.enable_ring(1024 * entry, true), -EINVAL) << "too late";
  EXPECT_EQ(log.ring_bytes(), 0u);
  EXPECT_EQ(log.enable_ring(1024 * entry, false), 0);
  EXPECT_EQ(log.ring_bytes(), 1024 * entry);
  EXPECT_EQ(log.enable_ring(1024 * entry, false), -EINVAL) << "only once";
}

TEST(DirtyBitmap, MarkersAndTheCollectorMeet) {
  // Every page that was newly marked is taken exactly once.
  constexpr u64 pages = 256;
  DirtyBitmap b(pages);
  std::atomic<u64> marked{0};
  std::atomic<bool> stop{false};
  const auto marker = [&](u64 seed) {
    for (u64 i = 0; i < 200000; ++i)
      if (b.mark((i * 7 + seed) % pages)) marked.fetch_add(1);
  };
  std::thread one(marker, 0);
  std::thread two(marker, 3);
  u64 taken = 0;
  std::vector<u64> out(4);
  const auto collect = [&] {
    b.take(out);
    for (const u64 w : out) taken += static_cast<u64>(std::popcount(w));
  };
  std::thread joiner([&] {
    one.join();
    two.join();
    stop = true;
  });
  while (!stop.load()) collect();
  joiner.join();
  collect();
  EXPECT_EQ(taken, marked.load());
}

} // namespace
} // namespace ring3::kvm
