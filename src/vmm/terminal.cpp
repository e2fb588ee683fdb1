// SPDX-License-Identifier: Apache-2.0
#include "vmm/terminal.h"

#include <atomic>
#include <csignal>
#include <cstdlib>
#include <termios.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

// Reached from signal handlers, hence global and async-signal-safe throughout.
termios saved_settings;
int terminal_fd = -1;
std::atomic<bool> is_raw = false;

void restore() {
  if (is_raw.exchange(false)) tcsetattr(terminal_fd, TCSANOW, &saved_settings);
}

extern "C" void restore_and_die(int signal_number) {
  restore();
  // SA_RESETHAND has put the default action back.
  raise(signal_number);
}

void make_raw() {
  termios raw = saved_settings;
  cfmakeraw(&raw);
  is_raw = true;
  tcsetattr(terminal_fd, TCSANOW, &raw);
}

} // namespace

RawTerminal::RawTerminal(int fd) {
  if (tcgetattr(fd, &saved_settings) != 0) return;
  terminal_fd = fd;
  static const bool registered = std::atexit(restore) == 0;
  (void)registered;
  for (const int signal_number : {SIGABRT, SIGSEGV, SIGBUS, SIGILL, SIGFPE}) {
    struct sigaction current {};
    // Whoever handles the signal already, handles it.
    if (sigaction(signal_number, nullptr, &current) != 0 || current.sa_handler != SIG_DFL) continue;
    struct sigaction action {};
    action.sa_handler = restore_and_die;
    action.sa_flags = static_cast<int>(SA_RESETHAND);
    sigaction(signal_number, &action, nullptr);
  }
  make_raw();
}

RawTerminal::~RawTerminal() { restore(); }
void RawTerminal::suspend() { restore(); }
void RawTerminal::resume() {
  if (terminal_fd >= 0) make_raw();
}

bool ConsoleEscape::filter(std::span<const u8> typed, std::vector<u8>& out) {
  constexpr u8 escape = 0x01;
  for (const u8 byte : typed) {
    if (!escaped_) {
      if (byte == escape)
        escaped_ = true;
      else
        out.push_back(byte);
      continue;
    }
    escaped_ = false;
    if (byte == 'x' || byte == 'X') return true;
    if (byte == escape) out.push_back(escape);
  }
  return false;
}

} // namespace ring3::vmm
