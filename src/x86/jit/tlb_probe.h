// SPDX-License-Identifier: Apache-2.0
// Asking the software TLB from translated code.
#pragma once

#include "x86/jit/emitter.h"
#include "x86/jit/layout.h"
#include "x86/mmu/tlb.h"

namespace ring3::x86::jit {

// The linear address of `size` bytes is in scratch_b. Afterwards the condition is `e` if they may be accessed
// by way of the entry that scratch_b points to. Changes scratch_a. The table's address is in `tlb`.
inline void emit_probe(Emitter& e, const HostMem& tlb, unsigned size, bool write) {
  const s32 tag = write ? offsetof(TlbEntry, write_tag) : offsetof(TlbEntry, read_tag);
  if (size == 1) {
    e.mov(scratch_a, scratch_b);
  } else {
    // The page of the last byte: an access across two never matches.
    e.lea(scratch_a, HostMem::at(scratch_b, static_cast<s32>(size) - 1));
  }
  static_assert(sizeof(TlbEntry) == 1u << (page_shift - 7));
  e.shr(scratch_b, 7);
  e.and32(scratch_b, (TlbTable::entries - 1) * sizeof(TlbEntry));
  e.add(scratch_b, tlb);
  e.and_(scratch_a, -s32{page_size});
  e.cmp(scratch_a, HostMem::at(scratch_b, tag));
}

} // namespace ring3::x86::jit
