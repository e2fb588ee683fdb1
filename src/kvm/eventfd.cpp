// SPDX-License-Identifier: Apache-2.0
#include "kvm/eventfd.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <fcntl.h>
#include <poll.h>
#include <string_view>
#include <sys/uio.h>
#include <unistd.h>
#include <utility>

namespace ring3::kvm {
namespace {

// /proc/self/fdinfo/<fd>; -errno if it cannot be read.
int read_fdinfo(int fd, std::array<char, 512>& text, std::string_view& out) {
  std::array<char, 40> path{};
  constexpr std::string_view folder = "/proc/self/fdinfo/";
  folder.copy(path.data(), folder.size());
  std::to_chars(path.data() + folder.size(), path.data() + path.size() - 1, fd);
  const int info = ::open(path.data(), O_RDONLY | O_CLOEXEC);
  if (info < 0) return -errno;
  const ssize_t n = ::read(info, text.data(), text.size());
  const int error = n < 0 ? -errno : 0;
  ::close(info);
  if (error == 0) out = {text.data(), static_cast<std::size_t>(n)};
  return error;
}

} // namespace

// The kernel numbers eventfds and shows the number in fdinfo (proc(5)). There is no system call that tells
// what kind of file a descriptor is.
int EventFd::identify(int fd, u64& identity) {
  if (::fcntl(fd, F_GETFD) < 0) return -EBADF;
  std::array<char, 512> text{};
  std::string_view info;
  if (const int error = read_fdinfo(fd, text, info); error != 0) return error;
  constexpr std::string_view key = "eventfd-id:";
  const std::size_t at = info.find(key);
  if (at == std::string_view::npos) return -EINVAL;
  info.remove_prefix(at + key.size());
  info.remove_prefix(std::min(info.find_first_not_of(' '), info.size()));
  const auto [end, error] = std::from_chars(info.data(), info.data() + info.size(), identity);
  return error == std::errc{} ? 0 : -EINVAL;
}

int EventFd::open(int fd, EventFd& out) {
  EventFd e;
  if (const int error = identify(fd, e.identity_); error != 0) return error;
  e.fd_ = ::fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (e.fd_ < 0) return -errno;
  out = std::move(e);
  return 0;
}

EventFd::~EventFd() {
  if (fd_ >= 0) ::close(fd_);
}

EventFd::EventFd(EventFd&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), identity_(std::exchange(other.identity_, 0)) {}

EventFd& EventFd::operator=(EventFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(identity_, other.identity_);
  return *this;
}

void EventFd::signal() const {
  // O_NONBLOCK belongs to the VMM, with which we share the file: ask first.
  pollfd room{.fd = fd_, .events = POLLOUT, .revents = 0};
  if (::poll(&room, 1, 0) != 1 || (room.revents & POLLOUT) == 0) return;
  const u64 one = 1;
  while (::write(fd_, &one, sizeof one) < 0 && errno == EINTR) {
  }
}

bool EventFd::take() const {
  u64 count = 0;
  iovec piece{.iov_base = &count, .iov_len = sizeof count};
  ssize_t n;
  do {
    n = ::preadv2(fd_, &piece, 1, -1, RWF_NOWAIT);
  } while (n < 0 && errno == EINTR);
  if (n < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) {
    // Kernels before 5.8. If somebody else reads in between, we wait for the next signal, which is no harm.
    pollfd ready{.fd = fd_, .events = POLLIN, .revents = 0};
    if (::poll(&ready, 1, 0) != 1 || (ready.revents & POLLIN) == 0) return false;
    n = ::read(fd_, &count, sizeof count);
  }
  return n == sizeof count;
}

} // namespace ring3::kvm
