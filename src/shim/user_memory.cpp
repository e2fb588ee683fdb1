// SPDX-License-Identifier: Apache-2.0
#include "shim/user_memory.h"

#include "kvm/recoverable_copy.h"

namespace ring3::shim {

bool copy_from_user(void* to, u64 from, std::size_t size) {
  // The caller's argument is a number until here.
  return kvm::copy_recoverably(to, reinterpret_cast<const void*>(from), size);
}

bool copy_to_user(u64 to, const void* from, std::size_t size) {
  return kvm::copy_recoverably(reinterpret_cast<void*>(to), from, size);
}

} // namespace ring3::shim
