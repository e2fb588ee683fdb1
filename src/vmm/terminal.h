// SPDX-License-Identifier: Apache-2.0
// The host terminal in raw mode, given back on every way out: destruction, exit(), and fatal signals.
#pragma once

#include "base/types.h"

#include <span>
#include <vector>

namespace ring3::vmm {

class RawTerminal {
 public:
  // Saves the settings of the terminal `fd` and switches to raw mode. One at a time in a process.
  explicit RawTerminal(int fd);
  ~RawTerminal();
  RawTerminal(const RawTerminal&) = delete;
  RawTerminal& operator=(const RawTerminal&) = delete;

  // For job control: hand the terminal back, and take it again.
  void suspend();
  void resume();
};

// Finds the escape sequences of the interactive console in what the user types, as QEMU's: Ctrl-A X leaves,
// Ctrl-A Ctrl-A is one Ctrl-A.
class ConsoleEscape {
 public:
  // Appends what is for the guest to `out`; true when the user wants to leave.
  bool filter(std::span<const u8> typed, std::vector<u8>& out);

 private:
  bool escaped_ = false;
};

} // namespace ring3::vmm
