// SPDX-License-Identifier: Apache-2.0
// Files of the host that a run needs: kernels, initrds, busybox.
#pragma once

#include "base/error.h"
#include "base/types.h"

#include <cstddef>
#include <span>
#include <string>
#include <vector>

namespace ring3::vmm {

// The whole file; refuses directories and anything above 1 GiB. `what` names its role in messages ("kernel").
Result<std::vector<std::byte>> read_file(const std::string& path, std::string_view what);

// $RING3_CACHE, or else $XDG_CACHE_HOME/ring3, or else ~/.cache/ring3; empty when none can be known.
std::string cache_folder();

// The newest kernel/vmlinuz-* of the cache folder, or else of /boot, that can be read.
Result<std::string> find_kernel();
// The first static x86-64 busybox among the cache folder and the usual places.
Result<std::string> find_busybox();

// True for an x86-64 executable that names no interpreter.
bool is_static_executable(std::span<const std::byte> file);

// Where find_kernel() looks, given explicitly; for tests. Empty: none.
std::string newest_kernel_in(const std::string& folder);

} // namespace ring3::vmm
