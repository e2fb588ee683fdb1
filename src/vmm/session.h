// SPDX-License-Identifier: Apache-2.0
// The main thread's side of a run: moves bytes between the host's descriptors and the guest's serial ports,
// serves device deadlines and signals, and ends the machine.
#pragma once

#include "vmm/input_encoder.h"
#include "vmm/machine.h"
#include "vmm/output_stream.h"
#include "vmm/terminal.h"

#include <optional>
#include <string_view>

namespace ring3::vmm {

// Wakes the main thread. Signals SIGINT, SIGTERM, SIGHUP, SIGQUIT and SIGTSTP are blocked in this thread, and
// so in those it starts, and read from a descriptor instead; SIGPIPE, SIGTTIN and SIGTTOU are ignored.
class HostEvents {
 public:
  static Result<std::unique_ptr<HostEvents>> create();
  ~HostEvents();
  HostEvents(const HostEvents&) = delete;
  HostEvents& operator=(const HostEvents&) = delete;

  void wake(); // any thread
  void clear_wake();
  int wake_fd() const { return wake_fd_; }
  int signal_fd() const { return signal_fd_; }
  // The next signal that is waiting, if any.
  std::optional<int> next_signal();

 private:
  HostEvents(int wake_fd, int signal_fd) : wake_fd_(wake_fd), signal_fd_(signal_fd) {}
  int wake_fd_, signal_fd_;
};

// Drops the guest's output up to and including ready_marker, then lets the rest through.
class ReadyFilter {
 public:
  // True when `byte` is to be passed on.
  bool pass(u8 byte);
  bool ready() const { return ready_; }

 private:
  std::size_t matched_ = 0;
  std::atomic<bool> ready_ = false; // written by vCPU threads, read by the main thread
};

enum class InputMode {
  none,
  console, // bytes as they are to COM1; with escape sequences and raw mode when it is a terminal
  command  // encoded for COM2, once the guest is ready
};

struct SessionEnd {
  enum class Kind { guest, signal, user, output_failed };
  Kind kind;
  int signal_number = 0;
  std::string_view failed_stream; // output_failed
  int error = 0;
};

class Session {
 public:
  Session(Machine& machine, const kvm::Clock& clock, HostEvents& events, OutputStream& out, OutputStream& err,
          InputMode mode, const ReadyFilter& ready);

  // Until the guest ends, a signal comes or the user leaves. The vCPUs still run when this returns.
  SessionEnd run();
  // Stops the vCPUs and writes out what the guest has said. After a guest's own end it waits for a slow
  // reader (until a signal); otherwise at most briefly. False when a vCPU thread did not end: only _exit() is
  // left.
  [[nodiscard]] bool finish(SessionEnd& end);

 private:
  bool wants_input();
  void read_input(SessionEnd& end, bool& ended);
  void feed();
  bool handle_signals(SessionEnd& end);
  bool write_outputs(SessionEnd& end, short out_events, short err_events);
  device::Serial& input_port() { return machine_.serial(mode_ == InputMode::command ? 1 : 0); }

  Machine& machine_;
  const kvm::Clock& clock_;
  HostEvents& events_;
  OutputStream& out_;
  OutputStream& err_;
  InputMode mode_;
  const ReadyFilter& ready_;
  std::optional<RawTerminal> terminal_;
  ConsoleEscape escape_;
  InputEncoder encoder_;
  std::vector<u8> pending_; // input for the guest that its port had no room for
  bool input_ended_ = false;
};

} // namespace ring3::vmm
