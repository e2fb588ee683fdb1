// SPDX-License-Identifier: Apache-2.0
#include "x86/api/system.h"

#include <cpuid.h>

namespace ring3::x86 {

Result<void> check_host() {
  u32 a = 0;
  u32 b = 0;
  u32 c = 0;
  u32 d = 0;
  constexpr u32 cx16 = 1u << 13;
  constexpr u32 xsave = 1u << 26 | 1u << 27; // the instruction, and the kernel's leave to use it
  constexpr u32 lahf = 1u << 0;
  const bool basic = __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & cx16) == cx16 && (c & xsave) == xsave;
  const bool extended = __get_cpuid(0x80000001, &a, &b, &c, &d) != 0 && (c & lahf) == lahf;
  if (basic && extended) return {};
  return fail(
      "this processor lacks CMPXCHG16B, LAHF in 64-bit mode or XSAVE, which guest instructions run on",
      "use an x86-64 host of 2011 or later, with XSAVE not disabled on its kernel's command line");
}

} // namespace ring3::x86
