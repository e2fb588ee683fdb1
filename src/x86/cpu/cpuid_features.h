// SPDX-License-Identifier: Apache-2.0
// The CPU features that ring3 implements, by the names users write.
#pragma once

#include "x86/cpu/features.h"

#include <span>
#include <string_view>

namespace ring3::x86 {

struct NamedFeature {
  std::string_view name;
  Feature feature;
  bool needs_host; // runs the host's own instruction: offered only where the host has it
  bool amd_only;
  bool intel_only;
  bool on_request; // built, but not part of `max`: MONITOR, because a guest that idles with MWAIT would spin
};

std::span<const NamedFeature> named_features();
const NamedFeature* find_feature(std::string_view name);
// Can this host run it?
bool feature_available(const NamedFeature& f);

} // namespace ring3::x86
