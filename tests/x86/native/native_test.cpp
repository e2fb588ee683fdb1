// SPDX-License-Identifier: Apache-2.0
// A fixed part of the comparison with the real processor: the same cases in every run.
#include "differential.h"

#include <gtest/gtest.h>

namespace ring3::x86::native {

namespace {

constexpr u64 fixed_seed = 1;
constexpr u64 cases_per_form = 160;
constexpr unsigned shown = 20;

TEST(Native, EveryFormDoesWhatTheHostDoes) {
  Differential d(fixed_seed);
  if (d.unusable() != nullptr) GTEST_SKIP() << d.unusable();
  ASSERT_GT(d.forms().forms.size(), 1000U);
  unsigned failed = 0;
  for (const Form& f : d.forms().forms) {
    std::string report;
    if (d.run(f, 0, cases_per_form, report)) continue;
    if (++failed <= shown) ADD_FAILURE() << report;
  }
  EXPECT_EQ(failed, 0U) << "forms with a difference";
  EXPECT_LT(d.progress().no_encoding, d.progress().cases / 10);
}

TEST(Translator, DoesWithEveryFormWhatTheInterpreterDoes) {
  Differential d(fixed_seed);
  if (d.unusable() != nullptr) GTEST_SKIP() << d.unusable();
  unsigned failed = 0;
  unsigned tried = 0;
  for (const Form& f : d.forms().forms) {
    if (f.shape.code_bits != 64) continue;
    ++tried;
    std::string report;
    if (d.run_engines(f, 0, cases_per_form / 8, report)) continue;
    if (++failed <= shown) ADD_FAILURE() << report;
  }
  EXPECT_GT(tried, 1000U);
  EXPECT_GT(d.engines_compared(), tried * 5U) << "of " << d.progress().cases << " cases";
  EXPECT_EQ(failed, 0U) << "forms with a difference";
}

} // namespace

} // namespace ring3::x86::native
