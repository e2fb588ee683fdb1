// SPDX-License-Identifier: Apache-2.0
// Guests: a machine in any CPU mode that may run, and code that is random or does something on purpose.
#pragma once

#include "world.h"

namespace fuzz {

// Page tables, descriptor tables and handlers in the first part of the arena, which slot 0 puts at address 0.
void write_tables(Arena& arena);
constexpr u64 guest_code = 0x20000, guest_data = 0x100000, guest_bytes = 4 << 20;

// Writes some code; where it starts.
u64 write_code(Thread& t);
// Puts a vCPU into a mode with its registers at some code. The first failing ioctl's result, or 0.
long boot(Thread& t, int vcpu);

} // namespace fuzz
