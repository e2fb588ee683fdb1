// SPDX-License-Identifier: Apache-2.0
// Fixed-width integer names, used throughout for anything that has a size in a manual.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ring3 {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

} // namespace ring3
