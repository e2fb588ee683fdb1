// SPDX-License-Identifier: Apache-2.0
#include "vmm/doctor.h"
#include "vmm/preload.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace ring3::vmm {
namespace {

TEST(Doctor, SaysWhatToDoAboutWhatIsNotOk) {
  const auto findings = examine_host();
  ASSERT_FALSE(findings.empty());
  for (const Finding& f : findings) {
    EXPECT_FALSE(f.text.empty()) << f.name;
    EXPECT_EQ(f.text.find('\n'), std::string::npos) << f.name;
    EXPECT_EQ(f.status == Finding::Status::ok, f.fix.empty()) << f.name;
  }
  // This test runs where ring3 runs.
  const auto processor = std::ranges::find(findings, "processor", &Finding::name);
  ASSERT_NE(processor, findings.end());
  EXPECT_EQ(processor->status, Finding::Status::ok);
}

TEST(Doctor, VmmsAreThosePathHas) {
  const char* const before = std::getenv("PATH");
  const std::string saved = before != nullptr ? before : "";
  setenv("PATH", "/nowhere", 1);
  EXPECT_TRUE(find_vmms().empty());
  setenv("PATH", saved.c_str(), 1);
  for (const FoundVmm& v : find_vmms()) EXPECT_EQ(find_program(v.name), v.path);
}

} // namespace
} // namespace ring3::vmm
