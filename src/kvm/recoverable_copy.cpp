// SPDX-License-Identifier: Apache-2.0
#include "kvm/recoverable_copy.h"

#include <atomic>

namespace {

// memcpy whose only instruction that touches memory is known, so that the signal handler can tell its faults
// from all others. Returns what is left to copy.
asm(R"(
    .text
    .p2align 4
    .type ring3_copy_recoverably, @function
ring3_copy_recoverably:
    movq %rdx, %rcx
    cld
    .globl ring3_copy_recoverably_access
    .hidden ring3_copy_recoverably_access
ring3_copy_recoverably_access:
    rep movsb
    .globl ring3_copy_recoverably_done
    .hidden ring3_copy_recoverably_done
ring3_copy_recoverably_done:
    movq %rcx, %rax
    ret
    .size ring3_copy_recoverably, . - ring3_copy_recoverably
    .globl ring3_copy_recoverably
    .hidden ring3_copy_recoverably
)");

} // namespace

extern "C" {
std::size_t ring3_copy_recoverably(void* to, const void* from, std::size_t size);
extern const char ring3_copy_recoverably_access[];
extern const char ring3_copy_recoverably_done[];
}

namespace ring3::kvm {
namespace {
constinit std::atomic<bool> faults_caught{false};
}

bool copy_recoverably(void* to, const void* from, std::size_t size) {
  return ring3_copy_recoverably(to, from, size) == 0;
}

bool copy_fault(u64& rip) {
  if (rip != reinterpret_cast<u64>(ring3_copy_recoverably_access)) return false;
  rip = reinterpret_cast<u64>(ring3_copy_recoverably_done);
  return true;
}

bool copy_faults_are_caught() { return faults_caught.load(std::memory_order_acquire); }
void catch_copy_faults() { faults_caught.store(true, std::memory_order_release); }

} // namespace ring3::kvm
