// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/cpuid_model.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace ring3::x86 {
namespace {

const kvm_cpuid_entry2* leaf(const std::vector<kvm_cpuid_entry2>& entries, u32 function) {
  const auto found = std::ranges::find(entries, function, &kvm_cpuid_entry2::function);
  return found == entries.end() ? nullptr : &*found;
}

// Leaf 15h is the crystal's frequency, which the local APIC's timer counts, and a ratio (SDM vol. 2, CPUID).
TEST(CpuidModel, TellsTheFrequencyOfTheTsc) {
  for (const u64 khz :
       {1u, 17u, 999'999u, 1'000'000u, 1'000'001u, 2'596'118u, 2'599'998u, 4'294'000u, 5'000'001u}) {
    SCOPED_TRACE(khz);
    const auto entries = cpuid_entries(*select_cpu_model("max"), 0, 1, khz);
    const kvm_cpuid_entry2* const ratio = leaf(entries, 0x15);
    ASSERT_NE(ratio, nullptr);
    EXPECT_EQ(ratio->ecx, 1'000'000'000u);
    ASSERT_NE(ratio->eax, 0u);
    EXPECT_NEAR(1e6 * ratio->ebx / ratio->eax / static_cast<double>(khz), 1, 2e-6);
    EXPECT_LT(u64{ratio->ebx} * 1'000'000, u64{1} << 32) << "Linux multiplies them in 32 bits";
    EXPECT_EQ(leaf(entries, 0x16)->eax, std::lround(static_cast<double>(khz) / 1000));
    EXPECT_EQ(leaf(entries, 0x40000010)->eax, khz);
    EXPECT_EQ(leaf(entries, 0x40000010)->ebx, 1'000'000u);
  }
}

} // namespace
} // namespace ring3::x86
