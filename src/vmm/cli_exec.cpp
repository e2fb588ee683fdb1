// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/parse_options.h"
#include "vmm/preload.h"
#include "x86/api/system.h"

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

namespace ring3::vmm {

namespace {

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + '\'';
}

} // namespace

int cli_exec(const ExecOptions& options) {
  const auto variables = preload_environment({options.cpu, options.vendor, options.stats, options.engine});
  if (!variables) return report(variables.error());
  if (const auto ok = check_preloadable(options.command.front()); !ok) return report(ok.error());
  if (const auto ok = x86::check_host(); !ok) return report(ok.error());
  if (const auto ok = x86::check_engine(*parse_engine(options.engine)); !ok) return report(ok.error());
  if (!options.stats.empty()) {
    // Now, because the library inside the program has nobody to tell.
    if (const int fd = open(options.stats.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        fd >= 0) {
      close(fd);
    } else {
      return report({fmt::format("cannot write '{}': {}", options.stats, std::strerror(errno)),
                     "give --stats a file that can be written", exit_usage});
    }
  }
  std::string model;
  for (const auto& [name, value] : *variables) {
    if (name == "RING3_CPU") model = value;
    setenv(name.c_str(), value.c_str(), 1);
  }
  if (!options.quiet) {
    std::fputs(
        fmt::format("ring3: /dev/kvm is a software CPU ({}) inside {}\n", model, options.command.front())
            .c_str(),
        stderr);
  }
  std::vector<char*> arguments;
  for (const std::string& a : options.command) arguments.push_back(const_cast<char*>(a.c_str()));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  return report({fmt::format("cannot run '{}': {}", options.command.front(), std::strerror(errno)),
                 "check that it is a program", errno == ENOENT ? 127 : 126});
}

int cli_env(const ExecOptions& options) {
  const auto variables = preload_environment({options.cpu, options.vendor, options.stats, options.engine});
  if (!variables) return report(variables.error());
  std::string text;
  for (const auto& [name, value] : *variables)
    text += fmt::format("export {}={}\n", name, shell_quoted(value));
  return std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0 ? exit_host_error : exit_ok;
}

} // namespace ring3::vmm
