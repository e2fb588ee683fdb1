// SPDX-License-Identifier: Apache-2.0
// What executes guest code.
#pragma once

#include "base/error.h"

#include <optional>
#include <string_view>

namespace ring3::x86 {

enum class Engine : unsigned char {
  translator,  // "jit": guest code becomes host code where it runs often
  interpreter, // "interp"
  lockstep,    // both, compared block by block: for finding mistakes
};

constexpr Engine default_engine = Engine::translator;

// By the names above; nothing: there is no such engine.
std::optional<Engine> find_engine(std::string_view name);

// Does this host let a process have what the engine needs?
Result<void> check_engine(Engine engine);

} // namespace ring3::x86
