// SPDX-License-Identifier: Apache-2.0
#include "kvm/mapping_sizes.h"

#include "kvm/memory_slots.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace ring3::kvm {

// Found by GoogleTest, by its name.
static void PrintTo(const MappingSizes& s, std::ostream* out) {
  *out << s.pages_4k << " of 4K, " << s.pages_2m << " of 2M";
}

namespace {

constexpr u64 mib2 = large_page_size, region = mib2 / page_size;
constexpr u64 base = u64{1} << 30;
constexpr u32 logged = KVM_MEM_LOG_DIRTY_PAGES;
constexpr u64 manual = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET;

// A slot of 8 MiB: large pages of the host, then 4 MiB without.
class MappingSizesTest : public testing::Test {
 protected:
  static constexpr u64 size = 4 * mib2, pages = size / page_size;

  MappingSizesTest() {
    mapped_ = static_cast<std::byte*>(mmap(nullptr, size + mib2, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    host_ = mapped_ + (-reinterpret_cast<u64>(mapped_) & (mib2 - 1));
    madvise(host_, size / 2, MADV_HUGEPAGE);
    madvise(host_ + size / 2, size / 2, MADV_NOHUGEPAGE);
  }
  ~MappingSizesTest() override { munmap(mapped_, size + mib2); }
  void SetUp() override {
    host_[0] = host_[mib2] = std::byte{1};
    for (const u64 at : {u64{0}, mib2}) {
      HostPages present(host_ + at, 1);
      HostPages::Run run{};
      if (!present.next(run) || !run.large) GTEST_SKIP() << "the host has no large pages, or does not tell";
    }
  }

  int set(u32 flags, u64 at = base, u64 bytes = size, u64 offset = 0, u32 id = 0) {
    kvm_userspace_memory_region r{};
    r.slot = id;
    r.flags = flags;
    r.guest_phys_addr = at;
    r.memory_size = bytes;
    r.userspace_addr = reinterpret_cast<u64>(host_ + offset);
    return slots_.set(r);
  }
  // The guest stores to the page.
  void touch(u64 page, u64 at = base) {
    host_[page * page_size] = std::byte{1};
    slots_.mapped_pages(0).record(GuestPhys{at + page * page_size});
  }
  void clear(std::initializer_list<u64> which) {
    std::vector<u64> bits(pages / 64);
    for (const u64 page : which) bits[page / 64] |= u64{1} << page % 64;
    kvm_clear_dirty_log args{};
    args.num_pages = pages;
    bool cleared = false;
    EXPECT_EQ(slots_.clear_dirty_log(args, bits, cleared), 0);
    EXPECT_TRUE(cleared);
  }
  MappingSizes sizes() const { return slots_.mapping_sizes(); }

  MemorySlots slots_;
  std::byte* mapped_;
  std::byte* host_;
};

TEST_F(MappingSizesTest, AreTheHostsWhereTheGuestHasBeen) {
  ASSERT_EQ(set(0), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 0})) << "that the VMM has touched it is nothing to the guest";
  touch(3);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  touch(4);
  touch(region);
  EXPECT_EQ(sizes(), (MappingSizes{0, 2}));
  for (const u64 page : {2 * region, 2 * region + 9, pages - 1}) touch(page);
  EXPECT_EQ(sizes(), (MappingSizes{3, 2}));
  madvise(host_ + 2 * mib2, page_size, MADV_DONTNEED);
  EXPECT_EQ(sizes(), (MappingSizes{2, 2})) << "not in memory";
  madvise(host_ + mib2, page_size, MADV_DONTNEED);
  EXPECT_EQ(sizes(), (MappingSizes{2, 1})) << "the host has split it, and the guest's page of it is gone";
  touch(region + 1);
  EXPECT_EQ(sizes(), (MappingSizes{3, 1}));
}

TEST_F(MappingSizesTest, LargeOnesFitIntoTheSlotAndAreAlignedAlike) {
  ASSERT_EQ(set(0, base + page_size, size - page_size, page_size), 0);
  for (const u64 page : {1, 5}) touch(page);
  touch(region + 7);
  EXPECT_EQ(sizes(), (MappingSizes{2, 1})) << "the first page is another's";
  ASSERT_EQ(set(0, 0, 0), 0);
  ASSERT_EQ(set(0, base, mib2 + page_size), 0);
  touch(5);
  touch(region);
  EXPECT_EQ(sizes(), (MappingSizes{1, 1})) << "it ends in the second";
  ASSERT_EQ(set(0, 0, 0), 0);
  ASSERT_EQ(set(0, base + page_size, 2 * mib2), 0);
  touch(5, base + page_size);
  touch(region + 5, base + page_size);
  EXPECT_EQ(sizes(), (MappingSizes{2, 0}));
}

TEST_F(MappingSizesTest, LoggingSplitsAndItsEndRecovers) {
  ASSERT_EQ(set(0), 0);
  touch(3);
  touch(2 * region + 3);
  ASSERT_EQ(set(logged), 0);
  EXPECT_EQ(sizes(), (MappingSizes{region + 1, 0}));
  touch(region + 3);
  EXPECT_EQ(sizes(), (MappingSizes{region + 2, 0})) << "what is reached while it is logged, is by pages";
  ASSERT_EQ(set(0), 0);
  EXPECT_EQ(sizes(), (MappingSizes{1, 0})) << "forgotten, but for what stays small";
  touch(7);
  EXPECT_EQ(sizes(), (MappingSizes{1, 1}));
  touch(region);
  EXPECT_EQ(sizes(), (MappingSizes{1, 2}));
}

TEST_F(MappingSizesTest, LoggingThatBeginsAllDirtySplitsWhatIsCleared) {
  ASSERT_EQ(slots_.dirty_log().set_manual_protect(manual), 0);
  ASSERT_EQ(set(0), 0);
  touch(3);
  touch(region);
  ASSERT_EQ(set(logged), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 2}));
  clear({2 * region, pages - 1});
  EXPECT_EQ(sizes(), (MappingSizes{0, 2}));
  clear({region - 1});
  EXPECT_EQ(sizes(), (MappingSizes{region, 1}));
  clear({region, region + 100, region + 511});
  EXPECT_EQ(sizes(), (MappingSizes{2 * region, 0}));
  ASSERT_EQ(set(0), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 0}));
  touch(0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  // What is first reached while it is logged is small from the start.
  ASSERT_EQ(set(logged), 0);
  touch(region);
  EXPECT_EQ(sizes(), (MappingSizes{1, 1}));
}

// A bitmap's word may have pages of two regions when the slot does not begin at a large page.
TEST_F(MappingSizesTest, ClearedWordsReachIntoTheNextRegion) {
  ASSERT_EQ(slots_.dirty_log().set_manual_protect(manual), 0);
  constexpr u64 skipped = 32;
  ASSERT_EQ(set(0, base - mib2 + skipped * page_size, size - skipped * page_size, skipped * page_size), 0);
  const u64 second = region - skipped; // the page of the slot where the second region begins
  touch(region, base - mib2);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  ASSERT_EQ(set(logged, base - mib2 + skipped * page_size, size - skipped * page_size, skipped * page_size),
            0);
  std::vector<u64> bits(pages / 64);
  kvm_clear_dirty_log args{};
  args.num_pages = pages - skipped;
  bool cleared = false;
  bits[second / 64] = u64{1} << (second - 1) % 64;
  ASSERT_EQ((second - 1) / 64, second / 64);
  EXPECT_EQ(slots_.clear_dirty_log(args, bits, cleared), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  bits[second / 64] = u64{1} << second % 64;
  EXPECT_EQ(slots_.clear_dirty_log(args, bits, cleared), 0);
  EXPECT_EQ(sizes(), (MappingSizes{region, 0}));
}

TEST_F(MappingSizesTest, RingsSplitWhatIsTakenBack) {
  ASSERT_EQ(slots_.dirty_log().enable_ring(65536, false), 0);
  ASSERT_EQ(slots_.dirty_log().set_manual_protect(manual), 0);
  ASSERT_EQ(set(0), 0);
  touch(3);
  touch(region);
  ASSERT_EQ(set(logged), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 2}));
  slots_.reset_dirty(0, region + 5);
  EXPECT_EQ(sizes(), (MappingSizes{region, 1}));
}

TEST_F(MappingSizesTest, ReadOnlySlotsAreNotSplit) {
  ASSERT_EQ(set(KVM_MEM_READONLY), 0);
  touch(3);
  ASSERT_EQ(set(KVM_MEM_READONLY | logged), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  touch(region);
  EXPECT_EQ(sizes(), (MappingSizes{1, 1}));
}

TEST_F(MappingSizesTest, SlotThatComesOrMovesBeginsUnmapped) {
  ASSERT_EQ(set(0), 0);
  touch(3);
  touch(2 * region);
  ASSERT_EQ(set(0, base, 0), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 0}));
  ASSERT_EQ(set(0), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 0}));
  touch(3);
  ASSERT_EQ(set(0, base + mib2), 0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 0}));
  touch(region, base + mib2);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
}

TEST_F(MappingSizesTest, SpacesAndNeighboursAreApart) {
  constexpr u32 smm = 1 << 16;
  ASSERT_EQ(set(0, base, mib2), 0);
  ASSERT_EQ(set(0, base, size, 0, smm), 0);
  ASSERT_EQ(set(0, base + mib2, page_size, 2 * mib2, 1), 0);
  touch(0);
  EXPECT_EQ(sizes(), (MappingSizes{0, 1}));
  slots_.mapped_pages(1).record(GuestPhys{base});
  slots_.mapped_pages(1).record(GuestPhys{base + mib2});
  EXPECT_EQ(sizes(), (MappingSizes{0, 3}));
  host_[2 * mib2] = std::byte{1};
  slots_.mapped_pages(0).record(GuestPhys{base + mib2});
  EXPECT_EQ(sizes(), (MappingSizes{1, 3}));
  ASSERT_EQ(set(0, base, 0, 0, smm), 0);
  EXPECT_EQ(sizes(), (MappingSizes{1, 1}));
}

TEST_F(MappingSizesTest, PrivatePagesAreSmall) {
  MemorySlots slots(true);
  const int fd = memfd_create("test", MFD_CLOEXEC);
  PrivateMemory memory;
  ASSERT_EQ(GuestMemfd::create(fd, size, 0, &slots, memory.memory), 0);
  UserspaceMemoryRegion2 r{};
  r.flags = mem_guest_memfd;
  r.guest_phys_addr = base;
  r.memory_size = size;
  r.userspace_addr = reinterpret_cast<u64>(host_);
  ASSERT_EQ(slots.set(r, memory), 0);
  const auto record = [&](u64 page) { slots.mapped_pages(0).record(GuestPhys{base + page * page_size}); };
  record(1);
  record(region);
  EXPECT_EQ(slots.mapping_sizes(), (MappingSizes{0, 2}));
  const MemoryAttributes attributes{
      .address = base + mib2, .size = page_size, .attributes = memory_attribute_private, .flags = 0};
  ASSERT_EQ(slots.set_attributes(attributes), 0);
  EXPECT_EQ(slots.mapping_sizes(), (MappingSizes{0, 1})) << "another page is there now";
  record(region);
  record(region + 1);
  EXPECT_EQ(slots.mapping_sizes(), (MappingSizes{1, 1})) << "the private page is not in memory yet";
  memory.memory->host()[mib2] = std::byte{1};
  EXPECT_EQ(slots.mapping_sizes(), (MappingSizes{2, 1}));
  ASSERT_EQ(slots.set_attributes({.address = base, .size = size, .attributes = 0, .flags = 0}), 0);
  record(region + 1);
  EXPECT_EQ(slots.mapping_sizes(), (MappingSizes{0, 1})) << "a call for all of it forgets all of it";
  close(fd);
}

} // namespace
} // namespace ring3::kvm
