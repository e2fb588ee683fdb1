// SPDX-License-Identifier: Apache-2.0
#include "kvm/page_workers.h"

#include <atomic>
#include <chrono>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/userfaultfd.h>
#include <set>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ring3::kvm {
namespace {

class PageWorkersTest : public testing::Test {
 protected:
  static constexpr u64 page = 4096, pages = 32;

  PageWorkersTest()
      : memory_(static_cast<std::byte*>(
            mmap(nullptr, pages * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))),
        fetched_(std::make_shared<FetchedPages>([this] { ++arrivals_; })) {}
  ~PageWorkersTest() override {
    fetched_->forget();
    if (userfaultfd_ >= 0) close(userfaultfd_); // lets go of who waits
    munmap(memory_, pages * page);
  }
  // Pages stay away until serve(). False: the host does not allow that.
  bool hold_pages() {
    userfaultfd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
    if (userfaultfd_ < 0) return false;
    uffdio_api api{.api = UFFD_API, .features = 0, .ioctls = 0};
    uffdio_register range{};
    range.range = {reinterpret_cast<u64>(memory_), pages * page};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    return ioctl(userfaultfd_, UFFDIO_API, &api) == 0 && ioctl(userfaultfd_, UFFDIO_REGISTER, &range) == 0;
  }
  void serve(u64 n) {
    uffdio_zeropage zero{};
    zero.range = {reinterpret_cast<u64>(memory_ + n * page), page};
    ASSERT_EQ(ioctl(userfaultfd_, UFFDIO_ZEROPAGE, &zero), 0);
  }
  bool wait_for_arrivals(unsigned n) {
    for (int i = 0; i < 5000 && arrivals_ < n; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return arrivals_ >= n;
  }

  std::byte* memory_;
  int userfaultfd_ = -1;
  std::atomic<unsigned> arrivals_{0};
  std::shared_ptr<FetchedPages> fetched_;
  std::unique_ptr<PageWorkers> workers_ = std::make_unique<PageWorkers>();
};

TEST_F(PageWorkersTest, PagesArriveInOrderOfCompletion) {
  EXPECT_TRUE(fetched_->empty());
  EXPECT_FALSE(fetched_->first().has_value());
  ASSERT_TRUE(workers_->fetch(memory_, 7, fetched_));
  ASSERT_TRUE(wait_for_arrivals(1));
  ASSERT_TRUE(workers_->fetch(memory_ + page, 8, fetched_));
  ASSERT_TRUE(wait_for_arrivals(2));
  EXPECT_EQ(fetched_->first()->token, 7u);
  EXPECT_TRUE(fetched_->first()->there);
  fetched_->drop_first();
  EXPECT_EQ(fetched_->first()->token, 8u);
  fetched_->drop_first();
  EXPECT_TRUE(fetched_->empty());
  unsigned char resident = 0;
  mincore(memory_, page, &resident);
  EXPECT_EQ(resident & 1, 1);
}

TEST_F(PageWorkersTest, MemoryThatIsNotThereArrivesToo) {
  ASSERT_EQ(mprotect(memory_, page, PROT_NONE), 0);
  ASSERT_TRUE(workers_->fetch(memory_, 1, fetched_));
  ASSERT_TRUE(wait_for_arrivals(1));
  EXPECT_FALSE(fetched_->first()->there);
}

TEST_F(PageWorkersTest, AsManyAsThereAreThreads) {
  if (!hold_pages()) GTEST_SKIP() << "no userfaultfd for the kernel's accesses";
  for (u64 i = 0; i < PageWorkers::max_threads; ++i)
    ASSERT_TRUE(workers_->fetch(memory_ + i * page, static_cast<u32>(i), fetched_)) << i;
  EXPECT_FALSE(workers_->fetch(memory_ + 20 * page, 20, fetched_));
  EXPECT_EQ(arrivals_, 0u);
  serve(3);
  ASSERT_TRUE(wait_for_arrivals(1));
  EXPECT_EQ(fetched_->first()->token, 3u);
  // Its thread is free again, soon.
  bool accepted = false;
  for (int i = 0; i < 5000 && !accepted; ++i) {
    accepted = workers_->fetch(memory_ + 21 * page, 21, fetched_);
    if (!accepted) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_TRUE(accepted);
}

TEST_F(PageWorkersTest, NobodyWaitsForAThreadThatIsStuck) {
  if (!hold_pages()) GTEST_SKIP() << "no userfaultfd for the kernel's accesses";
  ASSERT_TRUE(workers_->fetch(memory_, 1, fetched_));
  workers_.reset();
  fetched_->forget();
  serve(0);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(arrivals_, 0u) << "forgotten";
}

TEST_F(PageWorkersTest, ChildHasNone) {
  ASSERT_TRUE(workers_->fetch(memory_, 1, fetched_));
  ASSERT_TRUE(wait_for_arrivals(1));
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = !workers_->fetch(memory_, 2, fetched_);
    fetched_->forget();
    workers_.reset();
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

} // namespace
} // namespace ring3::kvm
