// SPDX-License-Identifier: Apache-2.0
// Runs each translated block twice: first by the interpreter's handlers, whose stores are then taken back,
// and then as host code; and compares registers, flags, faults and what was stored. For finding the
// translator's mistakes.
#pragma once

#include "x86/cpu/store_log.h"
#include "x86/jit/jit.h"

#include <string>

namespace ring3::x86::jit {

class Lockstep {
 public:
  explicit Lockstep(Jit& jit) : jit_(jit), cpu_(jit.cpu_) {}

  // Instead of Jit::execute(): one block. False: run() must return Cpu::exit, which is internal_error after
  // the first difference; standard error then has both states and the code.
  bool execute(TranslatedBlock& t);

 private:
  struct Outcome {
    CpuState state;
    bool aborted = false; // the instruction at `index` did
    unsigned index = 0;
    Fault fault;
  };
  Outcome interpret(const TranslatedBlock& t);
  void take_back(const CpuState& before);
  bool keep(const TranslatedBlock& t, const Outcome& o);
  std::string difference(const Outcome& a, const Outcome& b, u64 wanted) const;
  bool report(const TranslatedBlock& t, const CpuState& before, const Outcome& a, const Outcome& b,
              const std::string& what);

  Jit& jit_;
  Cpu& cpu_;
  StoreLog log_;
  Step result_{}; // of the last instruction that was interpreted
};

} // namespace ring3::x86::jit
