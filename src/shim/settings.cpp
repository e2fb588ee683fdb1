// SPDX-License-Identifier: Apache-2.0
#include "shim/settings.h"

#include "x86/api/capabilities.h"

#include <cstdlib>

namespace ring3::shim {

const Settings& settings() {
  static const Settings s = [] {
    const char* spec = std::getenv("RING3_CPU");
    auto model = x86::select_cpu_model(spec != nullptr && *spec != '\0' ? spec : "max");
    // `ring3 exec` has refused a bad one already; a name that somebody else exported must not end the
    // program.
    if (!model) model = x86::select_cpu_model("max");
    Settings made;
    made.cpu = std::move(*model);
    if (const char* engine = std::getenv("RING3_ENGINE"); engine != nullptr)
      made.engine = x86::find_engine(engine).value_or(x86::default_engine);
    made.supported_cpuid = x86::supported_cpuid(made.cpu);
    return made;
  }();
  return s;
}

} // namespace ring3::shim
