// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/statistics.h"

#include "base/fingerprint.h"
#include "x86/decode/decoded.h"
#include "x86/jit/translated_block.h"

#include <algorithm>
#include <fmt/format.h>
#include <functional>
#include <string_view>

namespace ring3::x86::jit {

namespace {

struct Named {
  const char* name;
  Counter Statistics::*counter;
};
constexpr std::array counters = {
    Named{"translations", &Statistics::translations}, Named{"instructions", &Statistics::instructions},
    Named{"improved", &Statistics::improved},         Named{"host_bytes", &Statistics::host_bytes},
    Named{"cold_bytes", &Statistics::cold_bytes},     Named{"nanoseconds", &Statistics::nanoseconds},
    Named{"flushes", &Statistics::flushes},           Named{"compared", &Statistics::compared},
    Named{"entries", &Statistics::entries},           Named{"refreshes", &Statistics::refreshes},
    Named{"interpreted", &Statistics::interpreted},   Named{"missed", &Statistics::missed},
};
static_assert(sizeof(Statistics) ==
              (counters.size() + Statistics::ways_out + Statistics::mnemonics) * sizeof(Counter));

// In the order of Statistics::left.
constexpr std::array<const char*, Statistics::ways_out> way_out = {"head",     "link",      "jump",
                                                                   "indirect", "interpret", "handler"};
static_assert(static_cast<unsigned>(Exit::Kind::interpret) == Statistics::ways_out - 2);

} // namespace

Statistics& Statistics::in(std::span<std::byte> memory) {
  return *reinterpret_cast<Statistics*>(memory.data());
}
const Statistics& Statistics::in(std::span<const std::byte> memory) {
  return *reinterpret_cast<const Statistics*>(memory.data());
}

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
  std::string out = "\"translator\":{";
  for (const auto& [name, counter] : counters)
    out += fmt::format("\"{}\":{},", name, (this->*counter).value());
  out += "\"left\":{";
  for (unsigned i = 0; i < ways_out; ++i)
    out += fmt::format("{}\"{}\":{}", i != 0 ? "," : "", way_out[i], left[i].value());
  out += "},\"handled\":{";
  std::string_view separator;
  for (const auto& [name, n] : most_handled(mnemonics)) {
    out += fmt::format("{}\"{}\":{}", separator, name, n);
    separator = ",";
  }
  return out + "}}";
}

u64 Statistics::layout() {
  static const u64 value = [] {
    Fingerprint f;
    const auto place = [](const auto& member, const Statistics& s) {
      return static_cast<u64>(reinterpret_cast<const std::byte*>(&member) -
                              reinterpret_cast<const std::byte*>(&s));
    };
    const Statistics s;
    for (const auto& [name, counter] : counters) f.add(name).add(place(s.*counter, s));
    for (const char* const name : way_out) f.add(name);
    f.add(place(s.left, s)).add(place(s.handled, s)).add(mnemonics);
    for (unsigned m = 0; m < mnemonics; ++m) f.add(mnemonic_name(static_cast<u16>(m))); // the decoder's
    return f.value();
  }();
  return value;
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
