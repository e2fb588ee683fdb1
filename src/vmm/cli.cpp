// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/parse_options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>

#ifndef RING3_VERSION
#define RING3_VERSION "0.1.0"
#endif

namespace ring3::vmm {
namespace {

constexpr const char* run_footer =
    R"(Everything after -- is a command that runs in the guest as root, in a RAM disk with
busybox. Its standard input, output and error are ours, and so is its exit code.
Without a command the guest's serial console is connected: Ctrl-A X leaves.

Exit codes: the command's own; 0 the guest powered off; 2 x value + 1 for a write to
port 0xf4; 1 an error on the host; 2 bad usage; 70 triple fault; 71 the guest ended
without reporting a result; 72 the guest reset itself; 130, 143 ended by SIGINT, SIGTERM.

Environment: RING3_CACHE (kernels; otherwise $XDG_CACHE_HOME/ring3 or ~/.cache/ring3),
RING3_QUIET=1 (as --quiet).

Examples:
  ring3 run -- uname -a
  ring3 run --cpus 2 --memory 1G
  ring3 run --kernel x86/msr.flat --quiet)";

constexpr const char* exec_footer =
    R"(PROGRAM and everything it starts see a /dev/kvm that needs no hardware and no privilege.
Exit codes: the program's own; 1 an error on the host; 2 bad usage; 126 the program cannot
be run like this (static, set-user-ID, not x86-64); 127 there is no such program.

Environment: RING3_QUIET=1 (as --quiet).

Examples:
  ring3 exec -- qemu-system-x86_64 -accel kvm -nographic -kernel vmlinuz
  ring3 exec --vendor amd -- ./x86_64/state_test)";

constexpr const char* stat_footer =
    R"(Shows processes with vCPUs of ring3, `ring3 run` and programs under `ring3 exec`: for each
vCPU the instructions and exits so far, how much was translated, why translated code was left,
and which instructions their handlers always do. Without PID: all that you may look at. The
processes are not disturbed. Numbers are some thousand instructions old at most while a vCPU
runs. --json prints a list of processes, each with its vCPUs as `ring3 exec --stats` has them.

Exit codes: 0 something was shown (with --json and without PID: the list, which may be empty);
1 nothing to show, or a PID that cannot be shown (others are); 2 bad usage.

Examples:
  ring3 stat
  ring3 stat $(pidof qemu-system-x86_64)
  ring3 stat --json | jq '.[].vcpus[].translator.handled')";

void add_engine_option(CLI::App& app, std::string& engine) {
  app.add_option("--engine", engine,
                 "What executes guest code: jit translates it to host code (default), interp interprets it, "
                 "lockstep does both and compares (slow)")
      ->type_name("ENGINE");
}

void add_exec_options(CLI::App& app, ExecOptions& options) {
  app.add_option("--cpu", options.cpu,
                 "What KVM_GET_SUPPORTED_CPUID offers: a model (see ring3 features), host or max")
      ->type_name("MODEL[,+F,-F]");
  app.add_option("--vendor", options.vendor, "intel or amd; default: the host's")->type_name("VENDOR");
  app.add_option("--stats", options.stats,
                 "Append each VM's counters to FILE when it ends, a line of JSON each")
      ->type_name("FILE");
  add_engine_option(app, options.engine);
}

} // namespace

int report(const Error& error) {
  std::fputs(fmt::format("ring3: error: {}\n", error.message).c_str(), stderr);
  if (!error.fix.empty()) std::fputs(fmt::format("fix: {}\n", error.fix).c_str(), stderr);
  return error.exit_code;
}

int cli_main(std::span<const std::string> arguments) {
  RunOptions run_options;
  FeaturesOptions features_options;
  ExecOptions exec_options;
  StatOptions stat_options;
  DoctorOptions doctor_options;

  // The guest's command is taken away first: nothing in it is an option of ours.
  const auto dashes = std::ranges::find(arguments, "--");
  const auto own_count = static_cast<std::size_t>(dashes - arguments.begin());
  if (dashes != arguments.end()) {
    run_options.has_command = true;
    run_options.command.assign(dashes + 1, arguments.end());
  }
  std::vector<std::string> own(arguments.begin(), arguments.begin() + static_cast<std::ptrdiff_t>(own_count));
  std::ranges::reverse(own); // as CLI11 wants them

  CLI::App app("KVM's contract in an ordinary process: virtual machines on a software x86-64 CPU.", "ring3");
  app.set_version_flag("--version", "ring3 " RING3_VERSION);
  app.require_subcommand(1);

  CLI::App* run = app.add_subcommand("run", "Boot a kernel and, with -- CMD ..., run a command in it");
  run->footer(run_footer);
  run->add_option("--kernel", run_options.kernel,
                  "bzImage, PVH or multiboot image; default: the newest Debian kernel at hand")
      ->type_name("FILE");
  run->add_option("--initrd", run_options.initrd, "RAM disk; default: one with busybox, made on the fly")
      ->type_name("FILE");
  run->add_option("--append", run_options.append, "Adds to the kernel's command line")->type_name("TEXT");
  run->add_option("--memory", run_options.memory, "Guest memory: a number with K, M, G or T")
      ->type_name("SIZE")
      ->capture_default_str();
  run->add_option("--cpus", run_options.cpus, "Number of virtual CPUs, 1 to 1024")
      ->type_name("N")
      ->capture_default_str();
  run->add_option("--cpu", run_options.cpu, "CPU model (see ring3 features), then +feature or -feature")
      ->type_name("MODEL[,+F,-F]")
      ->capture_default_str();
  add_engine_option(*run, run_options.engine);
  run->add_flag("--quiet,-q", run_options.quiet, "Only the guest's own output and errors");
  run->add_flag("--verbose,-v", run_options.verbose, "With a command: the kernel's log on standard error");
  run->add_flag("--stats", run_options.stats,
                "At the end: instructions and exits of each CPU on standard error");
  run->add_flag("--debug-console", run_options.debug_console, "The guest's port 0xe9 on standard error");

  CLI::App* features = app.add_subcommand("features", "Show the CPU models and what each offers");
  features->add_option("--cpu", features_options.cpu, "Only this model")->type_name("MODEL");
  features->add_flag("--json", features_options.json, "For programs");

  CLI::App* exec = app.add_subcommand("exec", "Run a program that speaks KVM: exec [OPTIONS] -- PROGRAM ...");
  exec->footer(exec_footer);
  add_exec_options(*exec, exec_options);
  exec->add_flag("--quiet,-q", exec_options.quiet, "Nothing but errors of our own");
  CLI::App* env = app.add_subcommand("env", "Print what `exec` sets, for a shell: eval \"$(ring3 env)\"");
  add_exec_options(*env, exec_options);
  CLI::App* stat = app.add_subcommand("stat", "Show what running vCPUs have done so far: stat [PID ...]");
  stat->footer(stat_footer);
  stat->add_option("PID", stat_options.pids, "Processes; default: all that you may look at")->type_name("");
  stat->add_flag("--json", stat_options.json, "For programs");
  CLI::App* doctor =
      app.add_subcommand("doctor", "Say what this host has and lacks, and which VMMs it could serve");
  doctor->footer("Exit codes: 0; 1 if something will not work.");
  doctor->add_flag("--json", doctor_options.json, "For programs");

  try {
    app.parse(std::move(own));
  } catch (const CLI::Success& e) { // --help, --version
    return app.exit(e);
  } catch (const CLI::ParseError& e) {
    std::string message = e.what();
    std::ranges::replace(message, '\n', ' ');
    return report({message, "see ring3 --help, or ring3 run --help", exit_usage});
  }
  const char* quiet = std::getenv("RING3_QUIET");
  if (quiet != nullptr && *quiet != '\0' && std::string_view(quiet) != "0")
    run_options.quiet = exec_options.quiet = true;
  if (exec->parsed()) {
    exec_options.command = run_options.command;
    if (exec_options.command.empty())
      return report({"no program after --", "give one, such as: ring3 exec -- qemu-system-x86_64 -accel kvm",
                     exit_usage});
    return cli_exec(exec_options);
  }
  if (env->parsed()) {
    if (run_options.has_command)
      return report({"env takes no command", "leave out what follows --", exit_usage});
    return cli_env(exec_options);
  }
  if (stat->parsed()) {
    if (run_options.has_command)
      return report({"stat takes no command", "leave out what follows --", exit_usage});
    return cli_stat(stat_options);
  }
  if (doctor->parsed()) {
    if (run_options.has_command)
      return report({"doctor takes no command", "leave out what follows --", exit_usage});
    return cli_doctor(doctor_options);
  }
  if (features->parsed()) {
    if (run_options.has_command)
      return report({"features takes no command", "leave out what follows --", exit_usage});
    return cli_features(features_options);
  }
  if (run_options.has_command && run_options.command.empty())
    return report({"no command after --", "give one, such as: ring3 run -- uname -a", exit_usage});
  return cli_run(run_options);
}

} // namespace ring3::vmm
