// SPDX-License-Identifier: Apache-2.0
// Address translation of one vCPU (SDM vol. 3, chapter 4): paging modes, permissions, the software TLB, and
// the way from a guest-physical address to host memory or to a device.
#pragma once

#include "base/address.h"
#include "kvm/code_watch.h"
#include "kvm/dirty_ring.h"
#include "kvm/memory_slots.h"
#include "x86/cpu/exceptions.h"
#include "x86/cpu/state.h"
#include "x86/mmu/tlb.h"

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <utility>

namespace ring3::x86 {

enum class Access : u8 { read, write, fetch };

// The result of a page walk.
struct Translation {
  GuestPhys pa;
  bool writable = false; // a store by the same kind of access would be allowed too
  bool user_page = false;
  bool dirty = false; // the leaf's D bit is set (always true without paging)
  bool global = false;
  bool large = false;
};

// What backs a guest-physical page.
struct Backing {
  std::byte* host = nullptr; // first byte of the page; null: no memory there (MMIO)
  const kvm::MemorySlot* slot = nullptr;
  bool unreachable = false; // a private page without private memory: for user space to put right
};

class Mmu {
 public:
  Mmu(CpuState& state, const kvm::MemorySlots& slots, kvm::CodeWatch& code_watch);

  // Physical-address width of the guest (CPUID 0x80000008), 32 to 52.
  void set_max_phys_bits(unsigned bits) { max_phys_bits_ = bits; }
  unsigned max_phys_bits() const { return max_phys_bits_; }
  u64 phys_reserved() const { return ~low_mask(max_phys_bits_); }
  void set_gbpages(bool on) { gbpages_ = on; }

  // Walks the page tables for one access and sets accessed and dirty bits; false: `fault` is a #PF. `user`
  // says that the access counts as a user-mode one, `implicit` that it is a supervisor access whatever the
  // CPL, to which SMAP applies regardless of EFLAGS.AC. The address is canonical.
  // Also false: a paging structure is unreachable (lost_page()), and `fault` is unchanged.
  bool walk(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault);
  // Where the last walk() met an unreachable page. Asking forgets it.
  std::optional<GuestPhys> lost_page() { return std::exchange(lost_page_, std::nullopt); }

  // Puts the page in the TLB table of `mode` as far as the fast path may use it.
  // A fetch vouches for fetches only, and a data access for data accesses: their rights differ.
  void fill(TlbMode mode, GuestVirt va, Access access, const Translation& t, const Backing& b);

  // Where a linear address leads, for a debugger: no rights are checked and nothing is set. False: nowhere.
  bool probe(GuestVirt va, GuestPhys& out);

  // Whose accesses: the guest's, as it sees memory now; or the hypervisor's own for the guest, which are to
  // the first address space, so that nobody can have it write into SMRAM, and to what is shared with the VMM.
  enum class View : u8 { guest, host };
  // Host memory behind a guest-physical page.
  Backing backing(GuestPhys a, View view = View::guest);
  // The page is or will be written (kvm/dirty_log.h says when which): enters it in the log of its slot.
  void mark_dirty(const Backing& b, GuestPhys a) {
    if (!b.slot->dirty) return;
    const u64 page = (a - b.slot->base) >> page_shift;
    if (b.slot->dirty->mark(page) && dirty_ring_ != nullptr) dirty_ring_->push(b.slot->id, page);
  }
  // The guest reaches the page: it counts as mapped from now on (kvm/mapped_pages.h).
  void note_mapped(const Backing& b, GuestPhys a) {
    const u32 space = b.slot->id >> 16;
    const u64 region = a.frame() / kvm::MappedPages::region_pages;
    NotedRegion& recent = noted_[(region * kvm::max_address_spaces + space) % noted_.size()];
    if (recent.region == nullptr || recent.number != region || recent.space != space)
      recent = {region, space, &slots_.mapped_pages(space).region(a)};
    recent.region->record(a.frame());
  }
  // Where pages go that this vCPU writes first; null: nowhere but into the slots' bitmaps.
  void set_dirty_ring(kvm::DirtyRing* ring) { dirty_ring_ = ring; }

  TlbTable& table(TlbMode mode) { return context_->table[static_cast<unsigned>(mode)]; }

  // --- what instructions and events ask of the TLB ---
  void flush_all();              // everything, global pages too
  void flush_non_global();       // MOV CR3 without PCIDs
  void flush_page(GuestVirt va); // INVLPG
  void flush_page_of(GuestVirt va, u16 pcid);
  void flush_pcid(u16 pcid);            // INVPCID type 1: one context's non-global pages
  void flush_all_contexts_non_global(); // INVPCID type 3
  void select_context(u16 pcid);        // MOV CR3 with PCIDs
  void protect_host_page(const std::byte* host_page);
  // Grows whenever a page that a table said may be written is not there as such any more.
  u64 protections() const { return protections_; }
  // Grows with every entry that is made in a table.
  u64 fills() const { return fills_; }
  void protect_all();
  // Forgets write permission for pages that have become code since the last time, by way of other vCPUs. What
  // this one could write until now it may have written, so that is told to all. False: it is not known any
  // more which pages they were, and any code may be stale.
  bool protect_new_code();
  // Takes the newest memory-slot table of the address space that the mode selects (state.in_smm: the second),
  // and forgets what was derived from the old one.
  void reload_slots();
  // The same if there is a newer one; for those who are not in the guest.
  void refresh_slots() {
    if (slots_.generation() != slots_generation_) reload_slots();
  }
  // Is this host address one of memory that the guest may be using? Also what slots of late: others learn of
  // a change before this vCPU does. Async-signal-safe on the vCPU's thread.
  bool uses_host(const void* host, GuestPhys& out) const {
    return snapshot_.find_host(host, out) || first_space_.find_host(host, out) || slots_.find_host(host, out);
  }

  // Loads the four PDPTEs of PAE paging from CR3; false: a reserved bit is set (#GP).
  bool load_pdptes(u64 cr3);

  // Changes whenever a translation may have become another one; what was derived from one is good until then.
  u64 generation() const { return generation_; }
  // What has happened to them, for those who want to forget less than everything. Address spaces have numbers
  // below context_count while they are remembered.
  static constexpr unsigned context_count = 4;
  unsigned context_number() const { return context_number_; }
  u64 context_generation() const { return context_->generation; } // its non-global translations
  u64 global_generation() const { return global_generation_; }    // everything, in all address spaces
  // Pages of which the translation may be another one, global ones too: the `n`th of page_flushes(), which
  // must be one of the last few.
  static constexpr u64 remembered_flushes = 16;
  u64 page_flushes() const { return page_flushes_; }
  GuestVirt flushed_page(u64 n) const { return flushed_[n % remembered_flushes]; }

  kvm::CodeWatch& code_watch() { return code_watch_; }

  // Reads and writes guest-physical memory as the walker does; false where there is no memory.
  bool read_phys(GuestPhys a, void* out, u64 size, View view = View::guest);
  bool write_phys(GuestPhys a, const void* in, u64 size, View view = View::guest);

 private:
  static Backing private_backing(const kvm::MemorySlot* slot, GuestPhys a);
  // Before permissions to write are forgotten, with which the knowledge goes that there was one.
  void settle_new_code();
  void page_flushed(GuestVirt va) { flushed_[page_flushes_++ % remembered_flushes] = va; }
  template <class Entry> bool read_entry(u64 pa, Entry& out, std::byte*& host);
  template <class Entry> bool update_entry(u64 pa, std::byte* host, Entry& entry, Entry bits_to_set);
  bool walk_32bit(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault);
  bool walk_long(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault);
  bool fail(GuestVirt va, Access access, bool user, u32 code, Fault& fault) const;

  CpuState& state_;
  const kvm::MemorySlots& slots_;
  kvm::CodeWatch& code_watch_;
  u64 new_code_seen_ = 0; // of code_watch_.noted()
  bool new_code_lost_ = false;
  std::atomic<u32> barrier_{0}; // means nothing
  kvm::DirtyRing* dirty_ring_ = nullptr;
  kvm::SlotSnapshot first_space_;
  kvm::SlotSnapshot snapshot_; // of the space that the mode selects
  u64 slots_generation_ = 0;   // of the snapshots; that of the table may have moved on
  const kvm::MemorySlot* last_slot_ = nullptr;
  std::optional<GuestPhys> lost_page_;
  unsigned max_phys_bits_ = 46;
  bool gbpages_ = true;

  // Where pages were noted of late.
  struct NotedRegion {
    u64 number = 0;
    u32 space = 0;
    kvm::MappedPages::Region* region = nullptr; // stays as long as the slots are there
  };
  std::array<NotedRegion, 64> noted_;

  std::array<std::unique_ptr<TlbContext>, context_count> contexts_;
  TlbContext* context_;
  unsigned context_number_ = 0;
  u64 use_counter_ = 0;
  u64 generation_ = 1;
  u64 protections_ = 0;
  u64 fills_ = 0;
  u64 global_generation_ = 1;
  u64 page_flushes_ = 0;
  std::array<GuestVirt, remembered_flushes> flushed_;
};

} // namespace ring3::x86
