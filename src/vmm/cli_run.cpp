// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/host_files.h"
#include "vmm/initramfs.h"
#include "vmm/machine.h"
#include "vmm/parse_options.h"
#include "vmm/session.h"
#include "x86/api/system.h"
#include "x86/cpu/cpuid_model.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

void say(const std::string& line) { std::fputs((line + '\n').c_str(), stderr); }

// What goes into the guest, read before anything is set up, so that mistakes show at once.
struct Images {
  BootInput boot;
  std::vector<std::byte> kernel, initrd;
  InputMode input = InputMode::console;
};

std::string command_line(const RunOptions& options, KernelFormat format) {
  if (format == KernelFormat::multiboot) return options.append;
  // panic=-1: a panic resets at once, which ends the run. The 8250 driver finds its ports through ACPI.
  std::string line = "console=ttyS0 panic=-1";
  if (options.has_command)
    line += options.verbose ? " loglevel=7" : " quiet loglevel=2"; // 2: panics and oopses
  else if (options.quiet)
    line += " quiet loglevel=3";
  if (!options.append.empty()) line += ' ' + options.append;
  return line;
}

Result<Images> gather(const RunOptions& options) {
  Images images;
  std::string path = options.kernel;
  if (path.empty()) {
    Result<std::string> found = find_kernel();
    if (!found) return std::unexpected(found.error());
    path = std::move(*found);
  }
  Result<std::vector<std::byte>> kernel = read_file(path, "kernel");
  if (!kernel) return std::unexpected(kernel.error());
  images.kernel = std::move(*kernel);
  const Result<KernelFormat> format = sniff_kernel(images.kernel);
  if (!format)
    return fail(fmt::format("{}: {}", path, format.error().message), format.error().fix,
                format.error().exit_code);
  const bool linux_kernel = *format != KernelFormat::multiboot;

  if (options.has_command && (!linux_kernel || !options.initrd.empty()))
    return fail(linux_kernel ? "a command needs ring3's own initrd" : "a command needs a Linux kernel",
                linux_kernel ? "leave out --initrd or the command" : "leave out what follows --", exit_usage);
  images.input = options.has_command ? InputMode::command
                 : linux_kernel      ? InputMode::console
                                     : InputMode::none;
  if (!options.initrd.empty()) {
    Result<std::vector<std::byte>> initrd = read_file(options.initrd, "initrd");
    if (!initrd) return std::unexpected(initrd.error());
    if (initrd->empty())
      return fail(fmt::format("the initrd '{}' is empty", options.initrd), "give a RAM disk image");
    images.initrd = std::move(*initrd);
  } else if (linux_kernel) {
    const Result<std::string> busybox_path = find_busybox();
    if (!busybox_path) return std::unexpected(busybox_path.error());
    const Result<std::vector<std::byte>> busybox = read_file(*busybox_path, "busybox");
    if (!busybox) return std::unexpected(busybox.error());
    InitramfsConfig config{.busybox = *busybox, .command = options.command};
    if (const char* terminal = std::getenv("TERM"); terminal && *terminal) config.terminal = terminal;
    winsize size{};
    if (ioctl(STDIN_FILENO, TIOCGWINSZ, &size) == 0) {
      config.rows = size.ws_row;
      config.columns = size.ws_col;
    }
    images.initrd = build_initramfs(config);
  }
  images.boot.command_line = command_line(options, *format);
  images.boot.kernel_name = path;
  images.boot.initrd_name = options.initrd;
  return images;
}

int exit_code(const RunOptions& options, const Machine& machine, const SessionEnd& end) {
  switch (end.kind) {
  case SessionEnd::Kind::signal: return exit_signal_base + end.signal_number;
  case SessionEnd::Kind::user: return exit_ok;
  case SessionEnd::Kind::output_failed:
    return report({fmt::format("{} failed: {}", end.failed_stream, std::strerror(end.error)),
                   end.error == EPIPE ? "keep its reader open until the guest has ended"
                                      : "check what it is connected to",
                   exit_host_error});
  case SessionEnd::Kind::guest: break;
  }
  const Outcome outcome = machine.outcome().value_or(Outcome{});
  switch (outcome.kind) {
  case Outcome::Kind::command_result: return static_cast<int>(outcome.value);
  case Outcome::Kind::debug_exit: return static_cast<int>((outcome.value << 1 | 1) & 0xff);
  case Outcome::Kind::triple_fault:
    return report({fmt::format("the guest ended in a triple fault ({})", outcome.detail),
                   "add --append earlyprintk=ttyS0 to see how far its kernel gets", exit_triple_fault});
  case Outcome::Kind::crash:
    return report(
        {fmt::format("the guest crashed ({})", outcome.detail), "read its console output", exit_no_result});
  case Outcome::Kind::internal_error:
    return report({fmt::format("the CPU gave up: {}", outcome.detail),
                   "please report this line and the kernel used", exit_host_error});
  case Outcome::Kind::power_off:
  case Outcome::Kind::reset: break;
  }
  const bool reset = outcome.kind == Outcome::Kind::reset;
  if (options.has_command)
    return report(
        {fmt::format("the guest {} without reporting a result", reset ? "reset itself" : "powered off"),
         "run again with --verbose to see the kernel's log", exit_no_result});
  if (!reset) return exit_ok;
  if (!options.quiet) say("ring3: the guest reset itself");
  return exit_guest_reset;
}

void print_stats(const Machine& machine, u64 nanoseconds) {
  const double seconds = static_cast<double>(nanoseconds) / 1e9;
  u64 total = 0, index = 0;
  for (const Machine::CpuStats& s : machine.stats()) {
    say(fmt::format("ring3: stats: cpu {}: {} instructions, {} exits", index, s.instructions, s.exits));
    for (const std::string& line : s.executor) say(fmt::format("ring3: stats: cpu {}: {}", index, line));
    ++index;
    total += s.instructions;
  }
  say(fmt::format("ring3: stats: {:.3f} s, {} instructions, {:.1f} million a second", seconds, total,
                  seconds > 0 ? static_cast<double>(total) / 1e6 / seconds : 0.0));
}

Result<int> run(const RunOptions& options) {
  if (const Result<void> host = x86::check_host(); !host) return std::unexpected(host.error());
  const Result<x86::Engine> engine = parse_engine(options.engine);
  if (!engine) return std::unexpected(engine.error());
  if (const Result<void> ok = x86::check_engine(*engine); !ok) return std::unexpected(ok.error());
  const Result<u64> memory = parse_memory(options.memory);
  if (!memory) return std::unexpected(memory.error());
  const Result<u32> cpus = parse_cpus(options.cpus);
  if (!cpus) return std::unexpected(cpus.error());
  const Result<x86::CpuModelSelection> model = x86::select_cpu_model(options.cpu);
  if (!model) return fail(model.error().message, model.error().fix, exit_usage);
  Result<Images> images = gather(options);
  if (!images) return std::unexpected(images.error());

  Result<std::unique_ptr<HostEvents>> made = HostEvents::create();
  if (!made) return std::unexpected(made.error());
  HostEvents& events = **made;
  const auto wake = [&events] { events.wake(); };
  OutputStream out(STDOUT_FILENO, wake), err(STDERR_FILENO, wake);
  ReadyFilter ready;

  MachineConfig config{
      .memory = *memory, .cpus = *cpus, .cpuid = {}, .serial_sinks = {}, .debug_console = {}, .wake = wake};
  const kvm::HostClock clock;
  config.cpuid = [&model, &clock](u32 index, u32 count) {
    return x86::cpuid_entries(*model, index, count, clock.tsc_khz());
  };
  if (options.has_command) {
    const bool console = !options.quiet;
    config.serial_sinks = {[&err, console](u8 b) {
                             if (console) err.put(b);
                           },
                           [&out, &ready, wake](u8 b) {
                             const bool before = ready.ready();
                             if (ready.pass(b))
                               out.put(b);
                             else if (!before && ready.ready())
                               wake();
                           },
                           [&err](u8 b) { err.put(b); }};
  } else {
    config.serial_sinks = {[&out](u8 b) { out.put(b); }};
  }
  if (options.debug_console) config.debug_console = [&err](u8 b) { err.put(b); };

  // Declared before the machine, and so destroyed after it.
  const std::unique_ptr<kvm::VmApi> vm = x86::create_vm(*engine);
  Result<std::unique_ptr<Machine>> machine = Machine::create(*vm, clock, std::move(config));
  if (!machine) return std::unexpected(machine.error());
  images->boot.kernel = images->kernel;
  images->boot.initrd = images->initrd;
  if (const Result<void> loaded = (*machine)->load(images->boot); !loaded)
    return std::unexpected(loaded.error());
  const InputMode input = images->input;
  *images = {}; // the guest has its own copy; tens of megabytes go back
  if (!options.quiet)
    say("ring3: software CPU (no hardware virtualization is used); --quiet hides this line");

  const u64 start = clock.now_ns();
  Session session(**machine, clock, events, out, err, input, ready);
  Result<void> started = (*machine)->start();
  SessionEnd end{SessionEnd::Kind::user, 0, {}, 0};
  if (started) end = session.run();
  const bool stopped = session.finish(end);
  if (options.stats && stopped) print_stats(**machine, clock.now_ns() - start);
  const int code = started ? exit_code(options, **machine, end) : report(started.error());
  if (!stopped) {
    // A vCPU thread that does not come back must not keep the process; nothing is left to clean up.
    std::fflush(nullptr);
    _exit(code);
  }
  return code;
}

} // namespace

int cli_run(const RunOptions& options) {
  const Result<int> code = run(options);
  return code ? *code : report(code.error());
}

} // namespace ring3::vmm
