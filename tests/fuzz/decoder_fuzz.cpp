// SPDX-License-Identifier: Apache-2.0
// Random bytes as instructions of each code size: the decoder and the binders never crash, and lengths are
// possible.
#include "x86/cpu/cpuid_model.h"
#include "x86/decode/decoded.h"
#include "x86/interp/bind.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>

namespace {

using namespace ring3;
using namespace ring3::x86;

const CpuidTable& table() {
  static const CpuidTable t = [] {
    CpuidTable x;
    if (const auto model = select_cpu_model("max")) x.set(cpuid_entries(*model, 0, 1));
    return x;
  }();
  return t;
}

void check(bool ok) {
  if (!ok) std::abort();
}

void one(const u8* bytes, u64 size, unsigned code_bits) {
  // On the heap and no larger, so that a read beyond the end is seen.
  const auto copy = std::make_unique<u8[]>(size);
  std::memcpy(copy.get(), bytes, size);
  Decoded d;
  const DecodeStatus status = decode(copy.get(), size, code_bits, d);
  if (status == DecodeStatus::need_more) check(size < 15);
  if (status != DecodeStatus::ok) return;
  check(d.length >= 1 && d.length <= 15 && d.length <= size);
  check(d.operands <= d.operand.size() && d.visible_operands <= d.operands);
  check(d.modrm_offset + 1U <= d.length && d.disp_offset + d.disp_size / 8U <= d.length);
  check(d.imm_offset + d.imm_size / 8U <= d.length);
  // Decoding looks at nothing behind the instruction.
  Decoded again;
  check(decode(copy.get(), d.length, code_bits, again) == DecodeStatus::ok && again.length == d.length);
  Insn in;
  bool ends = false;
  bind(d, table(), in, ends);
  check(in.handler != nullptr && in.len == d.length);
  check(in.base < reg_slots && in.index < reg_slots && in.scale <= 3);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  for (std::size_t at = 0; at < std::min<std::size_t>(size, 64); ++at) {
    const u64 n = std::min<u64>(size - at, 15);
    for (const unsigned bits : {16U, 32U, 64U}) one(data + at, n, bits);
  }
  return 0;
}
