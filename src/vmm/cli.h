// SPDX-License-Identifier: Apache-2.0
// The command line: `ring3 run`, `exec`, `env`, `stat`, `doctor`, `features`. Errors are one line with a
// second one that says what to do.
#pragma once

#include "base/error.h"

#include <span>
#include <string>
#include <vector>

namespace ring3::vmm {

// Exit codes besides the guest command's own and isa-debug-exit's value * 2 + 1. docs: `ring3 run --help`.
constexpr int exit_ok = 0;
constexpr int exit_host_error = 1;
constexpr int exit_triple_fault = 70;
constexpr int exit_no_result = 71; // the guest ended before the command reported its exit code, or it crashed
constexpr int exit_guest_reset = 72;
constexpr int exit_signal_base = 128;

struct RunOptions {
  std::string kernel, initrd, append; // empty: not given
  std::string memory = "512M", cpus = "1", cpu = "max", engine;
  bool quiet = false, verbose = false, stats = false, debug_console = false;
  bool has_command = false;
  std::vector<std::string> command;
};

struct FeaturesOptions {
  std::string cpu; // empty: all models
  bool json = false;
};

struct ExecOptions {
  std::string cpu, vendor, stats, engine; // empty: not given
  bool quiet = false;
  std::vector<std::string> command; // for `env`: none
};

struct DoctorOptions {
  bool json = false;
};

struct StatOptions {
  std::vector<std::string> pids; // empty: all processes
  bool json = false;
};

int cli_main(std::span<const std::string> arguments); // without the program's name
int cli_run(const RunOptions& options);
int cli_features(const FeaturesOptions& options);
int cli_exec(const ExecOptions& options); // returns only with an error
int cli_env(const ExecOptions& options);
int cli_stat(const StatOptions& options);
int cli_doctor(const DoctorOptions& options); // exit_host_error if something will not work

// Prints "ring3: error: ..." and "fix: ..." and returns the error's exit code.
int report(const Error& error);

} // namespace ring3::vmm
