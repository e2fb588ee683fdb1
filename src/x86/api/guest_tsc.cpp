// SPDX-License-Identifier: Apache-2.0
#include "x86/api/guest_tsc.h"

namespace ring3::x86 {

u64 TscSync::offset_for(u64 value, u64 khz) {
  const u64 base = scale_ticks(clock_.tsc(), khz, clock_.tsc_khz());
  const std::scoped_lock guard(lock_);
  if (any_ && khz == khz_) {
    const u64 second = khz * 1000;
    const u64 distance = value - (base + offset_);
    if (value == 0 || distance < second || -distance < second) return offset_;
  }
  any_ = true;
  khz_ = khz;
  offset_ = value - base;
  return offset_;
}

void TscSync::note_offset(u64 offset, u64 khz) {
  const std::scoped_lock guard(lock_);
  any_ = true;
  khz_ = khz;
  offset_ = offset;
}

} // namespace ring3::x86
