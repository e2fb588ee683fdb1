// SPDX-License-Identifier: Apache-2.0
// The software TLB: linear page to host page, for the accesses that need no further thought.
//
// An entry's tag matches only when the access is allowed, its accessed and dirty bits are already set, no
// watchpoint covers the page, and (for stores) the page holds no decoded instructions and, where dirty pages
// are logged, is in the log. Everything else misses on purpose and takes the slow path in Mmu. The translator
// probes the same tables.
#pragma once

#include "base/address.h"
#include "base/types.h"

#include <array>

namespace ring3::x86 {

struct TlbEntry {
  u64 read_tag, write_tag, exec_tag; // linear page address, or TlbTable::no_page
  u64 addend;                        // host address = linear address + addend
};
static_assert(sizeof(TlbEntry) == 32);

struct TlbTable {
  static constexpr unsigned bits = 10;
  static constexpr unsigned entries = 1u << bits;
  static constexpr u64 no_page = ~u64{0};

  // Two for each place: what is filled comes into the first half, and what was there into the second. The
  // interpreter looks at the first only.
  std::array<TlbEntry, 2 * entries> entry;
  std::array<bool, 2 * entries> global; // came from a global page: survives CR3 loads
  bool used = false;                    // anything was filled since the last complete flush
  // Which entries were filled since then, as long as they are few: most tables are flushed nearly empty.
  std::array<u16, 64> filled;
  unsigned fills = 0;

  TlbTable();
  TlbEntry& at(u64 linear) { return entry[(linear >> page_shift) & (entries - 1)]; }
  const TlbEntry& at(u64 linear) const { return entry[(linear >> page_shift) & (entries - 1)]; }
  static constexpr unsigned index(u64 linear) { return (linear >> page_shift) & (entries - 1); }

  // Makes room in the first half.
  void set_aside(unsigned i) {
    entry[entries + i] = entry[i];
    global[entries + i] = global[i];
  }
  void note_fill(unsigned i) {
    if (fills < filled.size()) filled[fills] = static_cast<u16>(i);
    ++fills;
    used = true;
  }
  void flush_all();
  void flush_non_global();
  void flush_page(u64 linear);
  // Forgets write permission for every page that maps the given host page.
  void protect_host_page(const std::byte* host_page);
  // The same for all host pages of which `which` says so.
  template <class F> void protect_where(F&& which) {
    if (!used) return;
    for (TlbEntry& e : entry) {
      if (e.write_tag != no_page && which(reinterpret_cast<const std::byte*>(e.write_tag + e.addend)))
        e.write_tag = no_page;
    }
  }
  void protect_all();
};

// What an access is allowed to do depends on who makes it; each has tables of its own so that the fast path
// compares one tag and nothing else.
enum class TlbMode : u8 {
  user,      // CPL 3
  kernel,    // CPL 0-2 and implicit supervisor accesses, user pages guarded by SMAP
  kernel_ac, // CPL 0-2 with EFLAGS.AC set, or SMAP off
};
constexpr unsigned tlb_mode_count = 3;

// Where translations by pages larger than 4 KiB are cached, of which one entry says nothing about the others:
// the GiB that they are in.
class LargeRegions {
 public:
  void note(u64 linear) {
    const u64 gib = linear >> 30;
    if (count_ > gib_.size() || holds(gib)) return;
    if (count_ < gib_.size()) gib_[count_] = gib;
    ++count_;
  }
  bool may_hold(u64 linear) const { return count_ > gib_.size() || holds(linear >> 30); }
  void clear() { count_ = 0; }

 private:
  bool holds(u64 gib) const {
    for (unsigned i = 0; i < count_; ++i) {
      if (gib_[i] == gib) return true;
    }
    return false;
  }
  std::array<u64, 4> gib_{};
  unsigned count_ = 0; // more than there is room for: they may be anywhere
};

// The tables of one process-context identifier.
struct TlbContext {
  u16 pcid = 0;
  u64 last_use = 0;
  u64 generation = 0; // changes whenever non-global translations may have become others
  LargeRegions large; // INVLPG of an address there flushes everything
  std::array<TlbTable, tlb_mode_count> table;
};

} // namespace ring3::x86
