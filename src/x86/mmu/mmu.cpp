// SPDX-License-Identifier: Apache-2.0
#include "x86/mmu/mmu.h"

#include "x86/mmu/guest_access.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86 {

Mmu::Mmu(CpuState& state, const kvm::MemorySlots& slots, kvm::CodeWatch& code_watch)
    : state_(state), slots_(slots), code_watch_(code_watch) {
  contexts_[0] = std::make_unique<TlbContext>();
  context_ = contexts_[0].get();
  slots_generation_ = slots_.generation();
  first_space_ = snapshot_ = slots_.snapshot();
}

void Mmu::reload_slots() {
  slots_generation_ = slots_.generation();
  first_space_ = slots_.snapshot(0);
  snapshot_ = state_.in_smm ? slots_.snapshot(1) : first_space_;
  last_slot_ = nullptr;
  flush_all();
}

Backing Mmu::backing(GuestPhys a, View view) {
  if (view == View::host) {
    const kvm::MemorySlot* const slot = first_space_.find(a);
    if (slot == nullptr) return {};
    return {slot->host + (a.page() - slot->base), slot};
  }
  if (last_slot_ == nullptr || !last_slot_->contains(a)) {
    last_slot_ = snapshot_.find(a);
  }
  if (snapshot_.is_private(a)) [[unlikely]]
    return private_backing(last_slot_, a);
  if (last_slot_ == nullptr) return {};
  return {last_slot_->host + (a.page() - last_slot_->base), last_slot_};
}

Backing Mmu::private_backing(const kvm::MemorySlot* slot, GuestPhys a) {
  if (slot == nullptr || !slot->private_backing || slot->private_backing->memory->closed())
    return {.unreachable = true};
  return {slot->private_backing->host() + (a.page() - slot->base), slot};
}

bool Mmu::read_phys(GuestPhys a, void* out, u64 size, View view) {
  auto* dst = static_cast<std::byte*>(out);
  while (size > 0) {
    const Backing b = backing(a, view);
    if (b.host == nullptr) return false;
    const u64 n = std::min(size, page_size - a.page_offset());
    for (u64 i = 0; i < n; ++i) dst[i] = guest_load<std::byte>(b.host + a.page_offset() + i);
    dst += n;
    size -= n;
    a = a + n;
  }
  return true;
}

bool Mmu::write_phys(GuestPhys a, const void* in, u64 size, View view) {
  const auto* src = static_cast<const std::byte*>(in);
  while (size > 0) {
    const Backing b = backing(a, view);
    if (b.host == nullptr || b.slot->read_only()) return false;
    const u64 n = std::min(size, page_size - a.page_offset());
    for (u64 i = 0; i < n; ++i) guest_store<std::byte>(b.host + a.page_offset() + i, src[i]);
    mark_dirty(b, a);
    code_watch_.written(a, n);
    src += n;
    size -= n;
    a = a + n;
  }
  return true;
}

void Mmu::fill(TlbMode mode, GuestVirt va, Access access, const Translation& t, const Backing& b) {
  ++fills_;
  TlbTable& tlb = table(mode);
  const unsigned i = TlbTable::index(va.value);
  TlbEntry& e = tlb.entry[i];
  const u64 page = va.page().value;
  if (e.write_tag != TlbTable::no_page || tlb.entry[TlbTable::entries + i].write_tag != TlbTable::no_page)
    settle_new_code();
  const u64 addend = reinterpret_cast<u64>(b.host) - page;
  const bool same = e.addend == addend && (e.read_tag == page || e.exec_tag == page);
  bool lost = e.write_tag != TlbTable::no_page; // the right to write somewhere
  if (!same) {
    const bool other = (e.read_tag != TlbTable::no_page && e.read_tag != page) ||
                       (e.exec_tag != TlbTable::no_page && e.exec_tag != page);
    if (other) {
      lost = tlb.entry[TlbTable::entries + i].write_tag != TlbTable::no_page;
      tlb.set_aside(i);
    }
    e = TlbEntry{TlbTable::no_page, TlbTable::no_page, TlbTable::no_page, addend};
  }
  note_mapped(b, t.pa);
  if (access == Access::fetch) {
    e.exec_tag = page;
  } else {
    e.read_tag = page;
    e.write_tag = TlbTable::no_page;
    // A logged page needs no further thought while its bit is set: who clears it takes the permission back.
    const bool logged_already =
        !b.slot->dirty || b.slot->dirty->is_marked((t.pa - b.slot->base) >> page_shift);
    if (t.writable && t.dirty && !b.slot->read_only() && logged_already) {
      const kvm::CodePage* code = code_watch_.find(t.pa);
      if (code == nullptr || code->lines.load(std::memory_order_acquire) == 0) e.write_tag = page;
    }
  }
  if (same && e.write_tag != TlbTable::no_page) lost = false;
  if (lost) ++protections_;
  tlb.global[i] = t.global && (same ? tlb.global[i] : true);
  tlb.note_fill(i);
  if (t.large) context_->large.note(page);
}

void Mmu::flush_all() {
  settle_new_code();
  ++generation_;
  ++global_generation_;
  for (auto& c : contexts_) {
    if (!c) continue;
    for (TlbTable& t : c->table) {
      if (t.used) t.flush_all();
    }
    c->large.clear();
  }
}

void Mmu::flush_non_global() {
  settle_new_code();
  ++generation_;
  ++context_->generation;
  for (TlbTable& t : context_->table) t.flush_non_global();
}

void Mmu::flush_all_contexts_non_global() {
  settle_new_code();
  ++generation_;
  for (auto& c : contexts_) {
    if (!c) continue;
    ++c->generation;
    for (TlbTable& t : c->table) t.flush_non_global();
  }
}

void Mmu::flush_page(GuestVirt va) {
  settle_new_code();
  ++generation_;
  page_flushed(va);
  // A page larger than 4 KiB may be cached as many entries; and global entries live in every context.
  for (auto& c : contexts_) {
    if (!c) continue;
    const bool all = c->large.may_hold(va.value);
    for (TlbTable& t : c->table) {
      if (!all) {
        t.flush_page(va.value);
      } else if (t.used) {
        t.flush_all();
      }
    }
    if (all) c->large.clear();
  }
}

void Mmu::flush_page_of(GuestVirt va, u16 pcid) {
  settle_new_code();
  ++generation_;
  page_flushed(va);
  for (auto& c : contexts_) {
    if (!c || c->pcid != pcid) continue;
    for (TlbTable& t : c->table) {
      if (c->large.may_hold(va.value)) {
        t.flush_non_global();
      } else {
        t.flush_page(va.value);
      }
    }
  }
}

void Mmu::flush_pcid(u16 pcid) {
  settle_new_code();
  ++generation_;
  for (auto& c : contexts_) {
    if (!c || c->pcid != pcid) continue;
    ++c->generation;
    for (TlbTable& t : c->table) t.flush_non_global();
  }
}

void Mmu::select_context(u16 pcid) {
  context_->last_use = ++use_counter_;
  if (context_->pcid == pcid) return;
  const auto use = [&](unsigned n) {
    context_number_ = n;
    context_ = contexts_[n].get();
  };
  // The one that has it, or else a place that nothing is in, or else the one that was used longest ago.
  unsigned oldest = 0;
  const auto age = [&](unsigned n) { return contexts_[n] ? contexts_[n]->last_use : 0; };
  for (unsigned n = 0; n < context_count; ++n) {
    if (contexts_[n] && contexts_[n]->pcid == pcid) return use(n);
    if (age(n) < age(oldest)) oldest = n;
  }
  std::unique_ptr<TlbContext>& place = contexts_[oldest];
  if (!place) {
    place = std::make_unique<TlbContext>();
  } else {
    settle_new_code();
    for (TlbTable& t : place->table) t.flush_all();
    place->large.clear();
  }
  ++generation_;
  ++place->generation;
  place->pcid = pcid;
  use(oldest);
}

void Mmu::protect_host_page(const std::byte* host_page) {
  ++protections_;
  for (auto& c : contexts_) {
    if (!c) continue;
    for (TlbTable& t : c->table) t.protect_host_page(host_page);
  }
}

void Mmu::settle_new_code() {
  // Either our stores are seen by those who compare code after they have noted its page, or we see the note.
  // A locked instruction is a fence, which ThreadSanitizer has no name for.
  barrier_.exchange(0, std::memory_order_seq_cst);
  if (code_watch_.noted() == new_code_seen_) return;
  auto pages = code_watch_.new_pages(new_code_seen_);
  if (!pages) {
    new_code_lost_ = true;
    protect_all();
    return;
  }
  std::ranges::sort(*pages, {}, &kvm::CodeWatch::NewPage::host);
  for (auto& c : contexts_) {
    if (!c) continue;
    for (TlbTable& t : c->table) {
      t.protect_where([&](const std::byte* host) {
        const auto found = std::ranges::lower_bound(*pages, host, {}, &kvm::CodeWatch::NewPage::host);
        if (found == pages->end() || found->host != host) return false;
        code_watch_.written(found->page, page_size);
        ++protections_;
        return true;
      });
    }
  }
}

bool Mmu::protect_new_code() {
  settle_new_code();
  return !std::exchange(new_code_lost_, false);
}

void Mmu::protect_all() {
  ++protections_;
  for (auto& c : contexts_) {
    if (!c) continue;
    for (TlbTable& t : c->table) t.protect_all();
  }
}

} // namespace ring3::x86
