// SPDX-License-Identifier: Apache-2.0
// Decoded blocks of one vCPU. A block is a run of instructions within one page that ends at the first one
// that may go elsewhere; it is found by the host address of its first byte and the code size, so that every
// mapping of the page shares it, and it is stale as soon as its page's version (kvm/code_watch) has moved on.
#pragma once

#include "base/address.h"
#include "base/zeroed_array.h"
#include "kvm/code_watch.h"
#include "x86/decode/insn.h"

#include <array>
#include <memory>

namespace ring3::x86 {

struct Block;

// Where a block went last time: spares the successor's lookup while the address space is the same.
struct BlockLink {
  u64 rip = 0;
  u64 generation = 0;          // Mmu::generation(); 0: empty
  const void* table = nullptr; // the TLB table, which stands for PCID, ring and AC
  Block* to = nullptr;
};

struct Block {
  u64 key = 0;
  kvm::CodePage* page = nullptr; // null: never cached beyond one execution
  u32 version = 0;
  u16 count = 0;
  u16 bytes = 0;
  u64 epoch = 0; // Cpu::code_epoch when the bytes were last compared
  const std::byte* source = nullptr;
  const u8* copy = nullptr; // the bytes as decoded
  Insn* insns = nullptr;
  BlockLink link[2]; // chosen by the successor's address
};

class BlockCache {
 public:
  explicit BlockCache(Cpu& cpu);
  ~BlockCache();
  BlockCache(const BlockCache&) = delete;
  BlockCache& operator=(const BlockCache&) = delete;

  static constexpr unsigned max_insns = 48;

  // The block at CS:RIP by way of the block that ran last, or null. 64-bit code only.
  Block* follow_link();
  // The block at CS:RIP, decoded if need be; `single` for one instruction only. Null: a fault or exit is
  // recorded.
  Block* lookup(bool single);

  // A store hit decoded lines of this page: if the running block is on it, it stops after the current
  // instruction.
  void code_page_changed(const kvm::CodePage* page);

  // CPUID or anything else that changes what bytes mean.
  void flush();

  u64 decoded_instructions() const { return decoded_; }

 private:
  static constexpr unsigned table_bits = 15;
  static constexpr std::size_t insn_capacity = 96 * 1024;
  static constexpr std::size_t block_capacity = 24 * 1024;
  static constexpr std::size_t byte_capacity = 512 * 1024;

  struct Slot {
    u64 key = 0;
    Block* block = nullptr;
  };

  // An instruction that straddles two pages, kept by its bytes.
  struct SplitEntry {
    u64 at = 0;
    unsigned bits = 0; // of the code; 0: empty
    std::array<u8, 15> bytes{};
    Insn insn{};
  };
  static constexpr unsigned split_bits = 9;

  // The host page that instructions at `at` come from, with the TLB filled; null: a fault or exit is
  // recorded.
  const std::byte* fetch(GuestVirt at, GuestPhys& pa);
  Block* build(GuestVirt at, GuestPhys pa, const std::byte* host, u64 key, bool single);
  Block* build_split(GuestVirt at, const u8* first, u64 first_size);
  bool current_and_equal(Block& b) const;

  Cpu& cpu_;
  // A VMM may make a thousand vCPUs of which most decode little.
  ZeroedArray<Slot> table_{std::size_t{1} << table_bits};
  ZeroedArray<Insn> insns_{insn_capacity};
  ZeroedArray<Block> blocks_{block_capacity};
  ZeroedArray<u8> bytes_{byte_capacity};
  std::size_t insns_used_ = 0, blocks_used_ = 0, bytes_used_ = 0;
  Block* current_ = nullptr;
  Block uncached_;
  Insn uncached_insns_[max_insns + 1];
  ZeroedArray<SplitEntry> split_{std::size_t{1} << split_bits};
  bool any_split_ = false; // anything was put there
  u64 decoded_ = 0;
};

} // namespace ring3::x86
