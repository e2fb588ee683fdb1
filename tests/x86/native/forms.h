// SPDX-License-Identifier: Apache-2.0
// The instruction forms there are: found by walking the encoding space and asking the decoder, not listed by
// hand.
#pragma once

#include "x86/decode/decoded.h"

#include <array>
#include <string>
#include <vector>

namespace ring3::x86::native {

// One point of the encoding space, without the register numbers and addresses that a case fills in.
struct Shape {
  Encoding encoding = Encoding::legacy;
  u8 code_bits = 64;
  u8 map = 0;
  u8 opcode = 0;
  std::array<u8, 2> prefixes{}; // 0: none
  u8 pp = 0;                    // VEX and EVEX: 0 none, 1 66, 2 F3, 3 F2
  bool w = false;
  u8 l = 0;
  u8 modrm = 0;             // mod 3 for registers; otherwise mod and rm are the case's
  bool needs_index = false; // gathers and scatters
  bool vvvv_used = false;
  bool b = false, z = false;
  u8 mask = 0;
};

// What a case chooses.
struct Fields {
  u8 reg = 0, rm = 0, vvvv = 0; // 5 bits each
  u8 base = 7, index = 4, scale = 0;
  enum class Address : u8 { base, base_index, rip, absolute, index_only } address = Address::base;
  u8 displacement_size = 0; // 0, 1, 4
  u32 displacement = 0;
  u8 mask = 0;
  bool address_prefix = false;
  u8 segment_prefix = 0;
  bool short_vex = false;
  std::array<u8, 10> rest{}; // immediates, as far as the instruction has any
};

struct Bytes {
  std::array<u8, 32> data{};
  unsigned size = 0; // with `rest`; the decoder says where the instruction ends
  void add(unsigned b) { data[size++] = static_cast<u8>(b); }
};

Bytes assemble(const Shape& shape, const Fields& fields);

// What tells two forms apart.
u64 form_key(const Decoded& d);

struct Form {
  Shape shape;
  u64 key = 0;
  Decoded sample;
  std::string name;
  bool free_reg = false, free_rm = false; // ModRM.reg and rm are register numbers
};

struct LeftOut {
  std::string name;
  const char* reason;
};

struct FormList {
  std::vector<Form> forms;
  std::vector<LeftOut> left_out;
};

FormList enumerate_forms();

const char* mnemonic_of(const Decoded& d);
std::string disassemble(const u8* bytes, unsigned size, unsigned code_bits);

} // namespace ring3::x86::native
