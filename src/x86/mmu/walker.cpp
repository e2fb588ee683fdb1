// SPDX-License-Identifier: Apache-2.0
// The page walk (SDM vol. 3, 4.3 to 4.7).
#include "x86/mmu/guest_access.h"
#include "x86/mmu/mmu.h"

#include <algorithm>

namespace ring3::x86 {

namespace {

namespace pte {
constexpr u64 present = bit(0), writable = bit(1), user = bit(2), accessed = bit(5), dirty = bit(6),
              large = bit(7), global = bit(8), nx = bit(63);
constexpr u64 address = low_mask(52) & ~low_mask(12);
} // namespace pte

} // namespace

bool Mmu::fail(GuestVirt va, Access access, bool user, u32 code, Fault& fault) const {
  if (access == Access::write) code |= pf::write;
  if (user) code |= pf::user;
  const bool reports_fetch = (state_.efer & efer::nxe) != 0 && (state_.cr4 & cr4::pae) != 0;
  if (access == Access::fetch && (reports_fetch || (state_.cr4 & cr4::smep) != 0)) code |= pf::fetch;
  fault = Fault{.vector = Vector::pf, .error_code = code, .cr2 = va.value};
  return false;
}

// False: the page cannot be reached, see lost_page().
template <class Entry> bool Mmu::read_entry(u64 pa, Entry& out, std::byte*& host) {
  const GuestPhys a{pa};
  const Backing b = backing(a);
  if (b.unreachable) {
    lost_page_ = a.page();
    return false;
  }
  if (b.host == nullptr) {
    // Nothing answers there: the bus reads as all ones.
    host = nullptr;
    out = static_cast<Entry>(~u64{0});
    return true;
  }
  host = b.host + a.page_offset();
  out = guest_load<Entry>(host);
  return true;
}

// Sets bits in a paging-structure entry unless another processor changed it meanwhile: then the walk starts
// over.
template <class Entry> bool Mmu::update_entry(u64 pa, std::byte* host, Entry& entry, Entry bits_to_set) {
  if ((entry & bits_to_set) == bits_to_set) return true;
  if (host == nullptr) return true;
  const Backing b = backing(GuestPhys{pa});
  if (b.slot == nullptr || b.slot->read_only()) return true; // private memory may be closed at any time
  Entry expected = entry;
  const Entry desired = static_cast<Entry>(entry | bits_to_set);
  if (!guest_cmpxchg<Entry>(host, expected, desired)) return false;
  entry = desired;
  mark_dirty(b, GuestPhys{pa});
  code_watch_.written(GuestPhys{pa}, sizeof(Entry));
  return true;
}

bool Mmu::walk(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault) {
  if ((state_.cr0 & cr0::pg) == 0) {
    out = Translation{.pa = GuestPhys{va.value & low_mask(32)},
                      .writable = true,
                      .user_page = true,
                      .dirty = true,
                      .global = false,
                      .large = false};
    return true;
  }
  if ((state_.cr4 & cr4::pae) == 0) return walk_32bit(va, access, user, implicit, out, fault);
  return walk_long(va, access, user, implicit, out, fault);
}

namespace {

struct Rights {
  bool user = true, writable = true, nx = false;
};

} // namespace

bool Mmu::walk_32bit(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault) {
  const bool wp = (state_.cr0 & cr0::wp) != 0;
  for (;;) {
    u32 pde;
    std::byte* pde_host;
    const u64 pde_pa = (state_.cr3 & 0xfffff000) + field(va.value, 31, 22) * 4;
    if (!read_entry(pde_pa, pde, pde_host)) return false;
    if ((pde & pte::present) == 0) return fail(va, access, user, 0, fault);
    const bool large = (pde & pte::large) != 0 && (state_.cr4 & cr4::pse) != 0;
    u32 leaf = pde;
    std::byte* leaf_host = pde_host;
    u64 leaf_pa = pde_pa;
    bool user_page = (pde & pte::user) != 0;
    bool writable = (pde & pte::writable) != 0;
    if (large) {
      // PSE-36: bits 20:13 are address bits 39:32; those above MAXPHYADDR and bit 21 are reserved.
      const unsigned pse_bits = std::min(max_phys_bits_, 40u);
      const u64 reserved = bit(21) | (low_mask(21) & ~low_mask(13 + pse_bits - 32));
      if ((pde & reserved) != 0) return fail(va, access, user, pf::present | pf::reserved, fault);
    } else {
      leaf_pa = (pde & 0xfffff000) + field(va.value, 21, 12) * 4;
      if (!read_entry(leaf_pa, leaf, leaf_host)) return false;
      if ((leaf & pte::present) == 0) {
        return fail(va, access, user, 0, fault);
      }
      user_page = user_page && (leaf & pte::user) != 0;
      writable = writable && (leaf & pte::writable) != 0;
    }

    const bool smap_applies =
        (state_.cr4 & cr4::smap) != 0 && user_page && (implicit || (state_.system_flags & rflags::ac) == 0);
    if (user) {
      if (!user_page) return fail(va, access, user, pf::present, fault);
      if (access == Access::write && !writable) return fail(va, access, user, pf::present, fault);
    } else {
      if (access == Access::fetch && user_page && (state_.cr4 & cr4::smep) != 0) {
        return fail(va, access, user, pf::present, fault);
      }
      if (access != Access::fetch && smap_applies) return fail(va, access, user, pf::present, fault);
      if (access == Access::write && !writable && wp) return fail(va, access, user, pf::present, fault);
      if (!wp) writable = true;
    }

    if (!large && !update_entry<u32>(pde_pa, pde_host, pde, pte::accessed)) continue;
    const u32 leaf_bits = static_cast<u32>(pte::accessed | (access == Access::write ? pte::dirty : 0));
    if (!update_entry<u32>(leaf_pa, leaf_host, leaf, leaf_bits)) continue;

    if (large) {
      const u64 high = field(leaf, 20, 13) << 32;
      out.pa = GuestPhys{high | (leaf & 0xffc00000) | (va.value & low_mask(22))};
    } else {
      out.pa = GuestPhys{(leaf & 0xfffff000) | va.page_offset()};
    }
    out.writable = writable;
    out.user_page = user_page;
    out.dirty = (leaf & pte::dirty) != 0;
    out.global = (leaf & pte::global) != 0 && (state_.cr4 & cr4::pge) != 0;
    out.large = large;
    return true;
  }
}

bool Mmu::walk_long(GuestVirt va, Access access, bool user, bool implicit, Translation& out, Fault& fault) {
  const bool long_mode = state_.long_mode();
  const bool wp = (state_.cr0 & cr0::wp) != 0;
  const bool nxe = (state_.efer & efer::nxe) != 0;
  const u64 always_reserved = (phys_reserved() & low_mask(52)) | (nxe ? 0 : pte::nx);
  // PAE paging has no ignored bits above the address (SDM vol. 3, table 4-8).
  const u64 pae_reserved = long_mode ? 0 : low_mask(63) & ~low_mask(52);

  for (;;) {
    int level;
    u64 table;
    if (long_mode) {
      level = (state_.cr4 & cr4::la57) != 0 ? 5 : 4;
      table = state_.cr3 & pte::address & ~phys_reserved();
    } else {
      const u64 pdpte = state_.pdpte[field(va.value, 31, 30)];
      if ((pdpte & pte::present) == 0) return fail(va, access, user, 0, fault);
      level = 2;
      table = pdpte & pte::address;
    }

    Rights rights;
    u64 entry = 0;
    u64 entry_pa = 0;
    std::byte* entry_host = nullptr;
    struct Upper {
      u64 pa;
      std::byte* host;
      u64 entry;
    } upper[4];
    int uppers = 0;
    bool large = false;
    for (;; --level) {
      const unsigned shift = 12 + 9 * static_cast<unsigned>(level - 1);
      entry_pa = table + field(va.value, shift + 8, shift) * 8;
      if (!read_entry(entry_pa, entry, entry_host)) return false;
      if ((entry & pte::present) == 0) return fail(va, access, user, 0, fault);
      u64 reserved = always_reserved | pae_reserved;
      if (level >= 4 || (level == 3 && !gbpages_)) reserved |= pte::large;
      large = level > 1 && level <= 3 && (entry & pte::large) != 0;
      if (large) reserved |= low_mask(shift) & ~low_mask(13);
      if ((entry & reserved) != 0) return fail(va, access, user, pf::present | pf::reserved, fault);
      rights.user = rights.user && (entry & pte::user) != 0;
      rights.writable = rights.writable && (entry & pte::writable) != 0;
      rights.nx = rights.nx || (nxe && (entry & pte::nx) != 0);
      if (level == 1 || large) break;
      upper[uppers++] = {entry_pa, entry_host, entry};
      table = entry & pte::address;
    }
    const unsigned shift = 12 + 9 * static_cast<unsigned>(level - 1);

    const bool user_page = rights.user;
    bool writable = rights.writable;
    u32 code = 0;
    if (user) {
      if (!user_page || (access == Access::write && !writable)) code = pf::present;
      if (access == Access::fetch && rights.nx) code = pf::present;
    } else {
      if (access == Access::fetch) {
        if (rights.nx || (user_page && (state_.cr4 & cr4::smep) != 0)) code = pf::present;
      } else {
        if ((state_.cr4 & cr4::smap) != 0 && user_page &&
            (implicit || (state_.system_flags & rflags::ac) == 0)) {
          code = pf::present;
        }
        if (access == Access::write && !writable && wp) code = pf::present;
      }
      if (!wp) writable = true;
    }
    // Protection keys (SDM vol. 3, 4.6.2): PKRU for user pages, IA32_PKRS for supervisor pages.
    if (long_mode && access != Access::fetch) {
      const unsigned key = static_cast<unsigned>(field(entry, 62, 59));
      u32 key_rights = 0;
      if (user_page && (state_.cr4 & cr4::pke) != 0) key_rights = (state_.pkru >> (2 * key)) & 3;
      if (!user_page && (state_.cr4 & cr4::pks) != 0) key_rights = (state_.pkrs >> (2 * key)) & 3;
      const bool access_disabled = (key_rights & 1) != 0;
      const bool write_disabled = (key_rights & 2) != 0 && (user || wp);
      if (access_disabled || (access == Access::write && write_disabled)) {
        // Reported together with any ordinary violation only if the mode's rights alone would not have
        // allowed it.
        code |= pf::present | pf::protection_key;
      }
      if (access_disabled || write_disabled) writable = false;
    }
    if (code != 0) return fail(va, access, user, code, fault);

    bool retry = false;
    for (int i = 0; i < uppers && !retry; ++i) {
      retry = !update_entry<u64>(upper[i].pa, upper[i].host, upper[i].entry, pte::accessed);
    }
    const u64 leaf_bits = pte::accessed | (access == Access::write ? pte::dirty : 0);
    if (retry || !update_entry<u64>(entry_pa, entry_host, entry, leaf_bits)) continue;

    out.pa = GuestPhys{(entry & pte::address & ~low_mask(shift)) | (va.value & low_mask(shift))};
    out.writable = writable;
    out.user_page = user_page;
    out.dirty = (entry & pte::dirty) != 0;
    out.global = (entry & pte::global) != 0 && (state_.cr4 & cr4::pge) != 0;
    out.large = large;
    return true;
  }
}

bool Mmu::probe(GuestVirt va, GuestPhys& out) {
  if ((state_.cr0 & cr0::pg) == 0) {
    out = GuestPhys{va.value & low_mask(32)};
    return true;
  }
  const bool pae = (state_.cr4 & cr4::pae) != 0;
  const unsigned index_bits = pae ? 9 : 10;
  int level = !pae ? 2 : !state_.long_mode() ? 2 : (state_.cr4 & cr4::la57) != 0 ? 5 : 4;
  u64 table = !pae ? state_.cr3 & 0xfffff000 : state_.cr3 & pte::address & ~phys_reserved();
  if (pae && !state_.long_mode()) {
    const u64 pdpte = state_.pdpte[field(va.value, 31, 30)];
    if ((pdpte & pte::present) == 0) return false;
    table = pdpte & pte::address;
  }
  for (;; --level) {
    const unsigned shift = 12 + index_bits * static_cast<unsigned>(level - 1);
    const u64 index = field(va.value, shift + index_bits - 1, shift);
    u64 entry = 0;
    if (!read_phys(GuestPhys{table + index * (pae ? 8 : 4)}, &entry, pae ? 8 : 4)) return false;
    if ((entry & pte::present) == 0) return false;
    const bool large =
        level > 1 && level <= 3 && (entry & pte::large) != 0 && (pae || (state_.cr4 & cr4::pse) != 0);
    if (level == 1 || large) {
      u64 frame = entry & pte::address & ~low_mask(shift);
      if (!pae && large) frame = (entry & 0xffc00000) | field(entry, 20, 13) << 32;
      out = GuestPhys{frame | (va.value & low_mask(shift))};
      return true;
    }
    table = entry & pte::address;
  }
}

bool Mmu::load_pdptes(u64 cr3) {
  u64 entry[4];
  for (unsigned i = 0; i < 4; ++i) {
    if (!read_phys(GuestPhys{(cr3 & 0xffffffe0) + i * 8}, &entry[i], 8)) entry[i] = 0;
    if ((entry[i] & pte::present) == 0) continue;
    const u64 reserved = phys_reserved() | (low_mask(9) & ~low_mask(5)) | bit(1) | bit(2);
    if ((entry[i] & reserved) != 0) return false;
  }
  for (unsigned i = 0; i < 4; ++i) state_.pdpte[i] = entry[i];
  return true;
}

} // namespace ring3::x86
