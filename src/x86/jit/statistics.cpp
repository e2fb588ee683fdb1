// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/statistics.h"

#include "x86/decode/decoded.h"

#include <algorithm>
#include <fmt/format.h>
#include <functional>

namespace ring3::x86::jit {

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
  return fmt::format(R"("translator":{{"translations":{},"flushes":{},"entries":{},"refreshes":{},)"
                     R"("interpreted":{},"missed":{},"handled":{{{}}}}})",
                     translations.value(), flushes.value(), entries.value(), refreshes.value(),
                     interpreted.value(), missed.value(), by_name);
}

std::vector<std::string> Statistics::lines() const {
  constexpr unsigned shown = 12;
  std::vector<std::string> out;
  out.push_back(
      fmt::format("{} blocks translated, {} entered by the dispatcher, {} refreshes of the jump tables",
                  translations.value(), entries.value(), refreshes.value()));
  out.push_back(fmt::format("{} instructions interpreted, {} more because they missed the TLB or might fault",
                            interpreted.value(), missed.value()));
  std::string names;
  for (const auto& [name, n] : most_handled(shown)) names += fmt::format(" {} {}", name, n);
  if (!names.empty()) out.push_back("never translated:" + names);
  return out;
}

} // namespace ring3::x86::jit
