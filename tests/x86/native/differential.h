// SPDX-License-Identifier: Apache-2.0
// Runs cases on both processors and compares everything they leave behind.
#pragma once

#include "cases.h"
#include "guest_cpu.h"
#include "native_cpu.h"

#include <map>
#include <string>

namespace ring3::x86::native {

struct Progress {
  u64 cases = 0;
  u64 faults = 0;  // cases in which both faulted, the same
  u64 allowed = 0; // cases in which processors may differ, and did
  u64 mismatches = 0;
  u64 no_encoding = 0;
};

class Differential {
 public:
  explicit Differential(u64 seed);

  const char* unusable() const { return native_.unusable(); }
  // The forms that are compared, after those the guest does not offer and the host does not have were left
  // out.
  const FormList& forms() const { return forms_; }
  // Only forms whose mnemonic contains this.
  void filter(std::string_view part);

  // Runs `count` cases of the form from case number `first`. False: a mismatch, described in `report`.
  bool run(const Form& form, u64 first, u64 count, std::string& report);
  // The same on our side only: does the translator agree with the interpreter? 64-bit forms.
  bool run_engines(const Form& form, u64 first, u64 count, std::string& report);
  u64 engines_compared() const { return guest_.compared(); }
  const Progress& progress() const { return progress_; }

 private:
  bool compare(const Form& form, u64 number, std::string& report);
  void leave_out_unavailable();

  u64 seed_;
  NativeCpu native_;
  GuestCpu guest_;
  CaseMaker maker_;
  FormList forms_;
  Progress progress_;
  Case case_;
  MemoryImage memory_{};
  Outcome expected_, got_;
};

} // namespace ring3::x86::native
