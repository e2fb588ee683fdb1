// SPDX-License-Identifier: Apache-2.0
#include "x86/api/vcpu_report.h"

#include "x86/decode/decoded.h"
#include "x86/jit/statistics.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <limits>

namespace ring3::x86 {
namespace {

using kvm::record_format::Record;

// A record of another process, as if it had been read.
kvm::SeenVcpu seen(std::unique_ptr<Record> record, u64 executor) {
  return {.vm = 2, .vcpu = 5, .executor = executor, .record = std::move(record)};
}

u16 number_of(std::string_view mnemonic) {
  u16 m = 0;
  while (mnemonic_name(m) != mnemonic && m < jit::Statistics::mnemonics) ++m;
  return m;
}

TEST(VcpuReport, ShowsWhatTheTranslatorCounted) {
  auto record = std::make_unique<Record>();
  record->instructions.set(1234567);
  record->stats.mmio_exits.set(17);
  auto& t = jit::Statistics::in(std::span<std::byte>(record->executor));
  t.translations.add(42);
  t.missed.add(43);
  t.left[1].add(44);
  t.handled[number_of("wrmsr")].add(45);
  t.handled[number_of("cpuid")].add(46);
  const kvm::SeenVcpu vcpu = seen(std::move(record), jit::Statistics::layout());
  const auto report = VcpuReport::of(vcpu);
  ASSERT_TRUE(report);
  const std::string json = report->json();
  for (const char* member : {R"({"vm":2,"id":5,"instructions":1234567,)", R"("mmio_exits":17,)",
                             R"("translator":{"translations":42,)", R"("missed":43,)", R"("link":44,)",
                             R"("handled":{"cpuid":46,"wrmsr":45}}})"}) {
    EXPECT_NE(json.find(member), std::string::npos) << member << " in " << json;
  }
  const std::vector<std::string> lines = report->lines();
  ASSERT_GE(lines.size(), 3u);
  EXPECT_TRUE(lines[0].starts_with("VM 2, vCPU 5: 1234567 instructions")) << lines[0];
  EXPECT_NE(lines[1].find("MMIO 17"), std::string::npos) << lines[1];
  EXPECT_EQ(lines.back(), "never translated: cpuid 46 wrmsr 45");
}

TEST(VcpuReport, InterpretedVcpuHasNoTranslator) {
  const kvm::SeenVcpu vcpu = seen(std::make_unique<Record>(), 0);
  const auto report = VcpuReport::of(vcpu);
  ASSERT_TRUE(report);
  EXPECT_EQ(report->json().find("translator"), std::string::npos);
  EXPECT_EQ(report->lines().size(), 2u);
}

TEST(VcpuReport, AnotherBuildsTranslatorIsRefused) {
  for (const u64 executor : {u64{1}, jit::Statistics::layout() + 1}) {
    const kvm::SeenVcpu vcpu = seen(std::make_unique<Record>(), executor);
    const auto report = VcpuReport::of(vcpu);
    ASSERT_FALSE(report);
    EXPECT_NE(report.error().message.find("another build"), std::string::npos);
  }
}

// Whatever numbers somebody writes there.
TEST(VcpuReport, AnyNumbers) {
  auto record = std::make_unique<Record>();
  std::ranges::fill(record->executor, std::byte{0xff});
  record->instructions.set(~u64{0});
  record->stats.guest_ns.set(~u64{0});
  const kvm::SeenVcpu vcpu = seen(std::move(record), jit::Statistics::layout());
  const auto report = VcpuReport::of(vcpu);
  ASSERT_TRUE(report);
  EXPECT_NE(report->json().find(std::to_string(std::numeric_limits<u64>::max())), std::string::npos);
  EXPECT_GT(report->lines().size(), 2u);
}

} // namespace
} // namespace ring3::x86
