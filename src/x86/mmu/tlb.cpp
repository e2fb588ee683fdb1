// SPDX-License-Identifier: Apache-2.0
#include "x86/mmu/tlb.h"

namespace ring3::x86 {

namespace {
constexpr TlbEntry empty{TlbTable::no_page, TlbTable::no_page, TlbTable::no_page, 0};
} // namespace

TlbTable::TlbTable() {
  entry.fill(empty);
  global.fill(false);
}

void TlbTable::flush_all() {
  if (fills <= filled.size()) {
    for (unsigned i = 0; i < fills; ++i) entry[filled[i]] = entry[entries + filled[i]] = empty;
  } else {
    entry.fill(empty);
  }
  fills = 0;
  used = false;
}

void TlbTable::flush_non_global() {
  if (!used) return;
  for (unsigned i = 0; i < entry.size(); ++i) {
    if (!global[i]) entry[i] = empty;
  }
}

void TlbTable::flush_page(u64 linear) {
  const u64 page = linear & ~page_offset_mask;
  for (const unsigned i : {index(linear), entries + index(linear)}) {
    TlbEntry& e = entry[i];
    if (e.read_tag == page || e.write_tag == page || e.exec_tag == page) e = empty;
  }
}

void TlbTable::protect_host_page(const std::byte* host_page) {
  protect_where([&](const std::byte* host) { return host == host_page; });
}

void TlbTable::protect_all() {
  if (!used) return;
  for (TlbEntry& e : entry) e.write_tag = no_page;
}

} // namespace ring3::x86
