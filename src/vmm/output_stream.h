// SPDX-License-Identifier: Apache-2.0
// Guest output on its way to a host file descriptor. vCPU threads put bytes in; the main thread writes them
// out, so a slow reader never holds a device lock. A full buffer makes put() wait: the guest is throttled,
// memory is bounded.
#pragma once

#include "base/types.h"

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>

namespace ring3::vmm {

class OutputStream {
 public:
  static constexpr std::size_t capacity = 256 * 1024;

  // `wake` is called when the first byte of a batch has arrived.
  OutputStream(int fd, std::function<void()> wake);

  void put(u8 byte); // any thread

  // Main thread.
  int fd() const { return fd_; }
  bool has_data();
  // Writes at most PIPE_BUF bytes, which does not block a descriptor that poll() calls writable. False:
  // failed for good.
  bool write_some();
  // Writes everything, waiting up to `milliseconds` without progress.
  bool drain(int milliseconds);
  int error() const { return error_; } // errno of the failure, 0 for none
  // From now on, bytes are dropped and put() never waits.
  void close();

 private:
  int fd_;
  std::function<void()> wake_;
  std::mutex mutex_;
  std::condition_variable space_;
  std::string buffer_;
  bool closed_ = false;
  int error_ = 0; // main thread only
};

} // namespace ring3::vmm
