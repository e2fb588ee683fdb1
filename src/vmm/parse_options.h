// SPDX-License-Identifier: Apache-2.0
// Values of command line options, checked: what is wrong with them is said in one line, with a fix.
#pragma once

#include "base/error.h"
#include "base/types.h"
#include "x86/api/engine.h"

#include <string_view>
#include <sys/types.h>

namespace ring3::vmm {

constexpr u32 max_cpus = 1024;
constexpr int exit_usage = 2;

// "512M", "4G", "1048576": bytes, with an optional suffix K, M, G or T (powers of 1024) and an optional
// trailing B or iB. Without a suffix: MiB when below 65,536, as QEMU reads small numbers; bytes otherwise.
Result<u64> parse_memory(std::string_view text);
Result<u32> parse_cpus(std::string_view text);
Result<pid_t> parse_pid(std::string_view text);
// The value of --engine; empty: the default.
Result<x86::Engine> parse_engine(std::string_view text);

} // namespace ring3::vmm
