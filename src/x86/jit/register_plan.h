// SPDX-License-Identifier: Apache-2.0
// Which host register holds which guest register within one block.
#pragma once

#include "x86/jit/recode.h"
#include "x86/jit/translator.h"

namespace ring3::x86::jit {

// A block that uses guest R9, R10 or R11, which have no host registers of their own, borrows those of guest
// registers that it does not use.
struct RegisterPlan {
  struct Loan {
    u8 guest;      // R9 to R11
    HostReg place; // where it is within the block: the host register of the guest register of that number
  };
  RegisterMap map;
  std::array<Loan, 3> loans;
  unsigned loan_count = 0;

  std::span<const Loan> all_loans() const { return {loans.data(), loan_count}; }
};

// The general registers, a bit each, that copying this instruction needs.
u32 registers_of(const Decoded& d);

// A plan for as many of the instructions as one is possible for; `count` becomes their number, at least 1 if
// it was that.
RegisterPlan plan_registers(std::span<const Source> source, unsigned& count);

} // namespace ring3::x86::jit
