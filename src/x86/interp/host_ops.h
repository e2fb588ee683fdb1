// SPDX-License-Identifier: Apache-2.0
// Arithmetic done by the host's own instructions, so that results and flags, the undefined ones included, are
// those of a real processor. Flags travel in CpuState's oszapc form: LAHF and SETO after the operation, ADD
// and SAHF before it.
#pragma once

#include "base/types.h"

namespace ring3::x86::host {

// A macro because an assembly template must be a literal; each line of use defines one operation for every
// width.
#define RING3_BINARY(name, text)                                                                             \
  struct name {                                                                                              \
    template <class T> static T run(T a, T b, u16& flags) {                                                  \
      u16 f;                                                                                                 \
      asm(text " %[b], %[a]\n\tlahf\n\tseto %%al" : [a] "+&q"(a), "=&a"(f) : [b] "q"(b) : "cc");             \
      flags = f;                                                                                             \
      return a;                                                                                              \
    }                                                                                                        \
  };
RING3_BINARY(Add, "add")
RING3_BINARY(Sub, "sub")
RING3_BINARY(And, "and")
RING3_BINARY(Or, "or")
RING3_BINARY(Xor, "xor")
#undef RING3_BINARY

// Operations that read flags, or leave some of them alone.
#define RING3_BINARY_WITH_FLAGS(name, text)                                                                  \
  struct name {                                                                                              \
    template <class T> static T run(T a, T b, u16& flags) {                                                  \
      u16 f = flags;                                                                                         \
      asm("addb $0x7f, %%al\n\tsahf\n\t" text " %[b], %[a]\n\tlahf\n\tseto %%al"                             \
          : [a] "+&q"(a), "+&a"(f)                                                                           \
          : [b] "q"(b)                                                                                       \
          : "cc");                                                                                           \
      flags = f;                                                                                             \
      return a;                                                                                              \
    }                                                                                                        \
  };
RING3_BINARY_WITH_FLAGS(Adc, "adc")
RING3_BINARY_WITH_FLAGS(Sbb, "sbb")
RING3_BINARY_WITH_FLAGS(Imul, "imul")
RING3_BINARY_WITH_FLAGS(Bsf, "bsf")
RING3_BINARY_WITH_FLAGS(Bsr, "bsr")
RING3_BINARY_WITH_FLAGS(Tzcnt, "tzcnt")
RING3_BINARY_WITH_FLAGS(Lzcnt, "lzcnt")
RING3_BINARY_WITH_FLAGS(Popcnt, "popcnt")
RING3_BINARY_WITH_FLAGS(Bt, "bt")
RING3_BINARY_WITH_FLAGS(Bts, "bts")
RING3_BINARY_WITH_FLAGS(Btr, "btr")
RING3_BINARY_WITH_FLAGS(Btc, "btc")
RING3_BINARY_WITH_FLAGS(Blsi, "blsi")
RING3_BINARY_WITH_FLAGS(Blsr, "blsr")
RING3_BINARY_WITH_FLAGS(Blsmsk, "blsmsk")
RING3_BINARY_WITH_FLAGS(Adcx, "adcx")
RING3_BINARY_WITH_FLAGS(Adox, "adox")
#undef RING3_BINARY_WITH_FLAGS

#define RING3_UNARY(name, text)                                                                              \
  struct name {                                                                                              \
    template <class T> static T run(T a, u16& flags) {                                                       \
      u16 f = flags;                                                                                         \
      asm("addb $0x7f, %%al\n\tsahf\n\t" text " %[a]\n\tlahf\n\tseto %%al"                                   \
          : [a] "+&q"(a), "+&a"(f)                                                                           \
          :                                                                                                  \
          : "cc");                                                                                           \
      flags = f;                                                                                             \
      return a;                                                                                              \
    }                                                                                                        \
  };
RING3_UNARY(Inc, "inc")
RING3_UNARY(Dec, "dec")
RING3_UNARY(Neg, "neg")
RING3_UNARY(Not, "not")
#undef RING3_UNARY

// Shifts and rotates by CL; the count is the guest's, which the host masks as the guest's CPU does.
#define RING3_SHIFT(name, text)                                                                              \
  struct name {                                                                                              \
    template <class T> static T run(T a, u8 count, u16& flags) {                                             \
      u16 f = flags;                                                                                         \
      asm("addb $0x7f, %%al\n\tsahf\n\t" text " %%cl, %[a]\n\tlahf\n\tseto %%al"                             \
          : [a] "+&q"(a), "+&a"(f)                                                                           \
          : "c"(count)                                                                                       \
          : "cc");                                                                                           \
      flags = f;                                                                                             \
      return a;                                                                                              \
    }                                                                                                        \
  };
RING3_SHIFT(Rol, "rol")
RING3_SHIFT(Ror, "ror")
RING3_SHIFT(Rcl, "rcl")
RING3_SHIFT(Rcr, "rcr")
RING3_SHIFT(Shl, "shl")
RING3_SHIFT(Shr, "shr")
RING3_SHIFT(Sar, "sar")
#undef RING3_SHIFT

#define RING3_DOUBLE_SHIFT(name, text)                                                                       \
  struct name {                                                                                              \
    template <class T> static T run(T a, T b, u8 count, u16& flags) {                                        \
      u16 f = flags;                                                                                         \
      asm("addb $0x7f, %%al\n\tsahf\n\t" text " %%cl, %[b], %[a]\n\tlahf\n\tseto %%al"                       \
          : [a] "+&r"(a), "+&a"(f)                                                                           \
          : [b] "r"(b), "c"(count)                                                                           \
          : "cc");                                                                                           \
      flags = f;                                                                                             \
      return a;                                                                                              \
    }                                                                                                        \
  };
RING3_DOUBLE_SHIFT(Shld, "shld")
RING3_DOUBLE_SHIFT(Shrd, "shrd")
#undef RING3_DOUBLE_SHIFT

// BMI instructions with three operands: dst, src1 (VEX.vvvv or ModRM), src2.
#define RING3_TERNARY(name, text)                                                                            \
  struct name {                                                                                              \
    template <class T> static T run(T a, T b, u16& flags) {                                                  \
      u16 f = flags;                                                                                         \
      T r;                                                                                                   \
      asm("addb $0x7f, %%al\n\tsahf\n\t" text " %[b], %[a], %[r]\n\tlahf\n\tseto %%al"                       \
          : [r] "=&r"(r), "+&a"(f)                                                                           \
          : [a] "r"(a), [b] "r"(b)                                                                           \
          : "cc");                                                                                           \
      flags = f;                                                                                             \
      return r;                                                                                              \
    }                                                                                                        \
  };
RING3_TERNARY(Andn, "andn")   // a: the operand that is inverted (VEX.vvvv)
RING3_TERNARY(Bextr, "bextr") // a: source, b: control
RING3_TERNARY(Bzhi, "bzhi")
RING3_TERNARY(Pdep, "pdep")
RING3_TERNARY(Pext, "pext")
RING3_TERNARY(Sarx, "sarx")
RING3_TERNARY(Shlx, "shlx")
RING3_TERNARY(Shrx, "shrx")
#undef RING3_TERNARY

} // namespace ring3::x86::host
