// SPDX-License-Identifier: Apache-2.0
#include "kvm/ioeventfd.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <limits>
#include <sys/eventfd.h>
#include <thread>
#include <unistd.h>

namespace ring3::kvm {
namespace {

struct Event {
  explicit Event(u32 count = 0, int flags = EFD_NONBLOCK) : fd(eventfd(count, flags)) {}
  ~Event() { close(fd); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  u64 take() const {
    u64 n = 0;
    return read(fd, &n, sizeof n) == sizeof n ? n : 0;
  }
  int fd;
};

kvm_ioeventfd request(int fd, u64 address, u32 length, u32 flags = 0, u64 match = 0) {
  kvm_ioeventfd r{};
  r.datamatch = match;
  r.addr = address;
  r.len = length;
  r.fd = fd;
  r.flags = flags;
  return r;
}

bool write(const IoEventFds& io, IoSpace space, u64 address, u64 value, std::size_t size) {
  std::array<std::byte, 8> bytes;
  std::memcpy(bytes.data(), &value, sizeof value);
  return io.write(space, address, std::span(bytes).first(size));
}

constexpr u32 match = KVM_IOEVENTFD_FLAG_DATAMATCH;
constexpr u32 pio = KVM_IOEVENTFD_FLAG_PIO;
constexpr u32 remove = KVM_IOEVENTFD_FLAG_DEASSIGN;

TEST(IoEventFds, RefusesWhatKvmRefuses) {
  IoEventFds io;
  const Event e;
  EXPECT_EQ(io.control(request(e.fd, 0, 3)), -EINVAL);
  EXPECT_EQ(io.control(request(e.fd, 0, 16)), -EINVAL);
  EXPECT_EQ(io.control(request(e.fd, ~u64{0}, 2)), -EINVAL);
  EXPECT_EQ(io.control(request(e.fd, 0, 4, 1u << 9)), -EINVAL);
  EXPECT_EQ(io.control(request(e.fd, 0, 4, KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY)), -EINVAL);
  EXPECT_EQ(io.control(request(e.fd, 0, 0, match)), -EINVAL);
  EXPECT_EQ(io.control(request(-1, 0, 4)), -EBADF);
  EXPECT_EQ(io.control(request(1 << 20, 0, 4)), -EBADF);
  const int file = open("/dev/null", O_RDWR);
  EXPECT_EQ(io.control(request(file, 0, 4)), -EINVAL);
  EXPECT_EQ(io.control(request(file, 0, 4, remove)), -EINVAL);
  close(file);
  EXPECT_EQ(io.control(request(e.fd, 0, 4, remove)), -ENOENT);
}

TEST(IoEventFds, AddressAndLengthMustBeTheRegisteredOnes) {
  IoEventFds io;
  const Event e;
  ASSERT_EQ(io.control(request(e.fd, 0x1000, 4)), 0);
  EXPECT_FALSE(write(io, IoSpace::mmio, 0x1000, 1, 2));
  EXPECT_FALSE(write(io, IoSpace::mmio, 0x1000, 1, 8));
  EXPECT_FALSE(write(io, IoSpace::mmio, 0x1001, 1, 4));
  EXPECT_FALSE(write(io, IoSpace::mmio, 0xffc, 1, 4));
  EXPECT_FALSE(write(io, IoSpace::pio, 0x1000, 1, 4));
  EXPECT_EQ(e.take(), 0u);
  EXPECT_TRUE(write(io, IoSpace::mmio, 0x1000, 1, 4));
  EXPECT_TRUE(write(io, IoSpace::mmio, 0x1000, 2, 4));
  EXPECT_EQ(e.take(), 2u);
}

TEST(IoEventFds, LengthZeroTakesEverySize) {
  IoEventFds io;
  const Event e;
  const Event p;
  ASSERT_EQ(io.control(request(e.fd, ~u64{0}, 0)), 0) << "nothing wraps";
  ASSERT_EQ(io.control(request(p.fd, 0x20, 0, pio)), 0);
  for (const std::size_t size : {1u, 2u, 4u, 8u}) {
    EXPECT_TRUE(write(io, IoSpace::mmio, ~u64{0}, 0, size));
    EXPECT_TRUE(write(io, IoSpace::pio, 0x20, 0, size));
  }
  EXPECT_EQ(e.take(), 4u);
  EXPECT_EQ(p.take(), 4u);
}

TEST(IoEventFds, DataMatchComparesAllSixtyFourBits) {
  IoEventFds io;
  const Event one;
  const Event two;
  const Event never;
  ASSERT_EQ(io.control(request(one.fd, 0x40, 2, pio | match, 0x1234)), 0);
  ASSERT_EQ(io.control(request(two.fd, 0x40, 2, pio | match, 0x4321)), 0);
  ASSERT_EQ(io.control(request(never.fd, 0x40, 2, pio | match, 0x1'1234)), 0);
  EXPECT_TRUE(write(io, IoSpace::pio, 0x40, 0xffff'1234, 2)) << "bytes beyond the size do not count";
  EXPECT_TRUE(write(io, IoSpace::pio, 0x40, 0x4321, 2));
  EXPECT_FALSE(write(io, IoSpace::pio, 0x40, 0x5555, 2));
  EXPECT_EQ(one.take(), 1u);
  EXPECT_EQ(two.take(), 1u);
  EXPECT_EQ(never.take(), 0u);
}

TEST(IoEventFds, OnlyOneMayMatchAWrite) {
  IoEventFds io;
  const Event e;
  ASSERT_EQ(io.control(request(e.fd, 0x10, 4, match, 1)), 0);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, match, 1)), -EEXIST);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4)), -EEXIST) << "any data";
  EXPECT_EQ(io.control(request(e.fd, 0x10, 0)), -EEXIST) << "any length";
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, match, 2)), 0);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 2)), 0) << "another length";
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, pio)), 0) << "another space";
  EXPECT_EQ(io.control(request(e.fd, 0x12, 4)), 0) << "only the first byte's address counts";
}

TEST(IoEventFds, DeassignmentNamesAllOfIt) {
  IoEventFds io;
  const Event e;
  const Event other;
  ASSERT_EQ(io.control(request(e.fd, 0x10, 4, match, 7)), 0);
  EXPECT_EQ(io.control(request(other.fd, 0x10, 4, match | remove, 7)), -ENOENT);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, match | remove, 8)), -ENOENT);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, remove, 7)), -ENOENT);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 2, match | remove, 7)), -ENOENT);
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, match | remove | pio, 7)), -ENOENT);
  const int duplicate = dup(e.fd);
  EXPECT_EQ(io.control(request(duplicate, 0x10, 4, match | remove, 7)), 0) << "the eventfd, not its number";
  close(duplicate);
  EXPECT_FALSE(write(io, IoSpace::mmio, 0x10, 7, 4));
  EXPECT_EQ(io.control(request(e.fd, 0x10, 4, match, 7)), 0);
}

TEST(IoEventFds, TheEventFdOutlivesItsDescriptor) {
  IoEventFds io;
  const Event e;
  const int closed = dup(e.fd);
  ASSERT_EQ(io.control(request(closed, 0x10, 4)), 0);
  close(closed);
  EXPECT_TRUE(write(io, IoSpace::mmio, 0x10, 0, 4));
  EXPECT_EQ(e.take(), 1u);
}

TEST(IoEventFds, AFullCounterDoesNotBlock) {
  IoEventFds io;
  const Event e(0, 0);
  const u64 most = std::numeric_limits<u64>::max() - 1;
  ASSERT_EQ(::write(e.fd, &most, sizeof most), 8);
  ASSERT_EQ(io.control(request(e.fd, 0x10, 4)), 0);
  EXPECT_TRUE(write(io, IoSpace::mmio, 0x10, 0, 4));
  EXPECT_EQ(e.take(), most);
}

TEST(IoEventFds, AfterDeassignmentNobodySignals) {
  IoEventFds io;
  std::atomic<bool> stop{false};
  const auto guest = [&] {
    while (!stop.load()) write(io, IoSpace::mmio, 0x10, 0, 4);
  };
  std::thread a(guest);
  std::thread b(guest);
  const Event e;
  const Event background;
  ASSERT_EQ(io.control(request(background.fd, 0x20, 4)), 0);
  for (int round = 0; round < 500; ++round) {
    ASSERT_EQ(io.control(request(e.fd, 0x10, 4)), 0);
    if (round % 8 == 0) std::this_thread::yield();
    ASSERT_EQ(io.control(request(e.fd, 0x10, 4, remove)), 0);
    e.take();
    std::this_thread::yield();
    ASSERT_EQ(e.take(), 0u) << round;
  }
  stop = true;
  a.join();
  b.join();
}

} // namespace
} // namespace ring3::kvm
