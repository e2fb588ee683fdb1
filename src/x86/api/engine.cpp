// SPDX-License-Identifier: Apache-2.0
#include "x86/api/engine.h"

#include "x86/jit/code_cache.h"

namespace ring3::x86 {

std::optional<Engine> find_engine(std::string_view name) {
  if (name == "jit") return Engine::translator;
  if (name == "interp") return Engine::interpreter;
  if (name == "lockstep") return Engine::lockstep;
  return std::nullopt;
}

Result<void> check_engine(Engine engine) {
  if (engine != Engine::interpreter && !jit::CodeCache::make(jit::CodeCache::usual_bytes))
    return fail("this host gives the process no executable memory of its own (memfd_create and mmap)",
                "allow it (SELinux: execmem; limits: ulimit -v), or use the slower --engine interp");
  return {};
}

} // namespace ring3::x86
