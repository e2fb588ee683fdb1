// SPDX-License-Identifier: Apache-2.0
#include "kvm/irqfd.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <optional>
#include <sys/eventfd.h>
#include <sys/wait.h>
#include <thread>
#include <tuple>
#include <unistd.h>

namespace ring3::kvm {
namespace {

using namespace std::chrono_literals;
using Change = std::tuple<u32, bool, IrqFds::Source>;

// An interrupt chip that remembers what its lines did.
class Lines {
 public:
  void set(u32 gsi, bool level, IrqFds::Source source) {
    const std::scoped_lock guard(lock_);
    changes_.emplace_back(gsi, level, source);
    changed_.notify_all();
  }
  // All changes so far, once there are n of them (or a long time has passed).
  std::vector<Change> wait(std::size_t n) {
    std::unique_lock guard(lock_);
    changed_.wait_for(guard, 5s, [&] { return changes_.size() >= n; });
    return changes_;
  }
  std::atomic<int> watches_changed{0};

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  std::vector<Change> changes_;
};

class IrqFdsTest : public testing::Test {
 protected:
  IrqFdsTest() {
    irqfds_.emplace([this](u32 gsi, bool level, IrqFds::Source source) { lines_.set(gsi, level, source); },
                    [this] { ++lines_.watches_changed; });
  }
  ~IrqFdsTest() override {
    irqfds_.reset();
    for (const int fd : fds_) close(fd);
  }
  int event(u32 count = 0, int flags = EFD_NONBLOCK) { return fds_.emplace_back(eventfd(count, flags)); }
  static void signal(int fd, u64 n = 1) { EXPECT_EQ(write(fd, &n, sizeof n), 8); }
  static u64 take(int fd) {
    u64 n = 0;
    return read(fd, &n, sizeof n) == 8 ? n : 0;
  }
  int control(int fd, u32 gsi, u32 flags = 0, int resample = -1) {
    kvm_irqfd r{};
    r.fd = static_cast<u32>(fd);
    r.gsi = gsi;
    r.flags = flags;
    r.resamplefd = static_cast<u32>(resample);
    return irqfds_->control(r);
  }

  Lines lines_;
  std::optional<IrqFds> irqfds_;
  std::vector<int> fds_;
};

constexpr auto edge = IrqFds::Source::edge;
constexpr auto resampled = IrqFds::Source::resampled;
constexpr u32 remove = KVM_IRQFD_FLAG_DEASSIGN;

TEST_F(IrqFdsTest, RefusesWhatKvmRefuses) {
  const int e = event();
  EXPECT_EQ(control(e, 1, 4), -EINVAL);
  EXPECT_EQ(control(-1, 1), -EBADF);
  const int file = fds_.emplace_back(open("/dev/null", O_RDWR));
  EXPECT_EQ(control(file, 1), -EINVAL);
  EXPECT_EQ(control(e, 1, KVM_IRQFD_FLAG_RESAMPLE, -1), -EBADF);
  EXPECT_EQ(control(e, 1, KVM_IRQFD_FLAG_RESAMPLE, file), -EINVAL);
  EXPECT_EQ(control(file, 1, remove), -EINVAL);
  EXPECT_EQ(control(e, 1, remove), 0) << "nothing to do is no error";
  EXPECT_EQ(control(e, 1), 0);
  EXPECT_EQ(control(e, 2), -EBUSY);
  const int duplicate = fds_.emplace_back(dup(e));
  EXPECT_EQ(control(duplicate, 2), -EBUSY);
}

TEST_F(IrqFdsTest, ASignalIsAPulse) {
  const int e = event();
  const int f = event();
  ASSERT_EQ(control(e, 5), 0);
  ASSERT_EQ(control(f, 6), 0);
  signal(e);
  EXPECT_EQ(lines_.wait(2), (std::vector<Change>{{5, true, edge}, {5, false, edge}}));
  signal(f, 3);
  EXPECT_EQ(lines_.wait(4).size(), 4u);
  EXPECT_EQ(std::get<0>(lines_.wait(4)[3]), 6u);
  EXPECT_EQ(take(e), 0u) << "the count has been taken";
}

TEST_F(IrqFdsTest, ACountFromBeforeFiresAtOnce) {
  const int e = event(3, 0); // blocking: the reader must not depend on the VMM's flags
  ASSERT_EQ(control(e, 7), 0);
  EXPECT_EQ(lines_.wait(2).size(), 2u);
}

TEST_F(IrqFdsTest, ASemaphoreGivesOnePulseASignal) {
  const int e = event(0, EFD_SEMAPHORE | EFD_NONBLOCK);
  ASSERT_EQ(control(e, 7), 0);
  signal(e, 5);
  EXPECT_EQ(lines_.wait(2).size(), 2u);
  std::this_thread::sleep_for(20ms);
  EXPECT_EQ(lines_.wait(2).size(), 2u);
}

TEST_F(IrqFdsTest, AfterDeassignmentNothingComes) {
  const int e = event();
  for (int round = 0; round < 300; ++round) {
    ASSERT_EQ(control(e, 4), 0);
    signal(e);
    ASSERT_EQ(control(e, 5, remove), 0) << "another GSI";
    ASSERT_EQ(control(e, 4, remove), 0);
    const std::size_t n = lines_.wait(0).size();
    signal(e);
    if (round % 30 == 0) std::this_thread::sleep_for(2ms);
    ASSERT_EQ(lines_.wait(0).size(), n) << round;
    take(e);
  }
}

TEST_F(IrqFdsTest, ResamplingHoldsTheLineUntilAcknowledged) {
  const int e = event();
  const int back = event();
  EXPECT_FALSE(irqfds_->watches(9));
  ASSERT_EQ(control(e, 9, KVM_IRQFD_FLAG_RESAMPLE, back), 0);
  EXPECT_EQ(lines_.watches_changed, 1);
  EXPECT_TRUE(irqfds_->watches(9));
  EXPECT_FALSE(irqfds_->watches(8));
  signal(e);
  EXPECT_EQ(lines_.wait(1), (std::vector<Change>{{9, true, resampled}}));
  EXPECT_EQ(take(back), 0u);
  irqfds_->acknowledged(9); // the chips have let the line go
  EXPECT_EQ(take(back), 1u);
  irqfds_->acknowledged(8);
  EXPECT_EQ(take(back), 0u);
}

TEST_F(IrqFdsTest, ResampledEventsOfOneGsiShareTheLine) {
  const int e = event();
  const int f = event();
  const int back_e = event();
  const int back_f = event();
  ASSERT_EQ(control(e, 9, KVM_IRQFD_FLAG_RESAMPLE, back_e), 0);
  ASSERT_EQ(control(f, 9, KVM_IRQFD_FLAG_RESAMPLE, back_f), 0);
  irqfds_->acknowledged(9);
  EXPECT_EQ(take(back_e), 1u);
  EXPECT_EQ(take(back_f), 1u);
  ASSERT_EQ(control(e, 9, remove), 0);
  EXPECT_TRUE(irqfds_->watches(9));
  EXPECT_TRUE(lines_.wait(0).empty());
  ASSERT_EQ(control(f, 9, remove), 0);
  EXPECT_FALSE(irqfds_->watches(9));
  EXPECT_EQ(lines_.wait(1), (std::vector<Change>{{9, false, resampled}})) << "nobody is left to let it go";
  EXPECT_EQ(lines_.watches_changed, 4);
}

TEST_F(IrqFdsTest, ManyThreadsSignal) {
  constexpr int count = 16;
  std::vector<int> fds;
  for (int i = 0; i < count; ++i) {
    fds.push_back(event());
    ASSERT_EQ(control(fds.back(), static_cast<u32>(i)), 0);
  }
  std::atomic<bool> stop{false};
  std::thread acks([&] {
    while (!stop.load())
      for (u32 gsi = 0; gsi < count; ++gsi)
        if (irqfds_->watches(gsi)) irqfds_->acknowledged(gsi);
  });
  std::thread signals([&] {
    for (int i = 0; i < 2000; ++i) signal(fds[static_cast<unsigned>(i % count)]);
  });
  const int back = event();
  for (int i = 0; i < 100; ++i) {
    const int e = event();
    ASSERT_EQ(control(e, 3, KVM_IRQFD_FLAG_RESAMPLE, back), 0);
    signal(e);
    ASSERT_EQ(control(e, 3, remove), 0);
  }
  signals.join();
  stop = true;
  acks.join();
  EXPECT_GE(lines_.wait(2 * count).size(), 2u * count);
}

TEST_F(IrqFdsTest, AChildProcessServesNothingAndDisturbsNothing) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "fork() in a process with threads is not for this tool";
#endif
  const int e = event();
  ASSERT_EQ(control(e, 5), 0);
  const pid_t child = fork();
  if (child == 0) {
    const bool refused = control(e, 5, remove) == -EIO;
    irqfds_.reset();
    _exit(refused ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  signal(e);
  EXPECT_EQ(lines_.wait(2).size(), 2u);
}

} // namespace
} // namespace ring3::kvm
