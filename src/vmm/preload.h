// SPDX-License-Identifier: Apache-2.0
// How a program is made to use this project's KVM: the preloaded library and its settings.
#pragma once

#include "base/error.h"

#include <string>
#include <utility>
#include <vector>

namespace ring3::vmm {

struct PreloadOptions {
  std::string cpu;    // a model with adjustments, "host", or empty: everything
  std::string vendor; // "intel", "amd", or empty: the model's, and for "everything" the host's
  std::string stats;  // file for statistics, or empty
  std::string engine; // as x86::find_engine() takes it, or empty: the default
};

// The variables to set, with LD_PRELOAD keeping what it had. Errors: a bad model, or the library is not where
// it belongs.
Result<std::vector<std::pair<std::string, std::string>>> preload_environment(const PreloadOptions& options);

// As execvp() finds it; empty if PATH has none.
std::string find_program(const std::string& name);

// Why the dynamic linker would not load the library into this program (found as execvp() finds it): it is
// static, of another word size, set-user-ID, or not there. Scripts are followed to their interpreter.
Result<void> check_preloadable(const std::string& program);

} // namespace ring3::vmm
