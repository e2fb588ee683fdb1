// SPDX-License-Identifier: Apache-2.0
// What is remembered of an instruction is what decoding it again would say.
#include "x86/decode/decode_memo.h"

#include "x86/cpu/cpuid_model.h"
#include "x86/interp/bind.h"

#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace ring3::x86 {
namespace {

class Memo : public ::testing::Test {
 protected:
  Memo() { set_features("max"); }
  void set_features(const char* model) {
    const auto found = select_cpu_model(model);
    ASSERT_TRUE(found);
    cpuid.set(cpuid_entries(*found, 0, 1));
  }
  void expect_same(std::span<const u8> bytes, unsigned bits) {
    DecodeStatus status{};
    const BoundInsn* const found = memo.look(bytes, bits, cpuid, status);
    Decoded d;
    const DecodeStatus wanted = decode(bytes.data(), bytes.size(), bits, d);
    ASSERT_EQ(found != nullptr, wanted == DecodeStatus::ok);
    if (found == nullptr) {
      EXPECT_EQ(status, wanted);
      return;
    }
    Insn insn;
    bool ends = false;
    bind(d, cpuid, insn, ends);
    EXPECT_EQ(found->decoded.op, d.op);
    EXPECT_EQ(found->decoded.length, d.length);
    EXPECT_EQ(found->decoded.bytes, d.bytes);
    EXPECT_EQ(found->decoded.code_bits, bits);
    EXPECT_EQ(found->decoded.displacement, d.displacement);
    EXPECT_EQ(found->insn.handler, insn.handler);
    EXPECT_EQ(found->insn.imm, insn.imm);
    EXPECT_EQ(found->ends, ends);
  }

  CpuidTable cpuid;
  DecodeMemo memo;
};

// From few different bytes, so that many begin alike and are of other lengths, and the same ones come again.
TEST_F(Memo, AgreesWithTheDecoder) {
  constexpr u8 some[] = {0x00, 0x0f, 0x48, 0x66, 0x67, 0x81, 0x83, 0x89, 0x8b, 0xc0, 0xc3, 0xc7, 0xe8, 0xf3};
  std::mt19937 random(1);
  std::vector<std::vector<u8>> all;
  for (unsigned i = 0; i < 4000; ++i) {
    std::vector<u8> bytes(1 + random() % 16);
    for (u8& b : bytes) b = some[random() % std::size(some)];
    all.push_back(std::move(bytes));
  }
  for (unsigned round = 0; round < 2; ++round) {
    for (const auto& bytes : all) {
      for (const unsigned bits : {16, 32, 64}) expect_same(bytes, bits);
    }
  }
}

TEST_F(Memo, TheEndOfWhatThereIs) {
  const std::vector<u8> insn{0x48, 0x81, 0xc0, 1, 2, 3, 4}; // add rax, 04030201h
  expect_same(insn, 64);
  for (std::size_t n = 1; n < insn.size(); ++n) expect_same(std::span(insn).first(n), 64);
}

TEST_F(Memo, ClearedWhenCpuidChanges) {
  const std::vector<u8> rdtscp{0x0f, 0x01, 0xf9};
  DecodeStatus status{};
  const auto handler = [&] { return memo.look(rdtscp, 64, cpuid, status)->insn.handler; };
  EXPECT_NE(handler(), &handle_ud);
  cpuid.set({});
  memo.clear();
  EXPECT_EQ(handler(), &handle_ud);
}

} // namespace
} // namespace ring3::x86
