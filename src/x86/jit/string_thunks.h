// SPDX-License-Identifier: Apache-2.0
// REP MOVS and REP STOS: what all translations share of them.
#pragma once

#include "x86/cpu/state.h"
#include "x86/cpu/translation_context.h"
#include "x86/jit/emitter.h"
#include "x86/jit/layout.h"

#include <array>
#include <optional>

namespace ring3::x86::jit {

// Executable addresses. Called with RSI, RDI, RCX and RAX the guest's own and its direction flag clear. They
// go from page to page with the host's instruction, as long as both pages are in the TLB. Afterwards the
// condition is `e` if RCX has become 0; else the handler has to go on where the registers point. Changes the
// scratch registers.
struct StringThunks {
  // For elements of 1 << n bytes.
  std::array<const u8*, 4> movs{}, stos{};
  // Where the host's instruction is, which is the only one of them that may fault. The return address is on
  // top of the stack then.
  std::array<const u8*, 4> movs_at{}, stos_at{};

  // If it is one of those places: n.
  std::optional<unsigned> element_bits(const u8* at) const;
};

StringThunks emit_string_thunks(Emitter& e, const u8* executable, const Layout& layout);

} // namespace ring3::x86::jit
