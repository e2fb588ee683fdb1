// SPDX-License-Identifier: Apache-2.0
#include "shim/user_memory.h"

namespace {

// memcpy whose only instruction that touches memory is known, so that the signal handler can tell its faults
// from all others. Returns what is left to copy.
asm(R"(
    .text
    .p2align 4
    .type ring3_copy_user, @function
ring3_copy_user:
    movq %rdx, %rcx
    cld
    .globl ring3_copy_user_access
    .hidden ring3_copy_user_access
ring3_copy_user_access:
    rep movsb
    .globl ring3_copy_user_done
    .hidden ring3_copy_user_done
ring3_copy_user_done:
    movq %rcx, %rax
    ret
    .size ring3_copy_user, . - ring3_copy_user
    .globl ring3_copy_user
    .hidden ring3_copy_user
)");

} // namespace

extern "C" {
std::size_t ring3_copy_user(void* to, const void* from, std::size_t size);
extern const char ring3_copy_user_access[];
extern const char ring3_copy_user_done[];
}

namespace ring3::shim {

bool copy_from_user(void* to, u64 from, std::size_t size) {
  // The caller's argument is a number until here.
  return ring3_copy_user(to, reinterpret_cast<const void*>(from), size) == 0;
}

bool copy_to_user(u64 to, const void* from, std::size_t size) {
  return ring3_copy_user(reinterpret_cast<void*>(to), from, size) == 0;
}

bool copy_fault(u64& rip) {
  if (rip != reinterpret_cast<u64>(ring3_copy_user_access)) return false;
  rip = reinterpret_cast<u64>(ring3_copy_user_done);
  return true;
}

} // namespace ring3::shim
