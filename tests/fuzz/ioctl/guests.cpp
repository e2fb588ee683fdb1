// SPDX-License-Identifier: Apache-2.0
#include "guests.h"

#include "operations.h"

#include <algorithm>
#include <array>
#include <initializer_list>
#include <vector>

namespace fuzz {

namespace {

constexpr u64 gdt = 0x800, idt64 = 0x1000, idt32 = 0x2000, handlers = 0x3000, tss = 0x5000, pml4 = 0x10000,
              pdpt = 0x11000, pd = 0x12000, pae_pdpt = 0x13000, pd32 = 0x14000;
constexpr u64 present = 1, writable = 2, user = 4, large = 0x80;

enum Selector : u16 {
  code16 = 8,
  data16 = 16,
  code32 = 24,
  data32 = 32,
  code64 = 40,
  user_code64 = 51,
  user_data = 59
};

u8 code_byte(Random& r) {
  // Random bytes are mostly one-byte instructions; escapes and prefixes get their share.
  constexpr u8 often[] = {0x0f, 0x0f, 0x66, 0xf2, 0xf3, 0x48, 0x62, 0xc4, 0xc5, 0xf0, 0x67, 0x65,
                          0x00, 0xff, 0x38, 0x3a, 0x01, 0xae, 0xc7, 0xd9, 0xdd, 0xcf, 0xcb, 0x9d};
  const u64 v = r.next();
  return v % 4 == 0 ? r.among(often) : static_cast<u8>(v >> 16);
}

// Pieces that mean the same, or something at least, in all modes.
using Piece = std::initializer_list<int>;
constexpr Piece pieces[] = {
    {0xe6, 0x10},                         // out 0x10, al
    {0xe7, 0x7e},                         // out 0x7e, eax
    {0xe4, 0x60},                         // in al, 0x60
    {0xec},                               // in al, dx
    {0xef},                               // out dx, eax
    {0xf3, 0x6c},                         // rep insb
    {0xf3, 0x6e},                         // rep outsb
    {0xf3, 0x6f},                         // rep outsd
    {0xf3, 0xa4},                         // rep movsb
    {0xf3, 0xab},                         // rep stosd
    {0xf3, 0xa6},                         // rep cmpsb
    {0xfb},                               // sti
    {0xfa},                               // cli
    {0xf4},                               // hlt
    {0xfb, 0xf4},                         // sti; hlt
    {0xf3, 0x90},                         // pause
    {0xcc},                               // int3
    {0xcd, 0x20},                         // int 0x20
    {0xcd, 0x80},                         // int 0x80
    {0xf1},                               // icebp
    {0x0f, 0x0b},                         // ud2
    {0xcf},                               // iret
    {0x48, 0xcf},                         // iretq
    {0xcb},                               // retf
    {0x9c},                               // pushf
    {0x9d},                               // popf
    {0x0f, 0xa2},                         // cpuid
    {0x0f, 0x30},                         // wrmsr
    {0x0f, 0x32},                         // rdmsr
    {0x0f, 0x31},                         // rdtsc
    {0x0f, 0x01, 0xc1},                   // vmcall
    {0x0f, 0x01, 0xd9},                   // vmmcall
    {0x0f, 0x01, 0xd1},                   // xsetbv
    {0x0f, 0x01, 0xc8},                   // monitor
    {0x0f, 0x01, 0xc9},                   // mwait
    {0x0f, 0x22, 0xc0},                   // mov cr0, eax
    {0x0f, 0x22, 0xd8},                   // mov cr3, eax
    {0x0f, 0x22, 0xe0},                   // mov cr4, eax
    {0x0f, 0x20, 0xd8},                   // mov eax, cr3
    {0x0f, 0x23, 0xf8},                   // mov dr7, eax
    {0x0f, 0x06},                         // clts
    {0x0f, 0x08},                         // invd
    {0x0f, 0x09},                         // wbinvd
    {0x0f, 0xaa},                         // rsm
    {0x0f, 0xae, 0x00},                   // fxsave
    {0x0f, 0xae, 0x08},                   // fxrstor
    {0x0f, 0xae, 0x20},                   // xsave
    {0x0f, 0xae, 0x28},                   // xrstor
    {0x0f, 0xc7, 0x08},                   // cmpxchg8b
    {0xf0, 0x48, 0x0f, 0xc7, 0x0e},       // lock cmpxchg16b
    {0xf0, 0xff, 0x07},                   // lock inc
    {0x87, 0x06},                         // xchg
    {0x0f, 0x01, 0x38},                   // invlpg
    {0x0f, 0x01, 0x10},                   // lgdt
    {0x0f, 0x01, 0x18},                   // lidt
    {0x0f, 0x00, 0xd0},                   // lldt
    {0x0f, 0x00, 0xd8},                   // ltr
    {0x8e, 0xd0},                         // mov ss, eax
    {0x8e, 0xd8},                         // mov ds, eax
    {0x0f, 0x05},                         // syscall
    {0x0f, 0x07},                         // sysret
    {0x0f, 0x34},                         // sysenter
    {0x0f, 0x01, 0xf8},                   // swapgs
    {0xd9, 0xff},                         // fcos
    {0xdd, 0x36},                         // fnsave
    {0x0f, 0x58, 0xc1},                   // addps
    {0xc5, 0xfc, 0x58, 0xc1},             // vaddps ymm
    {0x88, 0x05, 0xf4, 0xff, 0xff, 0xff}, // a store close to the code
    {0xc6, 0x07, 0xc3},                   // a store of code
    {0xff, 0xc1},                         // inc ecx
    {0x01, 0xc8},                         // add eax, ecx
    {0x8b, 0x07},                         // loads and stores
    {0x89, 0x07},
    {0x8b, 0x06},
    {0x89, 0x06},
    {0xeb, 0x00}, // jmp +0
};

void put_descriptor(Arena& arena, unsigned index, u64 value) { arena.put(gdt + 8 * index, value); }

} // namespace

void write_tables(Arena& arena) {
  for (u32 vector = 0; vector < 256; ++vector) {
    arena.put(4 * u64{vector}, u32{0x7000}); // IVT: 0000:7000
    const u64 target = handlers + 16 * (vector % 16);
    arena.put(idt32 + 8 * u64{vector}, (target & 0xffff) | u64{code32} << 16 | 0x8e00ULL << 32);
    arena.put(idt64 + 16 * u64{vector}, (target & 0xffff) | u64{code64} << 16 | 0x8e00ULL << 32);
    arena.put(idt64 + 16 * u64{vector} + 8, u64{0});
  }
  // The table of 64-bit gates is longer than the place before the other one: so its vectors from 256 on,
  // which there are not.
  const std::array<u8, 2> iret16{0xcf, 0xf4};
  arena.put(0x7000, iret16);
  for (u64 i = 0; i < 16; ++i) {
    // add esp, 8 (or nothing); iretq or iret; hlt
    const std::array<u8, 4> handler{static_cast<u8>(i % 2 == 0 ? 0x48 : 0x90), 0xcf, 0xf4, 0xcf};
    arena.put(handlers + 16 * i, handler);
  }
  put_descriptor(arena, 0, 0);
  put_descriptor(arena, 1, 0x00009b000000ffff);
  put_descriptor(arena, 2, 0x000093000000ffff);
  put_descriptor(arena, 3, 0x00cf9b000000ffff);
  put_descriptor(arena, 4, 0x00cf93000000ffff);
  put_descriptor(arena, 5, 0x00af9b000000ffff);
  put_descriptor(arena, 6, 0x00affb000000ffff);
  put_descriptor(arena, 7, 0x00cff3000000ffff);
  put_descriptor(arena, 8, 0x0000890050000067); // TSS at 0x5000
  put_descriptor(arena, 9, 0);
  arena.put(pml4, pdpt | present | writable | user);
  for (u64 i = 0; i < 4; ++i) {
    arena.put(pdpt + 8 * i, (i == 0 ? pd : i << 30 | large) | present | writable | user);
    arena.put(pae_pdpt + 8 * i, pd | present);
  }
  for (u64 i = 0; i < 512; ++i) arena.put(pd + 8 * i, i << 21 | large | present | writable | user);
  for (u64 i = 0; i < 1024; ++i)
    arena.put(pd32 + 4 * i, static_cast<u32>(i << 22 | large | present | writable | user));
}

u64 write_code(Thread& t) {
  Random& r = t.random;
  std::vector<u8> code;
  const u64 length = 8 + r.below(120);
  if (r.one_in(3)) {
    while (code.size() < length) code.push_back(code_byte(r));
  } else {
    while (code.size() < length) {
      if (r.one_in(6)) {
        // mov ecx/eax/edx, some number (in 16-bit code the second half is code)
        constexpr u8 moves[] = {0xb8, 0xb9, 0xba, 0xbf, 0xbe};
        constexpr u32 numbers[] = {0x10,       0x1b,       0x277,      0x6e0,      0x80b,
                                   0x830,      0x4b564d00, 0x4b564d01, 0xc0000080, 0xc0000102,
                                   0xfee00300, 0xfee000b0, 0xfec00000, 0x100000};
        const u32 v = r.one_in(2) ? r.among(numbers) : static_cast<u32>(r.odd_number());
        code.push_back(r.among(moves));
        for (unsigned i = 0; i < 32; i += 8) code.push_back(static_cast<u8>(v >> i));
      } else if (r.one_in(10)) {
        code.push_back(code_byte(r));
      } else {
        for (const int b : r.among(pieces)) code.push_back(static_cast<u8>(b));
      }
    }
    // And again from the start.
    const auto back = static_cast<u32>(-static_cast<int>(std::min<std::size_t>(code.size() + 2, 120)));
    code.push_back(0xeb);
    code.push_back(static_cast<u8>(back));
  }
  // Sometimes across two pages.
  const u64 place =
      guest_code + r.below(64) * 4096 + (r.one_in(4) ? 4096 - r.below(code.size()) : r.below(8) * 256);
  t.world.arena.write(place, std::as_bytes(std::span(code)));
  return place;
}

long boot(Thread& t, int vcpu) {
  Random& r = t.random;
  const u64 start = write_code(t);
  kvm_sregs s{};
  if (const long result = call(t, "KVM_GET_SREGS", vcpu, KVM_GET_SREGS, &s); result != 0) return result;
  const unsigned mode = static_cast<unsigned>(r.below(8));
  const auto segment = [](u16 selector, u8 type, bool big, bool wide) {
    kvm_segment x{};
    x.limit = 0xffffffff;
    x.selector = selector;
    x.type = type;
    x.present = 1;
    x.s = 1;
    x.dpl = selector & 3;
    x.db = big && !wide;
    x.l = wide;
    x.g = 1;
    return x;
  };
  s.gdt = {gdt, 0x7f, {}};
  s.idt = {mode >= 5 ? idt64 : idt32, 0xfff, {}};
  s.cr0 = 0x11;
  s.cr4 = 0x600;
  s.efer = 0;
  if (mode == 0 || mode == 1) {
    s.cr0 = 0x10;
    s.idt = {0, 0x3ff, {}};
    s.cs = segment(static_cast<u16>(start >> 4), 11, false, false);
    s.cs.base = start & ~u64{0xf};
    s.cs.limit = 0xffff;
    s.cs.g = 0;
    s.ds = segment(0x1000, 3, false, false);
    s.ds.base = 0x10000;
    s.ss = s.es = s.ds;
    if (mode == 0) s.ds.limit = s.ss.limit = s.es.limit = 0xffff;
    if (mode == 0) s.ds.g = s.ss.g = s.es.g = 0;
  } else {
    const bool wide = mode >= 5;
    const bool ring3 = mode == 6;
    s.cs = segment(ring3 ? user_code64 : wide ? code64 : code32, 11, !wide, wide);
    s.ds = segment(ring3 ? user_data : data32, 3, true, false);
    s.ss = s.es = s.fs = s.gs = s.ds;
    s.tr = segment(64, 11, false, false);
    s.tr.s = 0;
    s.tr.base = tss;
    s.tr.limit = 0x67;
    s.tr.g = 0;
    if (mode == 3) s.cr3 = pd32, s.cr4 |= 0x10, s.cr0 |= 0x80000000;
    if (mode == 4) s.cr3 = pae_pdpt, s.cr4 |= 0x20, s.cr0 |= 0x80000000;
    if (wide) s.cr3 = pml4, s.cr4 |= 0x20, s.cr0 |= 0x80000000, s.efer = 0x500;
    if (wide && r.one_in(4)) s.cr4 |= 0x40000; // OSXSAVE
    if (wide && r.one_in(4)) s.efer |= 0x801;  // NX, SYSCALL
  }
  if (long result = call(t, "KVM_SET_SREGS", vcpu, KVM_SET_SREGS, &s); result != 0) return result;
  kvm_regs g{};
  __u64* const numbers[] = {&g.rax, &g.rbx, &g.rcx, &g.rdx, &g.rsi, &g.rdi, &g.rbp, &g.r8, &g.r9};
  for (__u64* n : numbers) {
    switch (r.below(4)) {
    case 0: *n = r.odd_number(); break;
    case 1: *n = guest_data + r.below(guest_bytes); break;
    default: *n = r.below(0x8000); break;
    }
  }
  g.rsp = r.one_in(8) ? r.odd_number() : 0x8000;
  g.rip = mode <= 1 ? start & 0xf : start;
  g.rflags =
      2 | (r.one_in(2) ? 0x200 : 0) | (r.one_in(8) ? 0x100 : 0) | (r.one_in(8) ? r.next() & 0x3f7fd7 : 0);
  const long result = call(t, "KVM_SET_REGS", vcpu, KVM_SET_REGS, &g);
  kvm_mp_state running{KVM_MP_STATE_RUNNABLE};
  if (!r.one_in(8)) call(t, "KVM_SET_MP_STATE", vcpu, KVM_SET_MP_STATE, &running);
  return result;
}

} // namespace fuzz
