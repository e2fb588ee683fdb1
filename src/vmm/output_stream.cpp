// SPDX-License-Identifier: Apache-2.0
#include "vmm/output_stream.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <poll.h>
#include <unistd.h>
#include <utility>

namespace ring3::vmm {

OutputStream::OutputStream(int fd, std::function<void()> wake) : fd_(fd), wake_(std::move(wake)) {}

void OutputStream::put(u8 byte) {
  std::unique_lock lock(mutex_);
  space_.wait(lock, [this] { return closed_ || buffer_.size() < capacity; });
  if (closed_) return;
  buffer_.push_back(static_cast<char>(byte));
  const bool first = buffer_.size() == 1;
  lock.unlock();
  if (first && wake_) wake_();
}

bool OutputStream::has_data() {
  std::lock_guard lock(mutex_);
  return !buffer_.empty();
}

bool OutputStream::write_some() {
  std::string piece;
  {
    std::lock_guard lock(mutex_);
    piece = buffer_.substr(0, PIPE_BUF);
  }
  if (piece.empty()) return true;
  const ssize_t n = ::write(fd_, piece.data(), piece.size());
  if (n < 0) {
    if (errno == EINTR || errno == EAGAIN) return true;
    error_ = errno;
    close();
    return false;
  }
  std::lock_guard lock(mutex_);
  buffer_.erase(0, static_cast<std::size_t>(n));
  space_.notify_all();
  return true;
}

bool OutputStream::drain(int milliseconds) {
  while (has_data()) {
    pollfd p{fd_, POLLOUT, 0};
    const int ready = ::poll(&p, 1, milliseconds);
    if (ready == 0) return false;
    if (ready > 0 && !write_some()) return false;
    if (ready < 0 && errno != EINTR) return false;
  }
  return true;
}

void OutputStream::close() {
  std::lock_guard lock(mutex_);
  closed_ = true;
  buffer_.clear();
  space_.notify_all();
}

} // namespace ring3::vmm
