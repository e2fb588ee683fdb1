// SPDX-License-Identifier: Apache-2.0
// The arguments of ioctls: memory of the caller, who may pass any address. A bad one is EFAULT, as with the
// kernel.
#pragma once

#include "base/types.h"

#include <cstddef>

namespace ring3::shim {

// False: some of it cannot be read or written. What comes before it may have been copied.
bool copy_from_user(void* to, u64 from, std::size_t size);
bool copy_to_user(u64 to, const void* from, std::size_t size);

template <class T> bool get_user(T& out, u64 from) { return copy_from_user(&out, from, sizeof out); }
template <class T> bool put_user(u64 to, const T& value) { return copy_to_user(to, &value, sizeof value); }

} // namespace ring3::shim
