// SPDX-License-Identifier: Apache-2.0
// Encodes the host's standard input for the terminal of `-- CMD` (see initramfs.h): any byte string passes
// through a canonical Linux terminal, and so does its end.
#pragma once

#include "base/types.h"

#include <span>
#include <vector>

namespace ring3::vmm {

class InputEncoder {
 public:
  // Appends the encoded form of `bytes` to `out`.
  void encode(std::span<const u8> bytes, std::vector<u8>& out);
  // Appends the end of file. The terminal forgets an end of file once one read has seen it, unlike a pipe, so
  // several are sent for commands that read on.
  void end(std::vector<u8>& out);

 private:
  std::size_t line_length_ = 0; // bytes since the terminal last handed data on
};

} // namespace ring3::vmm
