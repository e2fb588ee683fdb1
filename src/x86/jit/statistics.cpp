// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/statistics.h"

#include "x86/decode/decoded.h"
#include "x86/jit/translated_block.h"

#include <algorithm>
#include <fmt/format.h>
#include <functional>

namespace ring3::x86::jit {

namespace {

// In the order of Statistics::left.
constexpr std::array<const char*, Statistics::ways_out> way_out = {"head",     "link",      "jump",
                                                                   "indirect", "interpret", "handler"};
static_assert(static_cast<unsigned>(Exit::Kind::interpret) == Statistics::ways_out - 2);

} // namespace

std::vector<std::pair<std::string, u64>> Statistics::most_handled(unsigned count) const {
  std::vector<std::pair<u64, unsigned>> all;
  for (unsigned m = 0; m < mnemonics; ++m) {
    if (const u64 n = handled[m].value(); n != 0) all.emplace_back(n, m);
  }
  std::ranges::sort(all, std::greater{});
  std::vector<std::pair<std::string, u64>> out;
  for (const auto& [n, m] : all) {
    if (out.size() == count) break;
    out.emplace_back(mnemonic_name(static_cast<u16>(m)), n);
  }
  return out;
}

std::string Statistics::json() const {
  std::string by_name;
  for (const auto& [name, n] : most_handled(mnemonics))
    by_name += fmt::format("{}\"{}\":{}", by_name.empty() ? "" : ",", name, n);
  std::string ways;
  for (unsigned i = 0; i < ways_out; ++i)
    ways += fmt::format("{}\"{}\":{}", i != 0 ? "," : "", way_out[i], left[i].value());
  return fmt::format(
      R"("translator":{{"translations":{},"instructions":{},"improved":{},"host_bytes":{},"cold_bytes":{},"nanoseconds":{},)"
      R"("flushes":{},"entries":{},"refreshes":{},"interpreted":{},"missed":{},)"
      R"("left":{{{}}},"handled":{{{}}}}})",
      translations.value(), instructions.value(), improved.value(), host_bytes.value(), cold_bytes.value(),
      nanoseconds.value(), flushes.value(), entries.value(), refreshes.value(), interpreted.value(),
      missed.value(), ways, by_name);
}

std::vector<std::string> Statistics::lines() const {
  constexpr unsigned shown = 12;
  std::vector<std::string> out;
  out.push_back(
      fmt::format("{} blocks translated, {} of them since they were hot, {} entered by the dispatcher, "
                  "{} refreshes of the jump tables",
                  translations.value(), improved.value(), entries.value(), refreshes.value()));
  out.push_back(
      fmt::format("{} instructions translated to {} bytes in {} microseconds, and {} bytes that are "
                  "seldom executed; cache emptied {} times",
                  instructions.value(), host_bytes.value(), nanoseconds.value() / 1000, cold_bytes.value(),
                  flushes.value() - (flushes.value() != 0 ? 1 : 0)));
  std::string ways;
  for (unsigned i = 0; i < ways_out; ++i) ways += fmt::format(" {} {}", way_out[i], left[i].value());
  out.push_back("left because of:" + ways);
  out.push_back(fmt::format("{} instructions interpreted, {} more because they missed the TLB or might fault",
                            interpreted.value(), missed.value()));
  std::string names;
  for (const auto& [name, n] : most_handled(shown)) names += fmt::format(" {} {}", name, n);
  if (!names.empty()) out.push_back("never translated:" + names);
  return out;
}

} // namespace ring3::x86::jit
