// SPDX-License-Identifier: Apache-2.0
#include "base/host_pages.h"

#include "base/address.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace ring3 {
namespace {

// 8 MiB, aligned to large pages.
class HostPagesTest : public testing::Test {
 protected:
  static constexpr u64 size = 4 * large_page_size, pages = size / page_size;
  static constexpr u64 large = large_page_size / page_size;

  HostPagesTest() {
    mapped_ = static_cast<std::byte*>(mmap(nullptr, size + large_page_size, PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    memory_ = mapped_ + (-reinterpret_cast<u64>(mapped_) & (large_page_size - 1));
    madvise(memory_, size, MADV_NOHUGEPAGE);
  }
  ~HostPagesTest() override { munmap(mapped_, size + large_page_size); }
  void SetUp() override {
    if (!HostPages::told()) GTEST_SKIP() << "the host does not tell (Linux 6.7)";
  }

  void touch(u64 page) { memory_[page * page_size] = std::byte{1}; }
  std::vector<HostPages::Run> runs(u64 first = 0, u64 count = pages) {
    std::vector<HostPages::Run> all;
    HostPages present(memory_ + first * page_size, count);
    for (HostPages::Run run{}; present.next(run);) all.push_back(run);
    return all;
  }

  std::byte* mapped_;
  std::byte* memory_;
};

using Runs = std::vector<HostPages::Run>;

TEST_F(HostPagesTest, PagesThatAreThere) {
  EXPECT_EQ(runs(), Runs{});
  for (const u64 page : {0, 1, 5, 2047}) touch(page);
  EXPECT_EQ(runs(), (Runs{{0, 2, false}, {5, 6, false}, {2047, 2048, false}}));
  EXPECT_EQ(runs(1, 5), (Runs{{0, 1, false}, {4, 5, false}})) << "counted from the first";
  EXPECT_EQ(runs(2, 3), Runs{});
  EXPECT_EQ(runs(0, 0), Runs{});
  madvise(memory_, page_size, MADV_DONTNEED);
  EXPECT_EQ(runs(0, 8), (Runs{{1, 2, false}, {5, 6, false}}));
  munmap(memory_ + page_size, 2 * page_size);
  EXPECT_EQ(runs(0, 8), (Runs{{5, 6, false}}));
}

TEST_F(HostPagesTest, MoreRunsThanOneAnswerHolds) {
  Runs expected;
  for (u64 page = 1; page < pages; page += 3) {
    touch(page);
    expected.push_back({page, page + 1, false});
  }
  EXPECT_EQ(runs(), expected);
}

TEST_F(HostPagesTest, LargePages) {
  ASSERT_EQ(madvise(memory_ + large_page_size, large_page_size, MADV_HUGEPAGE), 0);
  touch(large - 1);
  touch(large + 7);
  touch(2 * large);
  const Runs found = runs();
  if (found.size() > 1 && !found[1].large && found[1].end == found[1].first + 1)
    GTEST_SKIP() << "the host has no large page to give";
  EXPECT_EQ(found,
            (Runs{{large - 1, large, false}, {large, 2 * large, true}, {2 * large, 2 * large + 1, false}}));
  // One that is mapped in pieces is not large.
  mprotect(memory_ + large_page_size, page_size, PROT_READ);
  EXPECT_EQ(runs(), (Runs{{large - 1, 2 * large + 1, false}}));
}

TEST_F(HostPagesTest, ChildHasItsOwnPages) {
  touch(3);
  ASSERT_EQ(runs(), (Runs{{3, 4, false}}));
  const pid_t child = fork();
  if (child == 0) {
    touch(5);
    _exit(runs() == Runs{{3, 4, false}, {5, 6, false}} ? 0 : 1);
  }
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(runs(), (Runs{{3, 4, false}}));
}

} // namespace
} // namespace ring3
