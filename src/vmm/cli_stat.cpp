// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/parse_options.h"
#include "vmm/process_stats.h"
#include "x86/api/vcpu_report.h"

#include <cstdio>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace ring3::vmm {
namespace {

using Json = nlohmann::ordered_json;

Result<void> add_json(const ProcessStats& p, Json& list) {
  Json vcpus = Json::array();
  for (const kvm::SeenVcpu& v : p.seen.vcpus) {
    const auto report = x86::VcpuReport::of(v);
    if (!report) return std::unexpected(report.error());
    vcpus.push_back(Json::parse(report->json()));
  }
  list.push_back({{"pid", p.pid},
                  {"command", p.command},
                  {"vcpus", std::move(vcpus)},
                  {"vcpus_not_shown", p.seen.unplaced}});
  return {};
}

Result<void> add_text(const ProcessStats& p, std::string& out) {
  const std::size_t count = p.seen.vcpus.size();
  std::string text = fmt::format("{} {}: {} vCPU{}", p.pid, p.command, count, count == 1 ? "" : "s");
  text +=
      p.seen.unplaced != 0 ? fmt::format(", and {} more that it had no place for\n", p.seen.unplaced) : "\n";
  for (const kvm::SeenVcpu& v : p.seen.vcpus) {
    const auto report = x86::VcpuReport::of(v);
    if (!report) return std::unexpected(report.error());
    const char* indent = "  ";
    for (const std::string& line : report->lines()) {
      text += indent + line + '\n';
      indent = "    ";
    }
  }
  out += text;
  return {};
}

} // namespace

int cli_stat(const StatOptions& options) {
  std::vector<pid_t> pids;
  for (const std::string& text : options.pids) {
    const Result<pid_t> pid = parse_pid(text);
    if (!pid) return report(pid.error());
    pids.push_back(*pid);
  }

  AllProcessStats found;
  std::vector<Error> missed; // of the PIDs
  if (pids.empty()) found = all_process_stats();
  for (const pid_t pid : pids) {
    if (auto one = process_stats(pid))
      found.processes.push_back(std::move(*one));
    else
      missed.push_back(one.error());
  }
  Json list = Json::array();
  std::string text;
  for (const ProcessStats& p : found.processes) {
    const Result<void> shown = options.json ? add_json(p, list) : add_text(p, text);
    if (!shown)
      (pids.empty() ? found.unreadable : missed)
          .push_back({fmt::format("process {}: {}", p.pid, shown.error().message), shown.error().fix});
  }
  for (const Error& error : found.unreadable) report(error);
  for (const Error& error : missed) report(error);
  if (options.json) {
    text = list.dump(2) + '\n';
  } else if (pids.empty() && text.empty()) {
    return report({"no process that you may look at has a vCPU of ring3",
                   "start one with ring3 run, or a VMM with ring3 exec", exit_host_error});
  }
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0)
    return report({"cannot write to standard output", "check what it is connected to", exit_host_error});
  return missed.empty() ? exit_ok : exit_host_error;
}

} // namespace ring3::vmm
