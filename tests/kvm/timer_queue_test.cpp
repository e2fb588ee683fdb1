// SPDX-License-Identifier: Apache-2.0
#include "kvm/clock.h"
#include "kvm/timer_queue.h"

#include <gtest/gtest.h>
#include <vector>

namespace ring3::kvm {
namespace {

TEST(HostClock, GoesForward) {
  const HostClock clock;
  const u64 first = clock.now_ns();
  EXPECT_GE(clock.now_ns(), first);
  EXPECT_GT(clock.wall_ns(), u64{1'600'000'000} * 1'000'000'000);
}

TEST(TimerQueue, RunsWhatIsDueOnce) {
  TimerQueue queue;
  std::vector<int> ran;
  const auto a = queue.add([&](u64) { ran.push_back(0); });
  const auto b = queue.add([&](u64 now) {
    ran.push_back(1);
    queue.arm(1, now); // due again at once: next time, not now
  });
  EXPECT_EQ(queue.next_deadline(), TimerQueue::never);
  queue.arm(a, 100);
  queue.arm(b, 50);
  EXPECT_EQ(queue.next_deadline(), 50u);
  queue.run_expired(49);
  EXPECT_TRUE(ran.empty());
  queue.run_expired(100);
  EXPECT_EQ(ran, (std::vector<int>{0, 1}));
  EXPECT_EQ(queue.deadline(a), TimerQueue::never);
  EXPECT_EQ(queue.next_deadline(), 100u);
  queue.disarm(b);
  queue.run_expired(1000);
  EXPECT_EQ(ran.size(), 2u);
}

TEST(TimerQueue, TellsSleepersOfEarlierDeadlinesOnly) {
  TimerQueue queue;
  const auto a = queue.add([](u64) {});
  const auto b = queue.add([](u64) {});
  int earlier = 0;
  queue.set_on_earlier([&] { ++earlier; });
  queue.arm(a, 100);
  EXPECT_EQ(earlier, 1);
  queue.arm(b, 200);
  queue.arm(a, 150);
  EXPECT_EQ(earlier, 1);
  EXPECT_EQ(queue.next_deadline(), 150u);
  queue.arm(b, 149);
  EXPECT_EQ(earlier, 2);
}

TEST(TimerQueue, CallbackMayAddTimers) {
  TimerQueue queue;
  int inner = 0;
  const auto a = queue.add([&](u64 now) {
    for (int i = 0; i < 100; ++i) queue.arm(queue.add([&](u64) { ++inner; }), now);
  });
  queue.arm(a, 1);
  queue.run_expired(1);
  queue.run_expired(1);
  EXPECT_EQ(inner, 100);
}

} // namespace
} // namespace ring3::kvm
