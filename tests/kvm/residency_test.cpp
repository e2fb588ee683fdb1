// SPDX-License-Identifier: Apache-2.0
#include "kvm/residency.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ring3::kvm {
namespace {

class ResidencyTest : public testing::Test {
 protected:
  static constexpr u64 page = 4096, size = 16 * page;
  ResidencyTest()
      : memory_(static_cast<std::byte*>(
            mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {
    madvise(memory_, size, MADV_NOHUGEPAGE);
  }
  ~ResidencyTest() override {
    residency_.unregistered(address(0), size);
    munmap(memory_, size);
  }
  u64 address(u64 n) const { return reinterpret_cast<u64>(memory_) + n * page; }
  bool may_block(u64 n) { return residency_.may_block(memory_ + n * page); }

  Residency& residency_ = Residency::of_process();
  std::byte* memory_;
};

TEST_F(ResidencyTest, OnlyMissingPagesOfRegisteredRangesBlock) {
  EXPECT_FALSE(residency_.armed());
  EXPECT_FALSE(may_block(0));
  residency_.registered(address(2), 4 * page);
  EXPECT_TRUE(residency_.armed());
  EXPECT_FALSE(may_block(1));
  EXPECT_TRUE(may_block(2));
  EXPECT_TRUE(may_block(5));
  EXPECT_FALSE(may_block(6));
  memory_[3 * page] = std::byte{1};
  EXPECT_FALSE(may_block(3)) << "present";
  residency_.unregistered(address(0), size);
  EXPECT_FALSE(residency_.armed());
  EXPECT_FALSE(may_block(2));
}

TEST_F(ResidencyTest, PartsOfARangeEnd) {
  residency_.registered(address(0), size);
  residency_.unregistered(address(4), 2 * page);
  EXPECT_TRUE(may_block(3));
  EXPECT_FALSE(may_block(4));
  EXPECT_FALSE(may_block(5));
  EXPECT_TRUE(may_block(6));
  residency_.unregistered(address(0), page);
  EXPECT_FALSE(may_block(0));
  EXPECT_TRUE(may_block(1));
  residency_.unregistered(address(15), page);
  EXPECT_FALSE(may_block(15));
  EXPECT_TRUE(may_block(14));
}

TEST_F(ResidencyTest, AnyNumberOfRangesDoesNoHarm) {
  for (u64 i = 0; i < 1000; ++i) residency_.registered(address(2), page);
  residency_.registered(address(0), 0);
  residency_.registered(~u64{0} - page, 2 * page);
  residency_.unregistered(~u64{0} - page, 2 * page);
  EXPECT_TRUE(may_block(2));
  residency_.unregistered(address(0), size);
  EXPECT_FALSE(residency_.armed());
}

TEST_F(ResidencyTest, ChildSeesItsOwnPages) {
  residency_.registered(address(0), size);
  EXPECT_TRUE(may_block(0)); // has the parent's pagemap open
  const pid_t child = fork();
  if (child == 0) {
    memory_[0] = std::byte{1};
    _exit(may_block(0) || !may_block(1) ? 1 : 0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(may_block(0));
}

} // namespace
} // namespace ring3::kvm
