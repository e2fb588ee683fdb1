// SPDX-License-Identifier: Apache-2.0
// Cases of a form: registers, addresses, immediates, and the state that the instruction starts in.
#pragma once

#include "arena.h"
#include "forms.h"

#include <vector>

namespace ring3::x86::native {

struct Case {
  Bytes bytes; // `size` is the instruction's own length
  Decoded decoded;
  MachineState state;
};

class CaseMaker {
 public:
  explicit CaseMaker(u64 seed);

  // The same for the same arguments, whatever was made before. `memory` is the arena as the case wants it.
  // False: no encoding of this form came up.
  bool make(const Form& form, u64 encoding_seed, u64 seed, Case& out, MemoryImage& memory);

 private:
  struct Vector64 {
    u8 bytes[64];
  };
  static constexpr unsigned pool_size = 4096;

  u64 integer(Random& r, unsigned bits = 64);
  bool encode(const Form& form, Random& e, Random& r, Fields& f, Case& out);
  void fill_state(Random& r, Case& c);
  void fill_x87(Random& r, X87State& x);
  void place_operand(const Form& form, Random& r, Fields& f, Case& c, MemoryImage& memory);
  void place_implicit(Random& r, Case& c, MemoryImage& memory);
  void place_index_vector(Random& r, Case& c);
  u64 pick_address(Random& r, u64 size);
  u64 pick_target(Random& r, unsigned code_bits);

  std::vector<Vector64> pool_;
};

} // namespace ring3::x86::native
