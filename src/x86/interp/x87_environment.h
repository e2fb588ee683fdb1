// SPDX-License-Identifier: Apache-2.0
// The x87 control words and the memory images of FNSTENV and FNSAVE (SDM vol. 1, 8.1.8 to 8.1.11, figures 8-9
// to 8-12).
#pragma once

#include "x86/cpu/state.h"

namespace ring3::x86 {

constexpr unsigned x87_max_image = 108;

// Is an exception flagged that the control word does not mask? ES is nothing but that.
inline bool x87_exception_pending(const X87State& x) { return (x.fsw & ~unsigned{x.fcw} & 0x3f) != 0; }

void x87_set_control(X87State& x, unsigned fcw);
void x87_initialise(X87State& x); // FNINIT

// The environment in its 14- or 28-byte form, for real or protected mode; returns its size.
unsigned x87_store_environment(const X87State& x, unsigned size, bool real, u8* out);
void x87_load_environment(X87State& x, unsigned size, bool real, const u8* in);

} // namespace ring3::x86
