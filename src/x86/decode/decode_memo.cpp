// SPDX-License-Identifier: Apache-2.0
#include "x86/decode/decode_memo.h"

#include "base/bits.h"
#include "x86/interp/bind.h"

#include <algorithm>
#include <cstring>

namespace ring3::x86 {

DecodeMemo::Key DecodeMemo::key_of(const std::array<u8, 16>& start, unsigned length, unsigned code_bits) {
  Key k;
  std::memcpy(&k.low, start.data(), 8);
  std::memcpy(&k.high, &start[8], 8);
  if (length < 8) {
    k.low &= low_mask(length * 8);
    k.high = 0;
  } else {
    k.high &= low_mask((length - 8) * 8);
  }
  k.high |= u64{length | code_bits} << 56; // 16, 32 and 64 are no lengths
  return k;
}

std::size_t DecodeMemo::place(const Key& key) {
  return (key.low ^ key.high * 0x9e3779b97f4a7c15ULL) * 0xd6e8feb86659fd93ULL >> (64 - slot_bits);
}

const BoundInsn* DecodeMemo::look(std::span<const u8> bytes, unsigned code_bits, const CpuidTable& cpuid,
                                  DecodeStatus& status) {
  std::array<u8, 16> start{};
  std::memcpy(start.data(), bytes.data(), std::min<std::size_t>(bytes.size(), 15));
  u32 first;
  std::memcpy(&first, start.data(), sizeof first);
  u8& length = lengths_[(first ^ code_bits) * 0x9e3779b1U >> (32 - length_bits)];
  if (length != 0 && length <= bytes.size()) {
    const Key key = key_of(start, length, code_bits);
    const Slot& s = slots_[place(key)];
    if (s.key == key) return &s.insn;
  }
  BoundInsn made;
  status = decode(bytes.data(), bytes.size(), code_bits, made.decoded);
  if (status != DecodeStatus::ok) return nullptr;
  bind(made.decoded, cpuid, made.insn, made.ends);
  length = made.decoded.length;
  const Key key = key_of(start, length, code_bits);
  Slot& s = slots_[place(key)];
  s = {key, made};
  return &s.insn;
}

} // namespace ring3::x86
