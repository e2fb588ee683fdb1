// SPDX-License-Identifier: Apache-2.0
#include "kvm/mapping_sizes.h"

#include "base/host_pages.h"
#include "kvm/memory_slots.h"

#include <algorithm>
#include <array>
#include <bit>

namespace ring3::kvm {
namespace {

using Mask = MappedPages::Mask;
using Region = MappedPages::Region;
constexpr u64 region_pages = MappedPages::region_pages;
constexpr auto any = [](const Region&) { return true; };

} // namespace

// One region, as far as the slot has it. Without initial values: there are many of them that are not used.
struct SlotMappings::View {
  Region* region;
  u64 number;
  Mask slot;         // pages that the slot has
  Mask present;      // of these, what the host has in memory
  bool could_be_one; // by the layout, and by how the host maps it
};

PageRange SlotMappings::all() const {
  const u64 first = slot_.base.frame();
  return {first, first + (slot_.size >> page_shift)};
}

// Calls f for each region of which there is a page in `pages`, where the guest has reached one of the slot's,
// and of which `wanted` says so.
template <class Wanted, class F>
[[gnu::noinline]] void SlotMappings::look(PageRange pages, Wanted&& wanted, F&& f) const {
  std::array<View, 64> views; // neighbours
  std::size_t count = 0;
  const auto finish = [&] {
    if (count == 0) return;
    look_at_host(views.data(), views.data() + count);
    for (std::size_t i = 0; i < count; ++i) f(views[i]);
    count = 0;
  };
  mapped_.for_each(pages, [&](u64 number, Region& region) {
    const Mask slot = MappedPages::mask_of(number, all());
    u64 reached = 0;
    for (std::size_t i = 0; i < slot.size(); ++i) reached |= region.word(i) & slot[i];
    if (reached == 0 || !wanted(region)) return;
    if (count == views.size() || (count != 0 && views[count - 1].number + 1 != number)) finish();
    views[count++] = {
        .region = &region, .number = number, .slot = slot, .present = {}, .could_be_one = false};
  });
  finish();
}

namespace {

// Which of these guest pages the host has in memory, the first of them at `host`: f(pages, large).
template <class F> void each_run(const std::byte* host, PageRange pages, F&& f) {
  HostPages present(host, pages.end - pages.first);
  for (HostPages::Run run{}; present.next(run);)
    f(PageRange{pages.first + run.first, pages.first + run.end}, run.large);
}

PageRange pages_of(u64 number) { return {number * region_pages, (number + 1) * region_pages}; }

PageRange common(PageRange a, PageRange b) { return {std::max(a.first, b.first), std::min(a.end, b.end)}; }

bool holds(PageRange outer, PageRange inner) { return outer.first <= inner.first && inner.end <= outer.end; }

} // namespace

void SlotMappings::look_at_host(View* first, View* end) const {
  if (!HostPages::told()) {
    for (View* v = first; v != end; ++v) v->present = v->slot;
  } else if (!slot_.private_backing || private_pages_ == nullptr) {
    look_at_shared(first, end);
  } else {
    for (View* v = first; v != end; ++v) {
      if (private_pages_->all(common(all(), pages_of(v->number)), false)) {
        look_at_shared(v, v + 1);
      } else {
        look_at_mixed(*v);
      }
    }
  }
}

// Neighbours without private pages.
void SlotMappings::look_at_shared(View* first, View* end) const {
  const PageRange of_slot = all();
  const PageRange pages = common(of_slot, {pages_of(first->number).first, pages_of(end[-1].number).end});
  const bool aligned_alike = (reinterpret_cast<u64>(slot_.host) - slot_.base.value) % large_page_size == 0;
  View* v = first;
  each_run(slot_.host + ((pages.first << page_shift) - slot_.base.value), pages,
           [&](PageRange run, bool large) {
             while (v != end && pages_of(v->number).end <= run.first) ++v;
             for (View* at = v; at != end && pages_of(at->number).first < run.end; ++at) {
               const Mask found = MappedPages::mask_of(at->number, run);
               for (std::size_t i = 0; i < found.size(); ++i) at->present[i] |= found[i] & at->slot[i];
               const PageRange whole = pages_of(at->number);
               at->could_be_one = large && aligned_alike && holds(run, whole) && holds(of_slot, whole);
             }
           });
}

// Some pages are private, and have another place in the host.
void SlotMappings::look_at_mixed(View& view) const {
  const PageRange pages = common(all(), pages_of(view.number));
  const u64 offset = (pages.first << page_shift) - slot_.base.value;
  for (const bool is_private : {false, true}) {
    const std::byte* const host = is_private ? slot_.private_backing->host() : slot_.host;
    each_run(host + offset, pages, [&](PageRange run, bool) {
      for (u64 page = run.first; page < run.end; ++page)
        if (private_pages_->contains(page) == is_private)
          view.present[page % region_pages / 64] |= u64{1} << page % 64;
    });
  }
}

bool SlotMappings::may_be_large(const Region& region) const { return !slot_.dirty || region.kept_large; }

void SlotMappings::count(MappingSizes& sizes) const {
  if (!mapped_.may_have(all())) return;
  look(all(), any, [&](const View& v) {
    if (v.could_be_one && may_be_large(*v.region)) {
      ++sizes.pages_2m;
      return;
    }
    for (std::size_t i = 0; i < v.present.size(); ++i)
      sizes.pages_4k += static_cast<u64>(std::popcount(v.region->word(i) & v.present[i]));
  });
}

void SlotMappings::split(PageRange range) const {
  const u64 base = slot_.base.frame();
  const auto wanted = [this](const Region& region) { return may_be_large(region); };
  look({base + range.first, base + range.end}, wanted, [](const View& v) {
    if (v.could_be_one) v.region->add(v.slot);
    v.region->kept_large = false;
  });
}

void SlotMappings::keep() const {
  look(all(), any, [](const View& v) { v.region->kept_large = v.could_be_one; });
}

void SlotMappings::recover() const {
  look(all(), any, [](const View& v) {
    if (v.could_be_one) v.region->remove(v.slot);
    v.region->kept_large = false;
  });
}

} // namespace ring3::kvm
