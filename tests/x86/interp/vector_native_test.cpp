// SPDX-License-Identifier: Apache-2.0
// Every vector encoding that the decoder and this processor know, register and memory forms, with random
// operands: the handler must leave what the processor leaves.
#include "guest_cpu.h"
#include "native_run.h"
#include "x86/interp/host_code.h"

#include <iomanip>
#include <map>
#include <random>
#include <sstream>

namespace ring3::x86::test {

namespace {

class VectorNative : public testing::Test {
 protected:
  static constexpr u64 memory = GuestCpu::data + 0x2000;

  void SetUp() override {
    if (!host::has_avx512bw() || !host::has_feature(feature::avx512vl)) GTEST_SKIP() << "no AVX-512 here";
  }

  void fill(void* p, std::size_t size) {
    auto* b = static_cast<u8*>(p);
    for (std::size_t i = 0; i + 8 <= size; i += 8) {
      u64 v = random_();
      switch (random_() % 6) {
      case 0: v = std::bit_cast<u64>(static_cast<double>(static_cast<s64>(v) >> 40)); break;
      case 1:
        v = u64{std::bit_cast<u32>(static_cast<float>(static_cast<s32>(v) >> 16))} << 32 |
            std::bit_cast<u32>(static_cast<float>(static_cast<s32>(v >> 32) >> 8));
        break;
      case 2: {
        constexpr u64 special[] = {0,
                                   0x7ff0000000000000,
                                   0x7ff8000000000001,
                                   0x7ff0000000000001,
                                   1,
                                   0x7f8000007fc00000,
                                   0x8000000080000000,
                                   ~u64{0},
                                   0x7f80000100000001};
        v = special[random_() % std::size(special)];
        break;
      }
      default: break;
      }
      store_raw(b + i, v);
    }
  }

  // Executes both ways and compares; false: the processor does not take the instruction.
  void check(std::span<const u8> bytes) {
    Decoded d;
    if (decode(bytes.data(), bytes.size(), 64, d) != DecodeStatus::ok || d.op != Op::vector) return;
    if (d.vsib || !has(d.feature) || !has(d.feature2)) return;
    if (d.map == 1 && d.opcode == 0xf7 && d.encoding == Encoding::evex) return;
    const std::span<const u8> code = bytes.first(d.length);

    NativeState n;
    fill(&n, sizeof n);
    for (u64& k : n.k) k = random_();
    n.flags = 0x202 | (random_() & 0x8d5);
    n.mxcsr = 0x1f80 | (random_() & 0xe07f);
    n.gpr[rsi] = n.gpr[rdi] = memory;
    n.gpr[rax] &= 0xff; // lengths of PCMPESTRI
    n.gpr[rsp] = 0;
    u8 before[256];
    fill(before, sizeof before);
    auto* at = &GuestCpu::at<u8>(memory);
    std::memcpy(at - 64, before, sizeof before);

    CpuState& s = guest_.state();
    std::memcpy(s.regs, n.gpr, sizeof n.gpr);
    std::memcpy(s.vector.zmm, n.zmm, sizeof n.zmm);
    std::memcpy(s.vector.k, n.k, sizeof n.k);
    s.x87 = X87State{};
    bool mmx = false;
    for (unsigned i = 0; i < d.operands; ++i) mmx |= d.operand[i].kind == Operand::Kind::mmx;
    for (unsigned i = 0; i < 8; ++i) store_raw(s.x87.st[i], n.mmx[i]);
    s.x87.mxcsr = n.mxcsr;
    s.set_rflags(n.flags);

    const bool emms = d.map == 1 && d.opcode == 0x77 && d.encoding == Encoding::legacy;
    const bool native = runner_.run(code, n);
    u8 after[256];
    std::memcpy(after, at - 64, sizeof after);
    std::memcpy(at - 64, before, sizeof before);
    const Step step = guest_.execute(d);

    if (!native) {
      ++skipped_;
      return;
    }
    ++checked_;
    std::ostringstream what;
    if (step != Step::next) what << " not executed, vector " << static_cast<int>(guest_.cpu->fault.vector);
    for (unsigned i = 0; i < 32; ++i) {
      if (std::memcmp(s.vector.zmm[i], n.zmm[i], 64) != 0) what << " zmm" << i;
    }
    for (unsigned i = 0; i < 8; ++i) {
      if (s.vector.k[i] != n.k[i]) what << " k" << i;
      if (load_raw<u64>(s.x87.st[i]) != n.mmx[i]) what << " mm" << i;
    }
    for (unsigned i = 0; i < 16; ++i) {
      if (i != rsp && s.regs[i] != n.gpr[i]) what << " gpr" << i;
    }
    if (s.x87.mxcsr != n.mxcsr) what << " mxcsr " << std::hex << s.x87.mxcsr << " not " << n.mxcsr;
    if ((s.rflags() & rflags::arithmetic) != (n.flags & rflags::arithmetic)) what << " flags";
    if (std::memcmp(after, at - 64, sizeof after) != 0) what << " memory";
    if (s.x87.ftw != (mmx && !emms ? 0xff : 0)) what << " tags";
    if (!what.str().empty() && ++reported_ < 40) {
      std::ostringstream hex;
      for (const u8 b : code) hex << std::hex << std::setw(2) << std::setfill('0') << unsigned{b};
      ADD_FAILURE() << hex.str() << ":" << what.str();
    }
  }

  bool has(Feature f) {
    const u64 key = u64{f.leaf} << 32 | u64{f.subleaf} << 24 | static_cast<u64>(f.reg) << 8 | f.bit;
    const auto it = features_.find(key);
    return it != features_.end() ? it->second : (features_[key] = host::has_feature(f));
  }

  // Register and memory forms of what precedes ModRM.
  void check_forms(std::vector<u8> head, u8 imm) {
    for (const u8 modrm : {u8{0xca}, u8{0x0e}}) {
      std::vector<u8> code = head;
      code.push_back(modrm);
      code.push_back(imm);
      code.push_back(imm);
      check(code);
    }
    // Groups select the instruction by ModRM.reg.
    for (unsigned reg = 0; reg < 8; ++reg) {
      if (reg == 1) continue;
      std::vector<u8> code = head;
      code.push_back(static_cast<u8>(0xc2 | reg << 3));
      code.push_back(imm);
      code.push_back(imm);
      Decoded d;
      if (decode(code.data(), code.size(), 64, d) == DecodeStatus::ok && d.op == Op::vector && d.map == 1 &&
          d.opcode >= 0x71 && d.opcode <= 0x73) {
        check(code);
      }
    }
  }

  void finish(unsigned least) {
    RecordProperty("checked", static_cast<int>(checked_));
    EXPECT_GE(checked_, least);
    EXPECT_LE(skipped_, checked_ / 50) << "the processor refused these";
    if (reported_ > 40) ADD_FAILURE() << reported_ << " differences in all";
  }

  GuestCpu guest_;
  NativeRunner runner_;
  std::mt19937_64 random_{12345};
  std::map<u64, bool> features_;
  unsigned checked_ = 0, skipped_ = 0, reported_ = 0;
};

TEST_F(VectorNative, Legacy) {
  for (const int prefix : {0, 0x66, 0xf3, 0xf2}) {
    for (const int rex : {0, 0x48, 0x4d}) {
      for (int map = 1; map <= 3; ++map) {
        for (unsigned op = 0; op < 256; ++op) {
          if (map == 1 && (op == 0x38 || op == 0x3a)) continue; // lead to the other maps
          std::vector<u8> head;
          if (prefix != 0) head.push_back(static_cast<u8>(prefix));
          if (rex != 0) head.push_back(static_cast<u8>(rex));
          head.push_back(0x0f);
          if (map == 2) head.push_back(0x38);
          if (map == 3) head.push_back(0x3a);
          head.push_back(static_cast<u8>(op));
          // REX.B would move the base away from RSI.
          for (int i = 0; i < 3; ++i) {
            if (rex != 0x4d) {
              check_forms(head, static_cast<u8>(random_()));
            } else {
              std::vector<u8> code = head;
              code.push_back(0xca);
              code.push_back(static_cast<u8>(random_()));
              code.push_back(static_cast<u8>(random_()));
              check(code);
            }
          }
        }
      }
    }
  }
  finish(1500);
}

TEST_F(VectorNative, Vex) {
  for (unsigned map = 1; map <= 3; ++map) {
    for (unsigned w_vvvv_l_pp = 0; w_vvvv_l_pp < 16; ++w_vvvv_l_pp) {
      for (unsigned op = 0; op < 256; ++op) {
        for (const unsigned vvvv : {15U, 5U, 9U}) {
          const unsigned w = w_vvvv_l_pp >> 3, lpp = w_vvvv_l_pp & 7;
          const auto p1 = static_cast<u8>(w << 7 | (15 - vvvv + (vvvv == 15 ? 15 : 0)) << 3 | lpp);
          check_forms({0xc4, static_cast<u8>(0xe0 | map), p1, static_cast<u8>(op)},
                      static_cast<u8>(random_()));
          if (w == 0 && map == 1) {
            check_forms({0xc5, static_cast<u8>(0x80 | (p1 & 0x7f)), static_cast<u8>(op)},
                        static_cast<u8>(random_()));
          }
        }
      }
    }
  }
  finish(2000);
}

TEST_F(VectorNative, Evex) {
  for (unsigned map = 1; map <= 3; ++map) {
    for (unsigned wpp = 0; wpp < 8; ++wpp) {
      for (unsigned op = 0; op < 256; ++op) {
        for (unsigned length = 0; length < 4; ++length) {
          for (const unsigned zba : {0U, 3U, 0x83U, 0x10U, 0x93U, 0x13U}) {
            for (const unsigned vvvv : {0U, 5U}) {
              const auto p1 = static_cast<u8>((wpp >> 2) << 7 | (~vvvv & 15) << 3 | 4 | (wpp & 3));
              const auto p2 = static_cast<u8>(zba | length << 5 | 8);
              check_forms({0x62, static_cast<u8>(0xf0 | map), p1, p2, static_cast<u8>(op)},
                          static_cast<u8>(random_()));
              // Registers 16 and up: 17, 21 and 26.
              const std::vector<u8> high{
                  0x62, static_cast<u8>(0x80 | map), p1, static_cast<u8>(p2 & ~8U), static_cast<u8>(op),
                  0xca, static_cast<u8>(random_())};
              if (vvvv == 5) check(high);
            }
          }
        }
      }
    }
  }
  finish(10000);
}

} // namespace

} // namespace ring3::x86::test
