// SPDX-License-Identifier: Apache-2.0
#include "vmm/session.h"

#include "vmm/initramfs.h"

#include <array>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <fmt/format.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/signalfd.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

constexpr int stdin_fd = 0;
constexpr std::chrono::milliseconds stop_patience{3000};
constexpr int hurried_drain_ms = 200; // after a signal: what a reader takes at once, it gets

sigset_t session_signals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int s : {SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGTSTP}) sigaddset(&set, s);
  return set;
}

} // namespace

Result<std::unique_ptr<HostEvents>> HostEvents::create() {
  for (const int s : {SIGPIPE, SIGTTIN, SIGTTOU}) std::signal(s, SIG_IGN);
  const sigset_t set = session_signals();
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  const int wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  const int signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
  std::unique_ptr<HostEvents> events(new HostEvents(wake_fd, signal_fd));
  if (wake_fd < 0 || signal_fd < 0)
    return fail(fmt::format("cannot make event descriptors: {}", std::strerror(errno)),
                "raise the limit (ulimit -n)");
  return events;
}

HostEvents::~HostEvents() {
  if (wake_fd_ >= 0) close(wake_fd_);
  if (signal_fd_ >= 0) close(signal_fd_);
}

void HostEvents::wake() {
  const u64 one = 1;
  // Fails only when the counter is full, and then the main thread is awake anyway.
  [[maybe_unused]] const ssize_t n = write(wake_fd_, &one, sizeof one);
}

void HostEvents::clear_wake() {
  u64 count;
  [[maybe_unused]] const ssize_t n = read(wake_fd_, &count, sizeof count);
}

std::optional<int> HostEvents::next_signal() {
  signalfd_siginfo info;
  if (read(signal_fd_, &info, sizeof info) != sizeof info) return std::nullopt;
  return static_cast<int>(info.ssi_signo);
}

bool ReadyFilter::pass(u8 byte) {
  if (ready_.load(std::memory_order_relaxed)) return true;
  // What is matched so far may hold the marker's start again: the longest such rest is where matching goes
  // on.
  const auto rest = [](std::size_t n) {
    std::size_t k = n - 1;
    while (ready_marker.substr(0, k) != ready_marker.substr(n - k, k)) --k;
    return k;
  };
  while (matched_ != 0 && static_cast<char>(byte) != ready_marker[matched_]) matched_ = rest(matched_);
  if (static_cast<char>(byte) == ready_marker[matched_] && ++matched_ == ready_marker.size()) ready_ = true;
  return false;
}

Session::Session(Machine& machine, const kvm::Clock& clock, HostEvents& events, OutputStream& out,
                 OutputStream& err, InputMode mode, const ReadyFilter& ready)
    : machine_(machine), clock_(clock), events_(events), out_(out), err_(err), mode_(mode), ready_(ready) {
  if (mode_ == InputMode::console && isatty(stdin_fd)) terminal_.emplace(stdin_fd);
}

bool Session::wants_input() {
  if (mode_ == InputMode::none || input_ended_ || !pending_.empty()) return false;
  if (mode_ == InputMode::command && !ready_.ready()) return false;
  return input_port().input_room() != 0;
}

void Session::feed() {
  if (pending_.empty()) return;
  const std::size_t n = input_port().input(pending_);
  pending_.erase(pending_.begin(), pending_.begin() + static_cast<std::ptrdiff_t>(n));
}

void Session::read_input(SessionEnd& end, bool& ended) {
  std::array<u8, 2048> buffer;
  const ssize_t n = read(stdin_fd, buffer.data(), buffer.size());
  if (n < 0 && (errno == EINTR || errno == EAGAIN)) return;
  if (n <= 0) { // the end, or nothing to be had from it (a background job's terminal)
    input_ended_ = true;
    if (mode_ == InputMode::command) encoder_.end(pending_);
    return;
  }
  const std::span<const u8> bytes(buffer.data(), static_cast<std::size_t>(n));
  if (mode_ == InputMode::command) {
    encoder_.encode(bytes, pending_);
  } else if (terminal_) {
    if (escape_.filter(bytes, pending_)) {
      end = {SessionEnd::Kind::user, 0, {}, 0};
      ended = true;
    }
  } else {
    pending_.insert(pending_.end(), bytes.begin(), bytes.end());
  }
}

bool Session::handle_signals(SessionEnd& end) {
  while (const std::optional<int> signal_number = events_.next_signal()) {
    if (*signal_number != SIGTSTP) {
      end = {SessionEnd::Kind::signal, *signal_number, {}, 0};
      return true;
    }
    if (terminal_) terminal_->suspend();
    raise(SIGSTOP); // the whole process stops here until SIGCONT
    if (terminal_) terminal_->resume();
  }
  return false;
}

bool Session::write_outputs(SessionEnd& end, short out_events, short err_events) {
  constexpr short writable = POLLOUT | POLLERR | POLLHUP | POLLNVAL;
  if ((out_events & writable) && !out_.write_some()) {
    end = {SessionEnd::Kind::output_failed, 0, "standard output", out_.error()};
    return false;
  }
  // Losing standard error is no reason to end the guest: the stream has closed itself.
  if (err_events & writable) err_.write_some();
  return true;
}

SessionEnd Session::run() {
  SessionEnd end{SessionEnd::Kind::guest, 0, {}, 0};
  bool ended = false;
  while (!ended && !machine_.outcome()) {
    feed();
    const std::optional<u64> deadline = machine_.service_devices();
    timespec timeout{};
    if (deadline) {
      const u64 now = clock_.now_ns();
      const u64 wait = *deadline > now ? *deadline - now : 0;
      timeout.tv_sec = static_cast<time_t>(wait / 1'000'000'000);
      timeout.tv_nsec = static_cast<long>(wait % 1'000'000'000);
    }
    std::array<pollfd, 5> polls = {{{events_.wake_fd(), POLLIN, 0},
                                    {events_.signal_fd(), POLLIN, 0},
                                    {wants_input() ? stdin_fd : -1, POLLIN, 0},
                                    {out_.has_data() ? out_.fd() : -1, POLLOUT, 0},
                                    {err_.has_data() ? err_.fd() : -1, POLLOUT, 0}}};
    if (ppoll(polls.data(), polls.size(), deadline ? &timeout : nullptr, nullptr) < 0) continue; // EINTR
    if (polls[0].revents) events_.clear_wake();
    if (polls[1].revents && handle_signals(end)) return end;
    if (polls[2].revents) read_input(end, ended);
    if (!write_outputs(end, polls[3].revents, polls[4].revents)) return end;
  }
  return end;
}

bool Session::finish(SessionEnd& end) {
  machine_.request_stop();
  while (end.kind == SessionEnd::Kind::guest && (out_.has_data() || err_.has_data())) {
    std::array<pollfd, 3> polls = {{{events_.signal_fd(), POLLIN, 0},
                                    {out_.has_data() ? out_.fd() : -1, POLLOUT, 0},
                                    {err_.has_data() ? err_.fd() : -1, POLLOUT, 0}}};
    if (poll(polls.data(), polls.size(), -1) < 0) continue;
    if (polls[0].revents && handle_signals(end)) break;
    if (!write_outputs(end, polls[1].revents, polls[2].revents)) break;
  }
  if (end.kind != SessionEnd::Kind::guest) {
    out_.drain(hurried_drain_ms);
    err_.drain(hurried_drain_ms);
  }
  out_.close();
  err_.close();
  terminal_.reset();
  return machine_.stop(stop_patience);
}

} // namespace ring3::vmm
