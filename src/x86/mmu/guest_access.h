// SPDX-License-Identifier: Apache-2.0
// Loads, stores and locked operations on guest memory through host pointers. Guest memory is shared with
// other vCPUs and with the VMM, which race on purpose as they do on hardware; each access is one machine
// instruction in assembly, so it has x86's atomicity and ordering and no C++ data race, and any alignment is
// fine.
#pragma once

#include "base/bits.h"
#include "base/types.h"

#include <cstddef>

namespace ring3::x86 {

template <class T> inline T guest_load(const std::byte* p) {
  T v;
  if constexpr (sizeof(T) == 1) {
    asm volatile("movb %1, %0" : "=q"(v) : "m"(*reinterpret_cast<const T*>(p)));
  } else {
    asm volatile("mov %1, %0" : "=r"(v) : "m"(*reinterpret_cast<const T*>(p)));
  }
  return v;
}

template <class T> inline void guest_store(std::byte* p, T v) {
  if constexpr (sizeof(T) == 1) {
    asm volatile("movb %1, %0" : "=m"(*reinterpret_cast<T*>(p)) : "q"(v));
  } else {
    asm volatile("mov %1, %0" : "=m"(*reinterpret_cast<T*>(p)) : "r"(v));
  }
}

// LOCK CMPXCHG: true if *p was `expected` and now is `desired`; otherwise `expected` becomes what was there.
template <class T> inline bool guest_cmpxchg(std::byte* p, T& expected, T desired) {
  bool done;
  asm volatile("lock cmpxchg %[n], %[m]"
               : "=@ccz"(done), [m] "+m"(*reinterpret_cast<T*>(p)), "+a"(expected)
               : [n] "q"(desired)
               : "memory");
  return done;
}

inline bool guest_cmpxchg16(std::byte* p, u64& lo, u64& hi, u64 new_lo, u64 new_hi) {
  bool done;
  asm volatile("lock cmpxchg16b %[m]"
               : "=@ccz"(done), [m] "+m"(*reinterpret_cast<u128*>(p)), "+a"(lo), "+d"(hi)
               : "b"(new_lo), "c"(new_hi)
               : "memory");
  return done;
}

template <class T> inline T guest_xchg(std::byte* p, T v) {
  asm volatile("xchg %0, %1" : "+q"(v), "+m"(*reinterpret_cast<T*>(p)) : : "memory");
  return v;
}

// Bytes, in any order; for what is looked at and not shared.
inline void copy_guest(u8* out, const std::byte* in, u64 size) {
  u64 i = 0;
  for (; i + 8 <= size; i += 8) store_raw(out + i, guest_load<u64>(in + i));
  for (; i < size; ++i) out[i] = guest_load<u8>(in + i);
}

inline bool equals_guest(const u8* copy, const std::byte* memory, u64 size) {
  u64 i = 0;
  for (; i + 8 <= size; i += 8) {
    if (load_raw<u64>(copy + i) != guest_load<u64>(memory + i)) return false;
  }
  for (; i < size; ++i) {
    if (copy[i] != guest_load<u8>(memory + i)) return false;
  }
  return true;
}

} // namespace ring3::x86
