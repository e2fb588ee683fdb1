// SPDX-License-Identifier: Apache-2.0
// In what sizes a slot's memory is mapped for the guest (the statistics pages_4k and pages_2m), and what the
// dirty log does to them.
//
// Translations lead from guest-physical memory straight into the VMM's mapping, so a mapping is as large as
// the host's: 2 MiB count as one if KVM would map them as one. That is, the slot has all of them, they are
// aligned alike in the guest and in the VMM, none of them is private, the host maps them by one entry of its
// page tables, and the guest has reached some page of them. All else counts by pages of 4 KiB that the guest
// has reached and the host has in memory. There are no mappings of 1 GiB: such a page of the host counts as
// those of 2 MiB that were reached.
//
// A logged slot is mapped by pages, since that is what the log knows. As KVM with eager_page_split, logging
// splits what is large: when it begins, or, if it begins with all pages dirty (KVM_DIRTY_LOG_INITIALLY_SET),
// when the first pages are cleared. When it ends, pages that could be one large one are forgotten, and are
// large when the guest reaches them again.
//
// Nothing of this takes part in accesses of the guest, except that MappedPages has to be told of them. Where
// the host does not tell how it maps memory (HostPages::told()), all mappings are of 4 KiB.
//
// All functions are called under the lock of the slots, and cost time in proportion to what is mapped.
#pragma once

#include "kvm/mapped_pages.h"
#include "kvm/memory_attributes.h"

namespace ring3::kvm {

struct MemorySlot;

// How many of each.
struct MappingSizes {
  u64 pages_4k = 0;
  u64 pages_2m = 0;
  friend bool operator==(const MappingSizes&, const MappingSizes&) = default;
};

// The mappings of one slot.
class SlotMappings {
 public:
  // `private_pages`: null if there are none.
  SlotMappings(const MemorySlot& slot, const PrivatePages* private_pages, const MappedPages& mapped)
      : slot_(slot), private_pages_(private_pages), mapped_(mapped) {}

  void count(MappingSizes& sizes) const;
  // Those of which the range has a page; in pages from the start of the slot.
  void split(PageRange range) const;
  // Dirty logging begins with all pages dirty: what is large stays so for the time being.
  void keep() const;
  // Dirty logging has ended, or is about to.
  void recover() const;

 private:
  struct View;
  template <class Wanted, class F> void look(PageRange pages, Wanted&& wanted, F&& f) const;
  void look_at_host(View* first, View* end) const;
  void look_at_shared(View* first, View* end) const;
  void look_at_mixed(View& view) const;
  PageRange all() const;
  bool may_be_large(const MappedPages::Region& region) const;

  const MemorySlot& slot_;
  const PrivatePages* const private_pages_;
  const MappedPages& mapped_;
};

} // namespace ring3::kvm
