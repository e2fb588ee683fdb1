// SPDX-License-Identifier: Apache-2.0
#include "x86/decode/block_cache.h"

#include "x86/cpu/cpu.h"
#include "x86/decode/decode_memo.h"
#include "x86/interp/bind.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace ring3::x86 {

namespace {

unsigned hash(u64 key, unsigned bits) {
  return static_cast<unsigned>((key * 0x9e3779b97f4a7c15ULL) >> (64 - bits));
}

Insn sentinel() {
  Insn in{};
  in.handler = handle_block_end;
  return in;
}

} // namespace

BlockCache::BlockCache(Cpu& cpu) : cpu_(cpu) {}

BlockCache::~BlockCache() = default;

void BlockCache::flush() {
  current_ = nullptr;
  if (blocks_used_ != 0) std::ranges::fill(table_.all(), Slot{});
  insns_used_ = blocks_used_ = bytes_used_ = 0;
  if (any_split_) std::ranges::fill(split_.all(), SplitEntry{});
  any_split_ = false;
}

void BlockCache::code_page_changed(const kvm::CodePage* page) {
  if (current_ == nullptr || current_->page != page) return;
  for (unsigned i = 0; i < current_->count; ++i) {
    current_->insns[i].handler = handle_block_end;
    current_->insns[i].len = 0;
  }
}

bool BlockCache::current_and_equal(Block& b) const {
  if (b.version != b.page->version.load(std::memory_order_acquire)) return false;
  if (b.epoch != cpu_.code_epoch) [[unlikely]] {
    if (!equals_guest(b.copy, b.source, b.bytes)) return false;
    b.epoch = cpu_.code_epoch;
  }
  return true;
}

const std::byte* BlockCache::fetch(GuestVirt at, GuestPhys& pa) {
  Translation t;
  Backing b;
  if (!cpu_.fetch_page(at, t, b)) return nullptr;
  pa = t.pa;
  if (b.host != nullptr) return b.host;
  cpu_.internal_error = "instruction fetch from a device";
  cpu_.request_exit(CpuExit::internal_error);
  return nullptr;
}

Block* BlockCache::follow_link() {
  if (current_ == nullptr || !cpu_.code64_) return nullptr;
  const u64 rip = cpu_.state.regs[reg_rip];
  const BlockLink& l = current_->link[(rip >> 3) & 1];
  if (l.rip != rip || l.generation != cpu_.mmu.generation() || l.table != cpu_.code_tlb_) return nullptr;
  if (!current_and_equal(*l.to)) return nullptr;
  current_ = l.to;
  return l.to;
}

Block* BlockCache::lookup(bool single) {
  if (!single) {
    if (Block* b = follow_link()) [[likely]]
      return b;
  }
  CpuState& s = cpu_.state;
  const u64 rip = s.regs[reg_rip];
  u64 linear = rip;
  if (!cpu_.code64_) {
    const Segment& cs = s.segment(Seg::cs);
    if (rip > cs.limit) {
      cpu_.gp();
      return nullptr;
    }
    linear = (rip + cpu_.segment_base_[static_cast<unsigned>(Seg::cs)]) & low_mask(32);
  }
  const GuestVirt at{linear};
  const TlbEntry* e = &cpu_.code_tlb_->at(linear);
  GuestPhys pa{};
  bool have_pa = false;
  if (e->exec_tag != at.page().value) {
    if (fetch(at, pa) == nullptr) return nullptr;
    have_pa = true;
    e = &cpu_.code_tlb_->at(linear);
  }
  const auto* host = reinterpret_cast<const std::byte*>(linear + e->addend);
  const unsigned bits = cpu_.code_bits_;
  const u64 mode = (bits == 64 ? 2u : bits == 32 ? 1u : 0u) | (single ? 4u : 0u);
  const u64 key = reinterpret_cast<u64>(host) << 3 | mode;
  Slot& slot = table_[hash(key, table_bits)];
  Block* block = nullptr;
  if (slot.key == key && current_and_equal(*slot.block)) [[likely]] {
    block = slot.block;
  } else {
    if (!have_pa && fetch(at, pa) == nullptr) return nullptr;
    block = build(at, pa, host, key, single);
    if (block == nullptr) return nullptr;
  }
  if (!cpu_.code64_ && rip + block->bytes - 1 > s.segment(Seg::cs).limit) {
    if (!single) return lookup(true);
    cpu_.gp();
    return nullptr;
  }
  if (current_ != nullptr && current_->page != nullptr && block->page != nullptr && !single && cpu_.code64_) {
    current_->link[(rip >> 3) & 1] = {rip, cpu_.mmu.generation(), cpu_.code_tlb_, block};
  }
  current_ = block;
  return block;
}

Block* BlockCache::build(GuestVirt at, GuestPhys pa, const std::byte* host, u64 key, bool single) {
  constexpr u64 window = 320;
  const unsigned bits = cpu_.code_bits_;
  const u64 available = std::min(window, page_size - pa.page_offset());

  for (;;) {
    std::array<u8, window> bytes;
    kvm::CodePage* page = cpu_.mmu.code_watch().page(pa);
    const u32 version = page != nullptr ? page->version.load(std::memory_order_acquire) : 0;
    copy_guest(bytes.data(), host, available);

    unsigned count = 0;
    u64 used = 0;
    bool ends = false;
    const unsigned most = single ? 1 : max_insns;
    while (count < most && !ends) {
      Insn& in = uncached_insns_[count];
      DecodeStatus status;
      const auto rest = std::span(bytes).first(available).subspan(used);
      if (const BoundInsn* const found = cpu_.decode_memo().look(rest, bits, cpu_.cpuid, status)) {
        in = found->insn;
        ends = found->ends;
      } else if (status == DecodeStatus::need_more) {
        if (count > 0) break;
        return build_split(at, bytes.data(), available);
      } else {
        in = Insn{};
        in.handler = status == DecodeStatus::too_long ? handle_too_long : handle_ud;
        in.len = 1;
        ends = true;
      }
      used += in.len;
      ++count;
      ++decoded_;
    }

    Block* b = &uncached_;
    if (page != nullptr) {
      cpu_.watch_code(*page, pa, host, used);
      // Bytes that changed while we looked, before the page was watched, would go unnoticed for ever.
      if (!equals_guest(bytes.data(), host, used)) continue;
      if (insns_used_ + count + 1 > insn_capacity || blocks_used_ + 1 > block_capacity ||
          bytes_used_ + used > byte_capacity) {
        flush();
      }
      b = &blocks_[blocks_used_++];
      b->link[0] = b->link[1] = BlockLink{};
      b->insns = &insns_[insns_used_];
      insns_used_ += count + 1;
      std::copy_n(uncached_insns_, count, b->insns);
      u8* copy = &bytes_[bytes_used_];
      bytes_used_ += used;
      std::memcpy(copy, bytes.data(), used);
      b->copy = copy;
      b->source = host;
      Slot& slot = table_[hash(key, table_bits)];
      slot = {key, b};
    } else {
      b->insns = uncached_insns_;
    }
    b->insns[count] = sentinel();
    b->key = key;
    b->page = page;
    b->version = version;
    b->count = static_cast<u16>(count);
    b->bytes = static_cast<u16>(used);
    b->epoch = cpu_.code_epoch;
    return b;
  }
}

// An instruction that continues on the next page. Its bytes are compared at each use instead of being
// watched: both pages may change on their own.
Block* BlockCache::build_split(GuestVirt at, const u8* first, u64 first_size) {
  std::array<u8, 15> bytes{};
  std::memcpy(bytes.data(), first, std::min<u64>(first_size, 15));
  const GuestVirt next = cpu_.next_page(at, false);
  const TlbEntry& e = cpu_.code_tlb_->at(next.value);
  const std::byte* host = nullptr;
  if (e.exec_tag == next.value) {
    host = reinterpret_cast<const std::byte*>(next.value + e.addend);
  } else {
    GuestPhys ignored;
    host = fetch(next, ignored);
    if (host == nullptr) return nullptr;
  }
  if (first_size < 15) copy_guest(bytes.data() + first_size, host, 15 - first_size);

  SplitEntry& entry = split_[hash(at.value ^ cpu_.code_bits_, split_bits)];
  if (!(entry.at == at.value && entry.bits == cpu_.code_bits_ && entry.bytes == bytes)) {
    DecodeStatus status;
    if (const BoundInsn* const found = cpu_.decode_memo().look(bytes, cpu_.code_bits_, cpu_.cpuid, status)) {
      entry.insn = found->insn;
    } else {
      entry.insn = Insn{};
      entry.insn.handler = status == DecodeStatus::invalid ? handle_ud : handle_too_long;
      entry.insn.len = 1;
    }
    any_split_ = true;
    entry.at = at.value;
    entry.bits = cpu_.code_bits_;
    entry.bytes = bytes;
    ++decoded_;
  }
  uncached_insns_[0] = entry.insn;
  uncached_insns_[1] = sentinel();
  uncached_ = Block{};
  uncached_.count = 1;
  uncached_.bytes = entry.insn.len;
  uncached_.insns = uncached_insns_;
  return &uncached_;
}

} // namespace ring3::x86
