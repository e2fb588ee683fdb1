// SPDX-License-Identifier: Apache-2.0
// A structure in guest memory that guest and hypervisor share while the guest runs.
#pragma once

#include "base/address.h"
#include "x86/mmu/guest_access.h"
#include "x86/mmu/mmu.h"

namespace ring3::x86 {

// [at, at + size) for the time of one update. The guest names the place, so it may be nowhere, in memory that
// cannot be written, or across two pages: then the update does not happen, as in KVM. Accesses are single
// instructions in program order, which is all that the version protocols need (x86 does not reorder stores).
// On the vCPU's thread, between the taking of the slots request and the end of its stay in the guest.
class SharedStruct {
 public:
  SharedStruct(Mmu& mmu, GuestPhys at, u64 size) : mmu_(mmu), at_(at), size_(size) {
    if (at.page_offset() + size > page_size) return;
    const Backing b = mmu.backing(at, Mmu::View::host);
    if (b.host == nullptr || b.slot->read_only()) return;
    backing_ = b;
  }
  ~SharedStruct() {
    if (!written_) return;
    mmu_.mark_dirty(backing_, at_);
    mmu_.code_watch().written(at_, size_);
  }
  SharedStruct(const SharedStruct&) = delete;
  SharedStruct& operator=(const SharedStruct&) = delete;

  bool valid() const { return backing_.host != nullptr; }

  template <class T> T load(u64 offset) const { return guest_load<T>(host(offset)); }
  template <class T> void store(u64 offset, T value) {
    written_ = true;
    guest_store<T>(host(offset), value);
  }
  template <class T> T exchange(u64 offset, T value) {
    written_ = true;
    return guest_xchg<T>(host(offset), value);
  }

 private:
  std::byte* host(u64 offset) const { return backing_.host + at_.page_offset() + offset; }

  Mmu& mmu_;
  const GuestPhys at_;
  const u64 size_;
  Backing backing_;
  bool written_ = false;
};

} // namespace ring3::x86
