// SPDX-License-Identifier: Apache-2.0
// native-diff: compares instructions with the host processor for as long as one likes, with any seed.
#include "../x86/native/differential.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fmt/format.h>
#include <optional>
#include <string_view>

namespace {

using namespace ring3;
using namespace ring3::x86::native;

struct Options {
  u64 seed = 1;
  double seconds = 30;
  std::string filter;
  std::optional<u64> only;
  u64 show = 20;
  bool list = false, json = false;
};

void usage() {
  std::puts("native-diff [--seed N] [--seconds S] [--filter TEXT] [--case N] [--show N] [--list] [--json]\n"
            "  --filter TEXT  only forms whose disassembly contains TEXT\n"
            "  --case N       only this case of each form, as a report names it\n"
            "  --show N       stop describing differences after N forms\n"
            "  --list         the forms that are compared, and those left out with the reason");
}

bool parse(int argc, char** argv, Options& o) {
  for (int i = 1; i < argc; ++i) {
    const std::string_view a = argv[i];
    if (a == "--list") {
      o.list = true;
    } else if (a == "--json") {
      o.json = true;
    } else if (i + 1 < argc && a == "--seed") {
      o.seed = std::strtoull(argv[++i], nullptr, 0);
    } else if (i + 1 < argc && a == "--seconds") {
      o.seconds = std::strtod(argv[++i], nullptr);
    } else if (i + 1 < argc && a == "--filter") {
      o.filter = argv[++i];
    } else if (i + 1 < argc && a == "--case") {
      o.only = std::strtoull(argv[++i], nullptr, 0);
    } else if (i + 1 < argc && a == "--show") {
      o.show = std::strtoull(argv[++i], nullptr, 0);
    } else {
      return false;
    }
  }
  return true;
}

void list(const FormList& f, bool json) {
  std::map<std::string, std::vector<std::string>> reasons;
  for (const LeftOut& l : f.left_out) reasons[l.reason].push_back(l.name);
  if (json) {
    // Disassembly and reasons hold nothing that JSON would need escaped.
    fmt::print("{{\"covered\": {}, \"left_out\": {}, \"forms\": [", f.forms.size(), f.left_out.size());
    const char* comma = "";
    for (const Form& x : f.forms) {
      fmt::print("{}\n  {{\"form\": \"{}\", \"bits\": {}}}", comma, x.name, x.shape.code_bits);
      comma = ",";
    }
    fmt::print("], \"not_covered\": [");
    comma = "";
    for (const LeftOut& l : f.left_out) {
      fmt::print("{}\n  {{\"form\": \"{}\", \"reason\": \"{}\"}}", comma, l.name, l.reason);
      comma = ",";
    }
    fmt::print("]}}\n");
    return;
  }
  fmt::print("{} forms compared, {} left out\n", f.forms.size(), f.left_out.size());
  for (const auto& [reason, names] : reasons) {
    fmt::print("\n{}: {}\n", reason, names.size());
    for (const std::string& n : names) fmt::print("  {}\n", n);
  }
}

} // namespace

int main(int argc, char** argv) {
  Options o;
  if (!parse(argc, argv, o)) {
    usage();
    return 2;
  }
  Differential d(o.seed);
  if (d.unusable() != nullptr) {
    fmt::print(stderr, "native-diff: {}\n", d.unusable());
    return 2;
  }
  if (!o.filter.empty()) d.filter(o.filter);
  if (o.list) {
    list(d.forms(), o.json);
    return 0;
  }
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  const auto elapsed = [&] { return std::chrono::duration<double>(Clock::now() - start).count(); };
  std::map<u64, bool> failed;
  u64 described = 0;
  constexpr u64 batch = 32;
  for (u64 first = 0; elapsed() < o.seconds; first += batch) {
    for (const Form& f : d.forms().forms) {
      if (failed.contains(f.key)) continue;
      if (!o.only && elapsed() > o.seconds) break;
      std::string report;
      const bool ok = o.only ? d.run(f, *o.only, 1, report) : d.run(f, first, batch, report);
      if (ok) continue;
      failed[f.key] = true;
      if (described++ < o.show) fmt::print("{}\n", report);
    }
    if (o.only || d.forms().forms.empty()) break;
  }
  const Progress& p = d.progress();
  if (o.json) {
    fmt::print("{{\"forms\": {}, \"cases\": {}, \"faults\": {}, \"forms_that_differ\": {}, "
               "\"cases_per_second\": {:.0f}}}\n",
               d.forms().forms.size(), p.cases, p.faults, failed.size(),
               static_cast<double>(p.cases) / elapsed());
  } else {
    fmt::print("{} forms, {} cases ({} of them faults on both), {:.0f} a second; {} forms differ\n",
               d.forms().forms.size(), p.cases, p.faults, static_cast<double>(p.cases) / elapsed(),
               failed.size());
  }
  return failed.empty() ? 0 : 1;
}
