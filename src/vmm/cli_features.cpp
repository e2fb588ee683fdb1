// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include "vmm/parse_options.h"
#include "x86/cpu/cpuid_model.h"

#include <algorithm>
#include <cstdio>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

namespace ring3::vmm {
namespace {

std::vector<std::string_view> sorted_features(std::string_view model) {
  std::vector<std::string_view> all = x86::model_features(model);
  std::ranges::sort(all);
  return all;
}

std::string wrapped(const std::vector<std::string_view>& words, std::size_t width) {
  std::string text, line(1, ' ');
  for (std::string_view word : words) {
    if (line.size() + 1 + word.size() > width) {
      text += line + '\n';
      line.assign(1, ' ');
    }
    line += ' ';
    line += word;
  }
  return text + line + '\n';
}

} // namespace

int cli_features(const FeaturesOptions& options) {
  std::vector<x86::ModelInfo> models;
  std::vector<std::string_view> names;
  for (const x86::ModelInfo& m : x86::cpu_models()) {
    names.push_back(m.name);
    if (options.cpu.empty() || options.cpu == m.name) models.push_back(m);
  }
  if (models.empty())
    return report({fmt::format("there is no CPU model '{}'", options.cpu),
                   fmt::format("use one of: {}", fmt::join(names, ", ")), exit_usage});
  std::string text;
  if (options.json) {
    nlohmann::ordered_json all = nlohmann::ordered_json::array();
    for (const x86::ModelInfo& m : models)
      all.push_back({{"name", m.name},
                     {"vendor", m.vendor},
                     {"description", m.description},
                     {"features", sorted_features(m.name)}});
    text = nlohmann::ordered_json{{"models", all}}.dump(2) + '\n';
  } else {
    for (const x86::ModelInfo& m : models) {
      text += fmt::format("{} ({}): {}\n", m.name, m.vendor, m.description);
      text += wrapped(sorted_features(m.name), 100);
    }
  }
  if (std::fputs(text.c_str(), stdout) < 0 || std::fflush(stdout) != 0)
    return report({"cannot write to standard output", "check what it is connected to", exit_host_error});
  return exit_ok;
}

} // namespace ring3::vmm
