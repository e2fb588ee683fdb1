// SPDX-License-Identifier: Apache-2.0
// The slow paths of guest memory accesses: TLB misses, page splits, devices, watchpoints, and stores to code.
#include "kvm/residency.h"
#include "x86/cpu/cpu.h"
#include "x86/cpu/store_log.h"
#include "x86/decode/block_cache.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86 {

TlbMode Cpu::tlb_mode(bool system) const {
  if (!system && state.cpl == 3) return TlbMode::user;
  if ((state.cr4 & cr4::smap) == 0) return TlbMode::kernel_ac;
  return !system && (state.system_flags & rflags::ac) != 0 ? TlbMode::kernel_ac : TlbMode::kernel;
}

bool Cpu::segment_fault(Seg s) {
  record_fault(Fault{.vector = s == Seg::ss ? Vector::ss : Vector::gp, .error_code = 0});
  return false;
}

GuestVirt Cpu::next_page(GuestVirt a, bool system) const {
  const bool wide = code64_ || (system && state.long_mode());
  return GuestVirt{(a.page().value + page_size) & (wide ? ~u64{0} : low_mask(32))};
}

bool Cpu::translate(GuestVirt a, Access access, bool system, Seg s, Translation& t, Backing& b) {
  if (state.long_mode() && !canonical(a.value)) return segment_fault(access == Access::fetch ? Seg::cs : s);
  const TlbMode mode = tlb_mode(system);
  if (!mmu.walk(a, access, mode == TlbMode::user, system, t, fault)) {
    if (const auto page = mmu.lost_page()) return lose_page(*page);
    fault_pending = true;
    return false;
  }
  if (platform.claims_page(t.pa.page())) {
    b = {};
    return true;
  }
  b = mmu.backing(t.pa);
  if (b.unreachable) return lose_page(t.pa.page());
  if (b.host == nullptr) return true;
  if (kvm::Residency::of_process().armed() && put_off(t.pa.page(), b, system)) [[unlikely]]
    return false;
  if (access == Access::write && !b.slot->read_only()) mmu.mark_dirty(b, t.pa);
  mmu.fill(mode, a, access, t, b);
  return true;
}

bool Cpu::lose_page(GuestPhys page) {
  lost_page = page;
  request_exit(CpuExit::memory_fault);
  return false;
}

// Asynchronous page faults. Whatever cannot begin anew has to wait for the page.
bool Cpu::put_off(GuestPhys page, const Backing& b, bool system) {
  if (system || delivering_ || rip_committed_ || replaying()) return false;
  const auto token = platform.put_off_access(page, b.host);
  if (!token) return false;
  record_fault(Fault{.vector = Vector::pf, .error_code = 0, .cr2 = *token});
  return true;
}

bool Cpu::fetch_page(GuestVirt a, Translation& t, Backing& b) {
  return translate(a, Access::fetch, false, Seg::cs, t, b);
}

bool Cpu::access_checks(GuestVirt a, u64 size, Seg s, bool system) {
  if (!alignment_checks_ || system) return true;
  // Only power-of-two sizes up to 8 are checked here; wider operands have rules of their own (SDM vol.
  // 3, 6.15, #AC).
  if (size > 8 || (size & (size - 1)) != 0 || (a.value & (size - 1)) == 0) return true;
  (void)s;
  raise(Vector::ac, 0);
  return false;
}

bool Cpu::read_piece(const Translation& t, const Backing& b, std::byte* out, u64 size) {
  if (b.host == nullptr && store_log_ != nullptr) store_log_->cannot_undo();
  if (b.host == nullptr) return external_read(t.pa, out, size);
  const std::byte* p = b.host + t.pa.page_offset();
  switch (size) {
  case 2: store_raw(out, guest_load<u16>(p)); break;
  case 4: store_raw(out, guest_load<u32>(p)); break;
  case 8: store_raw(out, guest_load<u64>(p)); break;
  default:
    for (u64 i = 0; i < size; ++i) out[i] = guest_load<std::byte>(p + i);
  }
  return true;
}

bool Cpu::write_piece(const Translation& t, const Backing& b, const std::byte* in, u64 size) {
  const bool outside = b.host == nullptr || b.slot->read_only();
  if (outside && store_log_ != nullptr) store_log_->cannot_undo();
  if (outside) return external_write(t.pa, in, size);
  std::byte* p = b.host + t.pa.page_offset();
  if (store_log_ != nullptr) store_log_->before_store(p, size);
  switch (size) {
  case 2: guest_store(p, load_raw<u16>(in)); break;
  case 4: guest_store(p, load_raw<u32>(in)); break;
  case 8: guest_store(p, load_raw<u64>(in)); break;
  default:
    for (u64 i = 0; i < size; ++i) guest_store<std::byte>(p + i, in[i]);
  }
  code_written(t.pa, size);
  return true;
}

void Cpu::code_written(GuestPhys a, u64 size) {
  kvm::CodePage* page = mmu.code_watch().find(a);
  if (page == nullptr) return;
  if ((page->lines.load(std::memory_order_relaxed) & kvm::CodePage::lines_of(a.page_offset(), size)) == 0)
    return;
  mmu.code_watch().written(a, size);
  blocks_->code_page_changed(page);
}

void Cpu::watch_code(kvm::CodePage& page, GuestPhys a, const std::byte* host, u64 size) {
  const u32 lines = kvm::CodePage::lines_of(a.page_offset(), size);
  if (page.lines.fetch_or(lines, std::memory_order_acq_rel) != 0) return;
  const std::byte* const page_host = host - a.page_offset();
  mmu.protect_host_page(page_host);
  mmu.code_watch().note_new(a.page(), page_host);
  platform.code_page_found();
}

bool Cpu::load_slow(GuestVirt a, void* out, u64 size, Seg s, bool system) {
  if (!access_checks(a, size, s, system)) return false;
  auto* dst = static_cast<std::byte*>(out);
  const u64 room = page_size - a.page_offset();
  Translation t;
  Backing b;
  if (!translate(a, Access::read, system, s, t, b)) return false;
  if (size <= room) {
    if (!read_piece(t, b, dst, size)) return false;
  } else {
    Translation t2;
    Backing b2;
    if (!translate(next_page(a, system), Access::read, system, s, t2, b2)) return false;
    if (!read_piece(t, b, dst, room) || !read_piece(t2, b2, dst + room, size - room)) return false;
  }
  if (watchpoints_ && !system) note_watchpoint(a, size, false);
  return true;
}

bool Cpu::store_slow(GuestVirt a, const void* in, u64 size, Seg s, bool system) {
  if (!access_checks(a, size, s, system)) return false;
  const auto* src = static_cast<const std::byte*>(in);
  const u64 room = page_size - a.page_offset();
  Translation t;
  Backing b;
  if (!translate(a, Access::write, system, s, t, b)) return false;
  if (size <= room) {
    if (!write_piece(t, b, src, size)) return false;
  } else {
    Translation t2;
    Backing b2;
    if (!translate(next_page(a, system), Access::write, system, s, t2, b2)) return false;
    if (!write_piece(t, b, src, room) || !write_piece(t2, b2, src + room, size - room)) return false;
  }
  if (watchpoints_ && !system) note_watchpoint(a, size, true);
  return true;
}

std::byte* Cpu::host_for_update_slow(GuestVirt a, u64 size, Seg s) {
  if (!access_checks(a, size, s, false)) return nullptr;
  Translation t;
  Backing b;
  if (!translate(a, Access::write, false, s, t, b)) return nullptr;
  if (a.page_offset() + size > page_size || b.host == nullptr || b.slot->read_only()) return nullptr;
  if (watchpoints_) note_watchpoint(a, size, true);
  const kvm::CodePage* page = mmu.code_watch().find(t.pa);
  if (page != nullptr && (page->lines.load(std::memory_order_relaxed) &
                          kvm::CodePage::lines_of(t.pa.page_offset(), size)) != 0) {
    code_update_at_ = t.pa;
    code_update_size_ = size;
  }
  if (store_log_ != nullptr) store_log_->before_store(b.host + t.pa.page_offset(), size);
  return b.host + t.pa.page_offset();
}

void Cpu::finish_code_update() {
  code_written(code_update_at_, code_update_size_);
  code_update_size_ = 0;
}

bool Cpu::probe_system_write(GuestVirt a, u64 size) {
  Translation t;
  Backing b;
  if (!translate(a, Access::write, true, Seg::tr, t, b)) return false;
  return a.page_offset() + size <= page_size ||
         translate(next_page(a, true), Access::write, true, Seg::tr, t, b);
}

bool Cpu::read_bytes(Seg s, u64 offset, void* out, u64 size) {
  GuestVirt a;
  return linear(s, offset, size, false, a) && load_slow(a, out, size, s, false);
}

bool Cpu::write_bytes(Seg s, u64 offset, const void* in, u64 size) {
  GuestVirt a;
  return linear(s, offset, size, true, a) && store_slow(a, in, size, s, false);
}

bool Cpu::probe_write(Seg s, u64 offset, u64 size) {
  GuestVirt a;
  Translation t;
  Backing b;
  if (!linear(s, offset, size, true, a) || !translate(a, Access::write, false, s, t, b)) return false;
  return a.page_offset() + size <= page_size || translate(next_page(a, false), Access::write, false, s, t, b);
}

// --- accesses for devices ---

// Whether user space has already performed this very access for the instruction under way. Asked before the
// platform: meanwhile that might claim the access, too (a ring of coalesced writes has room again).
bool Cpu::replayed(const ExternalAccess& want, u64& data) {
  if (replay_next_ >= replay_count_) return false;
  if (!replay_[replay_next_].same_as(want)) return false;
  data = replay_[replay_next_++].data;
  return true;
}

bool Cpu::replay_or_exit(ExternalAccess want, u64& data) {
  if (replay_next_ < replay_count_) {
    data = replay_[replay_next_++].data;
    return true;
  }
  external = want;
  switch (want.kind) {
  case ExternalAccess::Kind::memory: request_exit(CpuExit::mmio); break;
  case ExternalAccess::Kind::port: request_exit(CpuExit::io); break;
  case ExternalAccess::Kind::hypercall: request_exit(CpuExit::hypercall); break;
  case ExternalAccess::Kind::msr: request_exit(CpuExit::msr); break;
  }
  return false;
}

void Cpu::complete_external(u64 data, bool refused) {
  external.data = data;
  external.refused = refused;
  if (replay_count_ < max_replay) replay_[replay_count_++] = external;
}

void Cpu::complete_external(std::span<const std::byte> elements) {
  StringInput& s = string_input_;
  if (elements.size() > s.data.size()) return;
  s.port = static_cast<u16>(external.address);
  s.size = external.size;
  s.count = static_cast<u32>(elements.size()) / external.size;
  s.next = 0;
  std::ranges::copy(elements, s.data.begin());
}

bool Cpu::external_read(GuestPhys a, std::byte* out, u64 size) {
  if (size <= 8) {
    u64 data = 0;
    if (replayed({.write = false, .size = static_cast<u8>(size), .address = a.value}, data)) {
      std::memcpy(out, &data, size);
      return true;
    }
    if (platform.mmio_read(a, {out, size})) return true;
  }
  while (size > 0) {
    const u64 n = std::min<u64>(size, 8);
    u64 data = 0;
    if (!replay_or_exit({.write = false, .size = static_cast<u8>(n), .address = a.value}, data)) return false;
    std::memcpy(out, &data, n);
    out += n;
    a = a + n;
    size -= n;
  }
  return true;
}

bool Cpu::external_write(GuestPhys a, const std::byte* in, u64 size) {
  if (size <= 8) {
    u64 ignored;
    if (replayed({.write = true, .size = static_cast<u8>(size), .address = a.value}, ignored) ||
        platform.mmio_write(a, {in, size}))
      return true;
  }
  while (size > 0) {
    const u64 n = std::min<u64>(size, 8);
    u64 data = 0;
    std::memcpy(&data, in, n);
    u64 ignored;
    if (!replay_or_exit({.write = true, .size = static_cast<u8>(n), .address = a.value, .data = data},
                        ignored))
      return false;
    in += n;
    a = a + n;
    size -= n;
  }
  return true;
}

bool Cpu::port_read(u16 port, u8 size, u32& value, bool string, u32 most) {
  if (StringInput& s = string_input_; s.left() != 0 && s.port == port && s.size == size) {
    value = 0;
    std::memcpy(&value, s.data.data() + s.next++ * size, size);
    return true;
  }
  u64 data;
  const ExternalAccess want{
      .kind = ExternalAccess::Kind::port, .string = string, .size = size, .count = most, .address = port};
  if (replayed(want, data)) {
    value = static_cast<u32>(data);
    return true;
  }
  if (platform.port_read(port, size, value)) return true;
  if (!replay_or_exit(want, data)) return false;
  value = static_cast<u32>(data);
  return true;
}

bool Cpu::port_write(u16 port, u8 size, u32 value, bool string) {
  u64 ignored;
  const ExternalAccess want{.kind = ExternalAccess::Kind::port,
                            .write = true,
                            .string = string,
                            .size = size,
                            .address = port,
                            .data = value};
  if (replayed(want, ignored)) return true;
  if (platform.port_write(port, size, value)) return true;
  return replay_or_exit(want, ignored);
}

bool Cpu::ask_user_space(u64& answer) {
  return replay_or_exit({.kind = ExternalAccess::Kind::hypercall}, answer);
}

std::optional<ExternalAccess> Cpu::msr_answer(u32 index, bool write) {
  const ExternalAccess want{.kind = ExternalAccess::Kind::msr, .write = write, .address = index};
  u64 data = 0;
  if (!replayed(want, data)) return std::nullopt;
  return replay_[replay_next_ - 1];
}

void Cpu::ask_for_msr(u32 index, bool write, u64 data, u32 reason) {
  external = {
      .kind = ExternalAccess::Kind::msr, .write = write, .address = index, .data = data, .reason = reason};
  request_exit(CpuExit::msr);
}

// --- data breakpoints (SDM vol. 3, 17.2.5) ---

void Cpu::note_watchpoint(GuestVirt a, u64 size, bool write) {
  const u64 dr7 = active_dr7();
  for (unsigned i = 0; i < 4; ++i) {
    if (field(dr7, 2 * i + 1, 2 * i) == 0) continue;
    const u64 kind = field(dr7, 17 + 4 * i, 16 + 4 * i);
    const u64 len_code = field(dr7, 19 + 4 * i, 18 + 4 * i);
    if (kind == 0 || kind == 2 || (kind == 1 && !write)) continue;
    const u64 len = len_code == 2 ? 8 : len_code + 1;
    const u64 start = active_dr(i) & ~(len - 1);
    if (a.value < start + len && start < a.value + size) pending_db_ |= bit(i);
  }
}

} // namespace ring3::x86
