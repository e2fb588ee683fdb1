// SPDX-License-Identifier: Apache-2.0
// The architectural state of one vCPU, as one plain struct at fixed offsets: the interpreter, the translator
// and the KVM state calls all read and write this and nothing else. Touched by the vCPU's own thread only.
#pragma once

#include "base/bits.h"
#include "base/types.h"

#include <array>
#include <optional>

namespace ring3::x86 {

// General registers in encoding order (SDM vol. 2, 2.1.5). Two pseudo-registers follow them in CpuState::regs
// so that an effective address is always base + index * scale + displacement.
enum Gpr : u8 { rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15 };
constexpr unsigned reg_zero = 16; // always 0: no base, or no index
constexpr unsigned reg_rip = 17;  // address of the next instruction while one executes
constexpr unsigned reg_slots = 18;

enum class Seg : u8 { es, cs, ss, ds, fs, gs, ldtr, tr };
constexpr unsigned seg_count = 8;

// A segment register with its hidden part (SDM vol. 3, 3.4.3).
struct Segment {
  u16 selector = 0;
  u8 type = 0; // descriptor type field, bits 43:40
  bool s = false;
  u8 dpl = 0;
  bool present = false;
  bool avl = false;
  bool l = false;
  bool db = false;
  bool g = false;
  u32 limit = 0; // in bytes, already scaled by G
  u64 base = 0;

  // A segment that holds no descriptor: what a null selector leaves.
  bool usable() const { return present; }
  bool code() const { return s && (type & 8) != 0; }
  bool conforming() const { return (type & 4) != 0; }
  bool expand_down() const { return s && (type & 0xc) == 4; }
  bool writable() const { return s && (type & 0xa) == 2; }
  bool readable() const { return s && ((type & 8) == 0 || (type & 2) != 0); }
};

struct TableRegister {
  u64 base = 0;
  u16 limit = 0xffff;
};

// --- RFLAGS (SDM vol. 1, 3.4.3) ---
namespace rflags {
constexpr u64 cf = bit(0), fixed1 = bit(1), pf = bit(2), af = bit(4), zf = bit(6), sf = bit(7), tf = bit(8),
              if_ = bit(9), df = bit(10), of = bit(11), iopl = bit(12) | bit(13), nt = bit(14), rf = bit(16),
              vm = bit(17), ac = bit(18), vif = bit(19), vip = bit(20), id = bit(21);
constexpr u64 arithmetic = cf | pf | af | zf | sf | of;
constexpr u64 all = arithmetic | tf | if_ | df | iopl | nt | rf | vm | ac | vif | vip | id;
} // namespace rflags

// The six arithmetic flags as LAHF and SETO leave them in AX: AH = SF:ZF:0:AF:0:PF:1:CF, AL = OF. This is
// what one executed host instruction yields, so nothing is computed until somebody asks for RFLAGS.
namespace oszapc {
constexpr u16 of = 1, cf = 0x100, pf = 0x400, af = 0x1000, zf = 0x4000, sf = 0x8000;
constexpr u16 from_rflags(u64 f) { return static_cast<u16>(((f & 0xd5) << 8) | ((f >> 11) & 1)); }
constexpr u64 to_rflags(u16 a) { return ((a >> 8) & 0xd5) | (static_cast<u64>(a & 1) << 11); }
} // namespace oszapc

namespace cr0 {
constexpr u64 pe = bit(0), mp = bit(1), em = bit(2), ts = bit(3), et = bit(4), ne = bit(5), wp = bit(16),
              am = bit(18), nw = bit(29), cd = bit(30), pg = bit(31);
constexpr u64 all = pe | mp | em | ts | et | ne | wp | am | nw | cd | pg;
} // namespace cr0

namespace cr4 {
constexpr u64 vme = bit(0), pvi = bit(1), tsd = bit(2), de = bit(3), pse = bit(4), pae = bit(5), mce = bit(6),
              pge = bit(7), pce = bit(8), osfxsr = bit(9), osxmmexcpt = bit(10), umip = bit(11),
              la57 = bit(12), vmxe = bit(13), fsgsbase = bit(16), pcide = bit(17), osxsave = bit(18),
              smep = bit(20), smap = bit(21), pke = bit(22), cet = bit(23), pks = bit(24);
} // namespace cr4

namespace efer {
constexpr u64 sce = bit(0), lme = bit(8), lma = bit(10), nxe = bit(11), svme = bit(12), ffxsr = bit(14);
} // namespace efer

// x87 state in the layout of the FXSAVE image's first 160 bytes (SDM vol. 1, 10.5.1). MM0-7 are the low
// halves of st[].
struct X87State {
  u16 fcw = 0x37f;
  u16 fsw = 0;
  u8 ftw = 0; // abridged: bit n set when physical register n is not empty
  u8 reserved = 0;
  u16 fop = 0;
  u64 fip = 0;
  u64 fdp = 0;
  u32 mxcsr = 0x1f80;
  u32 mxcsr_mask = 0xffff;
  u8 st[8][16] = {};
};
static_assert(sizeof(X87State) == 160);

struct alignas(64) VectorState {
  u8 zmm[32][64] = {}; // XMM and YMM are the low 16 and 32 bytes
  u64 k[8] = {};
};

constexpr unsigned max_mc_banks = 32; // KVM_MAX_MCE_BANKS

enum class Activity : u8 { running, halted, wait_for_init, wait_for_sipi, shutdown };

// An event on its way to the guest (SDM vol. 3, 6.4; the types are those of the VMX interruption-information
// field).
enum class EventType : u8 {
  external = 0,
  nmi = 2,
  exception = 3,
  software_interrupt = 4,
  icebp = 5,
  software_exception = 6
};

struct CpuState {
  u64 regs[reg_slots] = {};          // indexed by Gpr, then reg_zero and reg_rip
  u16 flags = 0x0000;                // oszapc form
  u64 system_flags = rflags::fixed1; // RFLAGS without the arithmetic ones

  Segment seg[seg_count];
  TableRegister gdtr, idtr;
  u8 cpl = 0; // SS.DPL, kept apart because so much depends on it

  u64 cr0 = cr0::et | cr0::cd | cr0::nw;
  u64 cr2 = 0, cr3 = 0, cr4 = 0;
  u64 pdpte[4] = {}; // PAE paging: loaded by MOV CR3 and friends (SDM vol. 3, 4.4.1)
  u64 efer = 0;
  u64 xcr0 = 1;
  u64 xss = 0;
  u64 dr[4] = {};
  u64 dr6 = 0xffff0ff0, dr7 = 0x400;
  u32 pkru = 0;
  u32 pkrs = 0;

  // Set by STI and by loads of SS: no interrupt (and for SS no debug trap) before the next instruction has
  // retired.
  bool sti_shadow = false;
  bool mov_ss_shadow = false;
  bool nmi_blocked = false;
  bool apic_enabled = true; // IA32_APIC_BASE.EN, which CPUID shows
  bool in_smm = false;
  bool smm_in_nmi = false; // SMM was entered while NMIs were blocked: RSM does not unblock them
  u64 smbase = 0x30000;
  u64 smi_count = 0;
  Activity activity = Activity::running;

  // MSRs with storage of their own; see cpu/msr_table.
  u64 star = 0, lstar = 0, cstar = 0, sfmask = 0, kernel_gs_base = 0;
  u64 sysenter_cs = 0, sysenter_esp = 0, sysenter_eip = 0;
  u64 tsc_offset = 0; // added to the Clock's TSC
  u64 tsc_adjust = 0;
  u64 tsc_aux = 0;
  u64 pat = 0x0007040600070406;
  u64 misc_enable = bit(0) | bit(11) | bit(12);
  u64 mtrr_def_type = 0;
  u64 mtrr_fixed[11] = {};
  u64 mtrr_variable[16] = {};
  u64 spec_ctrl = 0;
  u64 mcg_cap = max_mc_banks; // KVM's, until KVM_X86_SETUP_MCE
  u64 mcg_status = 0, mcg_ctl = 0;
  u64 mc_banks[max_mc_banks * 4] = {}; // MCi_CTL, STATUS, ADDR, MISC
  u64 mc_ctl2[max_mc_banks] = {};
  u64 debugctl = 0;
  u64 power_ctl = 0; // any value, and nothing follows from it
  u64 virt_spec_ctrl = 0;
  u64 hwcr = 0;
  u64 ucode_rev = 0x100000000;
  std::optional<u64> platform_info; // what the VMM says
  // What a processor without speculation has no need of (SDM vol. 4, IA32_ARCH_CAPABILITIES): RDCL_NO,
  // IBRS_ALL, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO, SBDR_SSDP_NO, FBSDP_NO, PSDP_NO,
  // PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO. The last one spares kernels arranging their branches in cache lines,
  // of which nothing is left in translated code.
  u64 arch_capabilities = bit(0) | bit(1) | bit(3) | bit(4) | bit(5) | bit(6) | bit(8) | bit(13) | bit(14) |
                          bit(15) | bit(24) | bit(26) | bit(27) | bit(62);

  X87State x87;
  VectorState vector;

  u64 rip() const { return regs[reg_rip]; }
  u64 rflags() const { return system_flags | oszapc::to_rflags(flags); }
  void set_rflags(u64 f) {
    flags = oszapc::from_rflags(f);
    system_flags = (f & rflags::all & ~rflags::arithmetic) | rflags::fixed1;
  }
  Segment& segment(Seg s) { return seg[static_cast<unsigned>(s)]; }
  const Segment& segment(Seg s) const { return seg[static_cast<unsigned>(s)]; }

  bool protected_mode() const { return (cr0 & cr0::pe) != 0; }
  bool v8086() const { return (system_flags & rflags::vm) != 0; }
  bool real_or_v86() const { return !protected_mode() || v8086(); }
  bool long_mode() const { return (efer & efer::lma) != 0; }
  bool code64() const { return long_mode() && segment(Seg::cs).l; }
  unsigned iopl() const { return static_cast<unsigned>(field(system_flags, 13, 12)); }
};

} // namespace ring3::x86
