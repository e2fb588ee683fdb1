// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/doctor.h"

#include <algorithm>
#include <cstdio>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

namespace ring3::vmm {
namespace {

using Json = nlohmann::ordered_json;

const char* word(Finding::Status s) {
  switch (s) {
  case Finding::Status::ok: return "ok";
  case Finding::Status::note: return "note";
  default: return "problem";
  }
}

std::string line(Finding::Status status, const std::string& name, const std::string& text,
                 const std::string& fix) {
  std::string out = fmt::format("{:8} {:20} {}\n", word(status), name, text);
  if (!fix.empty()) out += fmt::format("{:8} {:20} fix: {}\n", "", "", fix);
  return out;
}

Json entry(Finding::Status status, const std::string& name, const std::string& text, const std::string& fix) {
  Json e{{"name", name}, {"status", word(status)}, {"text", text}};
  if (!fix.empty()) e["fix"] = fix;
  return e;
}

} // namespace

int cli_doctor(const DoctorOptions& options) {
  const auto host = examine_host();
  const auto vmms = find_vmms();
  std::string text;
  if (options.json) {
    Json all{{"host", Json::array()}, {"vmms", Json::array()}};
    for (const Finding& f : host) all["host"].push_back(entry(f.status, f.name, f.text, f.fix));
    for (const FoundVmm& v : vmms) {
      Json e = entry(v.status, v.name, v.text, v.fix);
      e["path"] = v.path;
      all["vmms"].push_back(std::move(e));
    }
    text = all.dump(2) + '\n';
  } else {
    text = "This host:\n";
    for (const Finding& f : host) text += line(f.status, f.name, f.text, f.fix);
    text += "\nPrograms that use /dev/kvm:\n";
    for (const FoundVmm& v : vmms) text += line(v.status, v.name, v.text, v.fix);
    if (vmms.empty()) text += "none found in PATH\n";
  }
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0) return exit_host_error;
  const bool healthy =
      std::ranges::none_of(host, [](const Finding& f) { return f.status == Finding::Status::problem; });
  return healthy ? exit_ok : exit_host_error;
}

} // namespace ring3::vmm
