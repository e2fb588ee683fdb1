// SPDX-License-Identifier: Apache-2.0
// KVM_CREATE_GUEST_MEMFD and the slots that use it (api.rst 4.140 to 4.142).
#include "kvm/guest_memfd.h"

#include "kvm/memory_slots.h"

#include <cerrno>
#include <gtest/gtest.h>
#include <linux/falloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

namespace ring3::kvm {
namespace {

constexpr int punch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;
constexpr u64 host_base = 0x7f00'0000'0000;

class GuestMemfdTest : public testing::Test {
 protected:
  GuestMemfdTest() : fd_(memfd_create("test", MFD_CLOEXEC)) {}
  ~GuestMemfdTest() override { close(fd_); }
  std::shared_ptr<GuestMemfd> make(u64 size, const void* owner) {
    std::shared_ptr<GuestMemfd> memory;
    EXPECT_EQ(GuestMemfd::create(fd_, size, 0, owner, memory), 0);
    return memory;
  }
  static UserspaceMemoryRegion2 region(u32 slot, u64 gpa, u64 size, u64 offset = 0) {
    UserspaceMemoryRegion2 r{};
    r.slot = slot;
    r.flags = mem_guest_memfd;
    r.guest_phys_addr = gpa;
    r.memory_size = size;
    r.userspace_addr = host_base;
    r.guest_memfd_offset = offset;
    return r;
  }

  const int fd_;
};

TEST_F(GuestMemfdTest, SizesAndFlags) {
  std::shared_ptr<GuestMemfd> memory;
  EXPECT_EQ(GuestMemfd::create(fd_, 0, 0, this, memory), -EINVAL);
  EXPECT_EQ(GuestMemfd::create(fd_, 0x1800, 0, this, memory), -EINVAL);
  EXPECT_EQ(GuestMemfd::create(fd_, u64{1} << 63, 0, this, memory), -EINVAL);
  EXPECT_EQ(GuestMemfd::create(fd_, 0x1000, 1, this, memory), -EINVAL);
  EXPECT_EQ(memory, nullptr);
  ASSERT_EQ(GuestMemfd::create(fd_, 0x3000, 0, this, memory), 0);
  struct stat st {};
  ASSERT_EQ(fstat(fd_, &st), 0);
  EXPECT_EQ(st.st_size, 0x3000);
}

TEST_F(GuestMemfdTest, Fallocate) {
  const auto memory = make(0x4000, this);
  EXPECT_EQ(memory->fallocate(fd_, 0, 0, 0x1000), -EOPNOTSUPP) << "the size never changes";
  EXPECT_EQ(memory->fallocate(fd_, FALLOC_FL_PUNCH_HOLE, 0, 0x1000), -EOPNOTSUPP);
  EXPECT_EQ(memory->fallocate(fd_, FALLOC_FL_KEEP_SIZE | FALLOC_FL_ZERO_RANGE, 0, 0x1000), -EOPNOTSUPP);
  EXPECT_EQ(memory->fallocate(fd_, punch, 0x800, 0x1000), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, punch, 0, 0x800), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, punch, 0, 0), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, punch, -0x1000, 0x1000), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0x4000, 0x1000), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0x3000, 0x2000), -EINVAL);
  EXPECT_EQ(memory->fallocate(fd_, FALLOC_FL_KEEP_SIZE, 0, 0x4000), 0);
  EXPECT_EQ(memory->fallocate(fd_, punch, 0x4000, 0x1000), 0) << "nothing there to free";
  EXPECT_EQ(memory->fallocate(fd_, punch, 0x7ffffffffffff000, 0x1000), -EFBIG);

  memory->host()[0x1000] = memory->host()[0x2000] = std::byte{7};
  EXPECT_EQ(memory->fallocate(fd_, punch, 0x1000, 0x1000), 0);
  EXPECT_EQ(memory->host()[0x1000], std::byte{0});
  EXPECT_EQ(memory->host()[0x2000], std::byte{7});
}

TEST_F(GuestMemfdTest, SlotsClaimTheirPart) {
  MemorySlots slots(true);
  const PrivateMemory memory{make(0x8000, &slots)};
  EXPECT_EQ(slots.set(region(0, 0, 0x4000, 0x800), memory), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x4000, ~u64{0xfff}), memory), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x4000, 0x5000), memory), -EINVAL) << "beyond its end";
  EXPECT_EQ(slots.set(region(0, 0, 0x4000), {}), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0x4000), {nullptr, -EBADF}), -EBADF);
  ASSERT_EQ(slots.set(region(0, 0, 0x4000), memory), 0);
  EXPECT_EQ(slots.set(region(1, 0x10000, 0x4000, 0x3000), memory), -EINVAL) << "slot 0 has a part of that";
  EXPECT_EQ(slots.set(region(1, 0x3000, 0x4000, 0x3000), memory), -EEXIST)
      << "the guest's address comes first";
  EXPECT_EQ(slots.set(region(1, 0x10000, 0x4000, 0x4000), memory), 0);
  // It stays as it is until it is deleted.
  EXPECT_EQ(slots.set(region(0, 0, 0x4000), memory), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0x20000, 0x4000), memory), -EINVAL);
  UserspaceMemoryRegion2 other = region(0, 0, 0x4000);
  other.flags = KVM_MEM_LOG_DIRTY_PAGES;
  EXPECT_EQ(slots.set(other, {}), -EINVAL);
  EXPECT_EQ(slots.set(region(0, 0, 0), {}), 0);
  EXPECT_EQ(slots.set(region(0, 0, 0x4000), memory), 0) << "its part is free again";

  MemorySlots stranger(true);
  EXPECT_EQ(stranger.set(region(0, 0, 0x4000), memory), -EINVAL) << "another VM's";
}

TEST_F(GuestMemfdTest, FlagsThatGoTogether) {
  MemorySlots slots(true);
  const PrivateMemory memory{make(0x8000, &slots)};
  for (const u32 flag : {u32{KVM_MEM_LOG_DIRTY_PAGES}, u32{KVM_MEM_READONLY}, 8U}) {
    UserspaceMemoryRegion2 r = region(0, 0, 0x4000);
    r.flags |= flag;
    EXPECT_EQ(slots.set(r, memory), -EINVAL) << flag;
  }
  EXPECT_EQ(slots.set(region(1 << 16, 0, 0x4000), memory), -EINVAL) << "one address space";
  kvm_userspace_memory_region old{};
  old.flags = mem_guest_memfd;
  old.memory_size = 0x4000;
  old.userspace_addr = host_base;
  EXPECT_EQ(slots.set(old), -EINVAL) << "has no field for it";

  MemorySlots ordinary;
  const PrivateMemory its{make(0x8000, &ordinary)};
  EXPECT_EQ(ordinary.set(region(0, 0, 0x4000), its), -EINVAL);
}

TEST(MemorySlotAttributes, Arguments) {
  MemorySlots slots(true);
  const auto set = [&slots](u64 address, u64 size, u64 attributes, u64 flags = 0) {
    return slots.set_attributes({address, size, attributes, flags});
  };
  EXPECT_EQ(set(0, 0x1000, 8, 1), -EINVAL);
  EXPECT_EQ(set(0, 0x1000, 4), -EINVAL);
  EXPECT_EQ(set(0, 0, 8), -EINVAL);
  EXPECT_EQ(set(0x800, 0x1000, 8), -EINVAL);
  EXPECT_EQ(set(0, 0x1800, 8), -EINVAL);
  EXPECT_EQ(set(~u64{0xfff}, 0x1000, 8), -EINVAL);
  const u64 generation = slots.generation();
  EXPECT_EQ(set(0x1000, 0x2000, 8), 0);
  EXPECT_GT(slots.generation(), generation);
  EXPECT_TRUE(slots.snapshot().is_private(GuestPhys{0x2fff}));
  EXPECT_FALSE(slots.snapshot().is_private(GuestPhys{0x3000}));
  EXPECT_EQ(set(0x1000, 0x2000, 0), 0);
  EXPECT_FALSE(slots.snapshot().is_private(GuestPhys{0x2fff}));

  MemorySlots ordinary;
  EXPECT_EQ(ordinary.set_attributes({0, 0x1000, 8, 0}), -EINVAL);
  EXPECT_EQ(ordinary.set_attributes({0, 0x1000, 0, 0}), 0);
}

} // namespace
} // namespace ring3::kvm
