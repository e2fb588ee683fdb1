// SPDX-License-Identifier: Apache-2.0
#include "vmm/parse_options.h"

#include "vmm/guest_ram.h"

#include <charconv>
#include <fmt/format.h>

namespace ring3::vmm {

Result<u64> parse_memory(std::string_view text) {
  const std::string fix = "give a size such as 512M or 4G";
  u64 number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
  if (error != std::errc{} || end == text.data())
    return fail(fmt::format("--memory '{}' is not a size", text), fix, exit_usage);
  unsigned shift = 0;
  if (suffix.empty()) {
    shift = number < 65536 ? 20 : 0;
  } else {
    switch (suffix.front()) {
    case 'k':
    case 'K': shift = 10; break;
    case 'm':
    case 'M': shift = 20; break;
    case 'g':
    case 'G': shift = 30; break;
    case 't':
    case 'T': shift = 40; break;
    default: return fail(fmt::format("--memory '{}' has an unknown suffix", text), fix, exit_usage);
    }
    suffix.remove_prefix(1);
    if (!suffix.empty() && suffix != "B" && suffix != "iB" && suffix != "b")
      return fail(fmt::format("--memory '{}' has an unknown suffix", text), fix, exit_usage);
  }
  if (number > (max_memory >> shift))
    return fail(fmt::format("--memory {} is too much; the most is {}T", text, max_memory / gib / 1024), fix,
                exit_usage);
  const u64 bytes = number << shift;
  if (bytes < min_memory)
    return fail(fmt::format("--memory {} is too little; the least is {}M", text, min_memory / mib), fix,
                exit_usage);
  return bytes;
}

Result<u32> parse_cpus(std::string_view text) {
  const std::string fix = fmt::format("give a number from 1 to {}", max_cpus);
  u32 number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc::result_out_of_range || (error == std::errc{} && number > max_cpus))
    return fail(fmt::format("--cpus {} is too many", text), fix, exit_usage);
  if (error != std::errc{} || end != text.data() + text.size() || number == 0)
    return fail(fmt::format("--cpus '{}' is not a number of CPUs", text), fix, exit_usage);
  return number;
}

Result<pid_t> parse_pid(std::string_view text) {
  pid_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size() || number <= 0)
    return fail(fmt::format("'{}' is not the number of a process", text),
                "give PIDs, such as: ring3 stat 1234", exit_usage);
  return number;
}

Result<x86::Engine> parse_engine(std::string_view text) {
  const auto engine = text.empty() ? x86::default_engine : x86::find_engine(text);
  if (!engine)
    return fail(fmt::format("there is no engine '{}'", text), "use --engine jit, interp or lockstep",
                exit_usage);
  return *engine;
}

} // namespace ring3::vmm
