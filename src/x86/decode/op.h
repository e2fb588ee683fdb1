// SPDX-License-Identifier: Apache-2.0
// The instructions that ring3 implements one by one, by the manuals' mnemonics. Vector and x87 instructions are not
// listed: they run on the host as they are (Op::vector, Op::x87).
#pragma once

#include "base/types.h"

namespace ring3::x86 {

enum class Op : u16 {
  invalid, // decodes, but is nothing we have
  vector,  // MMX, SSE, AVX, AVX-512
  x87,
  jcc, setcc, cmovcc, // condition in Decoded::condition
  // moves
  mov, movnti, movzx, movsx, movsxd, lea, xchg, xadd, cmpxchg, cmpxchg8b, cmpxchg16b, bswap, movbe, xlat, cbw,
  cwde, cdqe, cwd, cdq, cqo, lahf, sahf, salc,
  // arithmetic
  add, or_, adc, sbb, and_, sub, xor_, cmp, test, inc, dec, neg, not_, mul, imul, div, idiv, adcx, adox,
  aaa, aas, aam, aad, daa, das, clc, stc, cmc, cld, std,
  // shifts and bits
  rol, ror, rcl, rcr, shl, shr, sar, shld, shrd, bt, bts, btr, btc, bsf, bsr, tzcnt, lzcnt, popcnt, andn,
  bextr, blsi, blsmsk, blsr, bzhi, mulx, pdep, pext, rorx, sarx, shlx, shrx, crc32, rdrand, rdseed,
  // stack
  push, pop, pusha, pushad, popa, popad, pushf, pushfd, pushfq, popf, popfd, popfq, enter, leave,
  // control flow
  jmp, call, ret, jcxz, jecxz, jrcxz, loop, loope, loopne, iret, iretd, iretq, int_, int1, int3, into,
  bound, ud0, ud1, ud2, syscall, sysret, sysenter, sysexit,
  // strings and ports
  movsb, movsw, movsd, movsq, stosb, stosw, stosd, stosq, lodsb, lodsw, lodsd, lodsq, cmpsb, cmpsw, cmpsd,
  cmpsq, scasb, scasw, scasd, scasq, insb, insw, insd, outsb, outsw, outsd, in, out,
  // segments and tables
  lds, les, lfs, lgs, lss, lgdt, lidt, sgdt, sidt, lldt, ltr, sldt, str, smsw, lmsw, lar, lsl, verr, verw,
  arpl, rdfsbase, rdgsbase, wrfsbase, wrgsbase, swapgs,
  // system
  hlt, cli, sti, clac, stac, clts, invd, wbinvd, invlpg, invpcid, cpuid, rdtsc, rdtscp, rdpid, rdmsr,
  wrmsr, rdpmc, rdpru, rdpkru, wrpkru, monitor, mwait, xgetbv, xsetbv, serialize, rsm, vmcall, vmmcall,
  clzero,
  // hints and fences
  nop, pause, endbr32, endbr64, rdsspd, rdsspq, prefetch, prefetchw, prefetchwt1, prefetchnta, prefetcht0,
  prefetcht1, prefetcht2, clflush, clflushopt, clwb, cldemote, lfence, mfence, sfence,
  // state save
  fxsave, fxsave64, fxrstor, fxrstor64, xsave, xsave64, xsavec, xsavec64, xsaveopt, xsaveopt64, xsaves,
  xsaves64, xrstor, xrstor64, xrstors, xrstors64, ldmxcsr, stmxcsr, vldmxcsr, vstmxcsr,
};

} // namespace ring3::x86
