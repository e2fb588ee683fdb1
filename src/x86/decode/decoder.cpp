// SPDX-License-Identifier: Apache-2.0
// The one file that knows Zydis.
#include "x86/decode/decoded.h"

#include <Zydis/Zydis.h>
#include <algorithm>
#include <cstring>

namespace ring3::x86 {

namespace {

struct OpEntry {
  ZydisMnemonic mnemonic;
  Op op;
};

constexpr OpEntry op_entries[] = {
    // clang-format off
    {ZYDIS_MNEMONIC_MOV, Op::mov},
    {ZYDIS_MNEMONIC_MOVNTI, Op::movnti},
    {ZYDIS_MNEMONIC_MOVZX, Op::movzx},
    {ZYDIS_MNEMONIC_MOVSX, Op::movsx},
    {ZYDIS_MNEMONIC_MOVSXD, Op::movsxd},
    {ZYDIS_MNEMONIC_LEA, Op::lea},
    {ZYDIS_MNEMONIC_XCHG, Op::xchg},
    {ZYDIS_MNEMONIC_XADD, Op::xadd},
    {ZYDIS_MNEMONIC_CMPXCHG, Op::cmpxchg},
    {ZYDIS_MNEMONIC_CMPXCHG8B, Op::cmpxchg8b},
    {ZYDIS_MNEMONIC_CMPXCHG16B, Op::cmpxchg16b},
    {ZYDIS_MNEMONIC_BSWAP, Op::bswap},
    {ZYDIS_MNEMONIC_MOVBE, Op::movbe},
    {ZYDIS_MNEMONIC_XLAT, Op::xlat},
    {ZYDIS_MNEMONIC_CBW, Op::cbw},
    {ZYDIS_MNEMONIC_CWDE, Op::cwde},
    {ZYDIS_MNEMONIC_CDQE, Op::cdqe},
    {ZYDIS_MNEMONIC_CWD, Op::cwd},
    {ZYDIS_MNEMONIC_CDQ, Op::cdq},
    {ZYDIS_MNEMONIC_CQO, Op::cqo},
    {ZYDIS_MNEMONIC_LAHF, Op::lahf},
    {ZYDIS_MNEMONIC_SAHF, Op::sahf},
    {ZYDIS_MNEMONIC_SALC, Op::salc},
    {ZYDIS_MNEMONIC_ADD, Op::add},
    {ZYDIS_MNEMONIC_OR, Op::or_},
    {ZYDIS_MNEMONIC_ADC, Op::adc},
    {ZYDIS_MNEMONIC_SBB, Op::sbb},
    {ZYDIS_MNEMONIC_AND, Op::and_},
    {ZYDIS_MNEMONIC_SUB, Op::sub},
    {ZYDIS_MNEMONIC_XOR, Op::xor_},
    {ZYDIS_MNEMONIC_CMP, Op::cmp},
    {ZYDIS_MNEMONIC_TEST, Op::test},
    {ZYDIS_MNEMONIC_INC, Op::inc},
    {ZYDIS_MNEMONIC_DEC, Op::dec},
    {ZYDIS_MNEMONIC_NEG, Op::neg},
    {ZYDIS_MNEMONIC_NOT, Op::not_},
    {ZYDIS_MNEMONIC_MUL, Op::mul},
    {ZYDIS_MNEMONIC_IMUL, Op::imul},
    {ZYDIS_MNEMONIC_DIV, Op::div},
    {ZYDIS_MNEMONIC_IDIV, Op::idiv},
    {ZYDIS_MNEMONIC_ADCX, Op::adcx},
    {ZYDIS_MNEMONIC_ADOX, Op::adox},
    {ZYDIS_MNEMONIC_AAA, Op::aaa},
    {ZYDIS_MNEMONIC_AAS, Op::aas},
    {ZYDIS_MNEMONIC_AAM, Op::aam},
    {ZYDIS_MNEMONIC_AAD, Op::aad},
    {ZYDIS_MNEMONIC_DAA, Op::daa},
    {ZYDIS_MNEMONIC_DAS, Op::das},
    {ZYDIS_MNEMONIC_CLC, Op::clc},
    {ZYDIS_MNEMONIC_STC, Op::stc},
    {ZYDIS_MNEMONIC_CMC, Op::cmc},
    {ZYDIS_MNEMONIC_CLD, Op::cld},
    {ZYDIS_MNEMONIC_STD, Op::std},
    {ZYDIS_MNEMONIC_ROL, Op::rol},
    {ZYDIS_MNEMONIC_ROR, Op::ror},
    {ZYDIS_MNEMONIC_RCL, Op::rcl},
    {ZYDIS_MNEMONIC_RCR, Op::rcr},
    {ZYDIS_MNEMONIC_SHL, Op::shl},
    {ZYDIS_MNEMONIC_SHR, Op::shr},
    {ZYDIS_MNEMONIC_SAR, Op::sar},
    {ZYDIS_MNEMONIC_SHLD, Op::shld},
    {ZYDIS_MNEMONIC_SHRD, Op::shrd},
    {ZYDIS_MNEMONIC_BT, Op::bt},
    {ZYDIS_MNEMONIC_BTS, Op::bts},
    {ZYDIS_MNEMONIC_BTR, Op::btr},
    {ZYDIS_MNEMONIC_BTC, Op::btc},
    {ZYDIS_MNEMONIC_BSF, Op::bsf},
    {ZYDIS_MNEMONIC_BSR, Op::bsr},
    {ZYDIS_MNEMONIC_TZCNT, Op::tzcnt},
    {ZYDIS_MNEMONIC_LZCNT, Op::lzcnt},
    {ZYDIS_MNEMONIC_POPCNT, Op::popcnt},
    {ZYDIS_MNEMONIC_ANDN, Op::andn},
    {ZYDIS_MNEMONIC_BEXTR, Op::bextr},
    {ZYDIS_MNEMONIC_BLSI, Op::blsi},
    {ZYDIS_MNEMONIC_BLSMSK, Op::blsmsk},
    {ZYDIS_MNEMONIC_BLSR, Op::blsr},
    {ZYDIS_MNEMONIC_BZHI, Op::bzhi},
    {ZYDIS_MNEMONIC_MULX, Op::mulx},
    {ZYDIS_MNEMONIC_PDEP, Op::pdep},
    {ZYDIS_MNEMONIC_PEXT, Op::pext},
    {ZYDIS_MNEMONIC_RORX, Op::rorx},
    {ZYDIS_MNEMONIC_SARX, Op::sarx},
    {ZYDIS_MNEMONIC_SHLX, Op::shlx},
    {ZYDIS_MNEMONIC_SHRX, Op::shrx},
    {ZYDIS_MNEMONIC_CRC32, Op::crc32},
    {ZYDIS_MNEMONIC_RDRAND, Op::rdrand},
    {ZYDIS_MNEMONIC_RDSEED, Op::rdseed},
    {ZYDIS_MNEMONIC_PUSH, Op::push},
    {ZYDIS_MNEMONIC_POP, Op::pop},
    {ZYDIS_MNEMONIC_PUSHA, Op::pusha},
    {ZYDIS_MNEMONIC_PUSHAD, Op::pushad},
    {ZYDIS_MNEMONIC_POPA, Op::popa},
    {ZYDIS_MNEMONIC_POPAD, Op::popad},
    {ZYDIS_MNEMONIC_PUSHF, Op::pushf},
    {ZYDIS_MNEMONIC_PUSHFD, Op::pushfd},
    {ZYDIS_MNEMONIC_PUSHFQ, Op::pushfq},
    {ZYDIS_MNEMONIC_POPF, Op::popf},
    {ZYDIS_MNEMONIC_POPFD, Op::popfd},
    {ZYDIS_MNEMONIC_POPFQ, Op::popfq},
    {ZYDIS_MNEMONIC_ENTER, Op::enter},
    {ZYDIS_MNEMONIC_LEAVE, Op::leave},
    {ZYDIS_MNEMONIC_JMP, Op::jmp},
    {ZYDIS_MNEMONIC_CALL, Op::call},
    {ZYDIS_MNEMONIC_RET, Op::ret},
    {ZYDIS_MNEMONIC_JCXZ, Op::jcxz},
    {ZYDIS_MNEMONIC_JECXZ, Op::jecxz},
    {ZYDIS_MNEMONIC_JRCXZ, Op::jrcxz},
    {ZYDIS_MNEMONIC_LOOP, Op::loop},
    {ZYDIS_MNEMONIC_LOOPE, Op::loope},
    {ZYDIS_MNEMONIC_LOOPNE, Op::loopne},
    {ZYDIS_MNEMONIC_IRET, Op::iret},
    {ZYDIS_MNEMONIC_IRETD, Op::iretd},
    {ZYDIS_MNEMONIC_IRETQ, Op::iretq},
    {ZYDIS_MNEMONIC_INT, Op::int_},
    {ZYDIS_MNEMONIC_INT1, Op::int1},
    {ZYDIS_MNEMONIC_INT3, Op::int3},
    {ZYDIS_MNEMONIC_INTO, Op::into},
    {ZYDIS_MNEMONIC_BOUND, Op::bound},
    {ZYDIS_MNEMONIC_UD0, Op::ud0},
    {ZYDIS_MNEMONIC_UD1, Op::ud1},
    {ZYDIS_MNEMONIC_UD2, Op::ud2},
    {ZYDIS_MNEMONIC_SYSCALL, Op::syscall},
    {ZYDIS_MNEMONIC_SYSRET, Op::sysret},
    {ZYDIS_MNEMONIC_SYSENTER, Op::sysenter},
    {ZYDIS_MNEMONIC_SYSEXIT, Op::sysexit},
    {ZYDIS_MNEMONIC_MOVSB, Op::movsb},
    {ZYDIS_MNEMONIC_MOVSW, Op::movsw},
    {ZYDIS_MNEMONIC_MOVSD, Op::movsd},
    {ZYDIS_MNEMONIC_MOVSQ, Op::movsq},
    {ZYDIS_MNEMONIC_STOSB, Op::stosb},
    {ZYDIS_MNEMONIC_STOSW, Op::stosw},
    {ZYDIS_MNEMONIC_STOSD, Op::stosd},
    {ZYDIS_MNEMONIC_STOSQ, Op::stosq},
    {ZYDIS_MNEMONIC_LODSB, Op::lodsb},
    {ZYDIS_MNEMONIC_LODSW, Op::lodsw},
    {ZYDIS_MNEMONIC_LODSD, Op::lodsd},
    {ZYDIS_MNEMONIC_LODSQ, Op::lodsq},
    {ZYDIS_MNEMONIC_CMPSB, Op::cmpsb},
    {ZYDIS_MNEMONIC_CMPSW, Op::cmpsw},
    {ZYDIS_MNEMONIC_CMPSD, Op::cmpsd},
    {ZYDIS_MNEMONIC_CMPSQ, Op::cmpsq},
    {ZYDIS_MNEMONIC_SCASB, Op::scasb},
    {ZYDIS_MNEMONIC_SCASW, Op::scasw},
    {ZYDIS_MNEMONIC_SCASD, Op::scasd},
    {ZYDIS_MNEMONIC_SCASQ, Op::scasq},
    {ZYDIS_MNEMONIC_INSB, Op::insb},
    {ZYDIS_MNEMONIC_INSW, Op::insw},
    {ZYDIS_MNEMONIC_INSD, Op::insd},
    {ZYDIS_MNEMONIC_OUTSB, Op::outsb},
    {ZYDIS_MNEMONIC_OUTSW, Op::outsw},
    {ZYDIS_MNEMONIC_OUTSD, Op::outsd},
    {ZYDIS_MNEMONIC_IN, Op::in},
    {ZYDIS_MNEMONIC_OUT, Op::out},
    {ZYDIS_MNEMONIC_LDS, Op::lds},
    {ZYDIS_MNEMONIC_LES, Op::les},
    {ZYDIS_MNEMONIC_LFS, Op::lfs},
    {ZYDIS_MNEMONIC_LGS, Op::lgs},
    {ZYDIS_MNEMONIC_LSS, Op::lss},
    {ZYDIS_MNEMONIC_LGDT, Op::lgdt},
    {ZYDIS_MNEMONIC_LIDT, Op::lidt},
    {ZYDIS_MNEMONIC_SGDT, Op::sgdt},
    {ZYDIS_MNEMONIC_SIDT, Op::sidt},
    {ZYDIS_MNEMONIC_LLDT, Op::lldt},
    {ZYDIS_MNEMONIC_LTR, Op::ltr},
    {ZYDIS_MNEMONIC_SLDT, Op::sldt},
    {ZYDIS_MNEMONIC_STR, Op::str},
    {ZYDIS_MNEMONIC_SMSW, Op::smsw},
    {ZYDIS_MNEMONIC_LMSW, Op::lmsw},
    {ZYDIS_MNEMONIC_LAR, Op::lar},
    {ZYDIS_MNEMONIC_LSL, Op::lsl},
    {ZYDIS_MNEMONIC_VERR, Op::verr},
    {ZYDIS_MNEMONIC_VERW, Op::verw},
    {ZYDIS_MNEMONIC_ARPL, Op::arpl},
    {ZYDIS_MNEMONIC_RDFSBASE, Op::rdfsbase},
    {ZYDIS_MNEMONIC_RDGSBASE, Op::rdgsbase},
    {ZYDIS_MNEMONIC_WRFSBASE, Op::wrfsbase},
    {ZYDIS_MNEMONIC_WRGSBASE, Op::wrgsbase},
    {ZYDIS_MNEMONIC_SWAPGS, Op::swapgs},
    {ZYDIS_MNEMONIC_HLT, Op::hlt},
    {ZYDIS_MNEMONIC_CLI, Op::cli},
    {ZYDIS_MNEMONIC_STI, Op::sti},
    {ZYDIS_MNEMONIC_CLAC, Op::clac},
    {ZYDIS_MNEMONIC_STAC, Op::stac},
    {ZYDIS_MNEMONIC_CLTS, Op::clts},
    {ZYDIS_MNEMONIC_INVD, Op::invd},
    {ZYDIS_MNEMONIC_WBINVD, Op::wbinvd},
    {ZYDIS_MNEMONIC_INVLPG, Op::invlpg},
    {ZYDIS_MNEMONIC_INVPCID, Op::invpcid},
    {ZYDIS_MNEMONIC_CPUID, Op::cpuid},
    {ZYDIS_MNEMONIC_RDTSC, Op::rdtsc},
    {ZYDIS_MNEMONIC_RDTSCP, Op::rdtscp},
    {ZYDIS_MNEMONIC_RDPID, Op::rdpid},
    {ZYDIS_MNEMONIC_RDMSR, Op::rdmsr},
    {ZYDIS_MNEMONIC_WRMSR, Op::wrmsr},
    {ZYDIS_MNEMONIC_RDPMC, Op::rdpmc},
    {ZYDIS_MNEMONIC_RDPRU, Op::rdpru},
    {ZYDIS_MNEMONIC_RDPKRU, Op::rdpkru},
    {ZYDIS_MNEMONIC_WRPKRU, Op::wrpkru},
    {ZYDIS_MNEMONIC_MONITOR, Op::monitor},
    {ZYDIS_MNEMONIC_MWAIT, Op::mwait},
    {ZYDIS_MNEMONIC_XGETBV, Op::xgetbv},
    {ZYDIS_MNEMONIC_XSETBV, Op::xsetbv},
    {ZYDIS_MNEMONIC_SERIALIZE, Op::serialize},
    {ZYDIS_MNEMONIC_RSM, Op::rsm},
    {ZYDIS_MNEMONIC_VMCALL, Op::vmcall},
    {ZYDIS_MNEMONIC_VMMCALL, Op::vmmcall},
    {ZYDIS_MNEMONIC_CLZERO, Op::clzero},
    {ZYDIS_MNEMONIC_NOP, Op::nop},
    {ZYDIS_MNEMONIC_PAUSE, Op::pause},
    {ZYDIS_MNEMONIC_ENDBR32, Op::endbr32},
    {ZYDIS_MNEMONIC_ENDBR64, Op::endbr64},
    {ZYDIS_MNEMONIC_RDSSPD, Op::rdsspd},
    {ZYDIS_MNEMONIC_RDSSPQ, Op::rdsspq},
    {ZYDIS_MNEMONIC_PREFETCH, Op::prefetch},
    {ZYDIS_MNEMONIC_PREFETCHW, Op::prefetchw},
    {ZYDIS_MNEMONIC_PREFETCHWT1, Op::prefetchwt1},
    {ZYDIS_MNEMONIC_PREFETCHNTA, Op::prefetchnta},
    {ZYDIS_MNEMONIC_PREFETCHT0, Op::prefetcht0},
    {ZYDIS_MNEMONIC_PREFETCHT1, Op::prefetcht1},
    {ZYDIS_MNEMONIC_PREFETCHT2, Op::prefetcht2},
    {ZYDIS_MNEMONIC_CLFLUSH, Op::clflush},
    {ZYDIS_MNEMONIC_CLFLUSHOPT, Op::clflushopt},
    {ZYDIS_MNEMONIC_CLWB, Op::clwb},
    {ZYDIS_MNEMONIC_CLDEMOTE, Op::cldemote},
    {ZYDIS_MNEMONIC_LFENCE, Op::lfence},
    {ZYDIS_MNEMONIC_MFENCE, Op::mfence},
    {ZYDIS_MNEMONIC_SFENCE, Op::sfence},
    {ZYDIS_MNEMONIC_FXSAVE, Op::fxsave},
    {ZYDIS_MNEMONIC_FXSAVE64, Op::fxsave64},
    {ZYDIS_MNEMONIC_FXRSTOR, Op::fxrstor},
    {ZYDIS_MNEMONIC_FXRSTOR64, Op::fxrstor64},
    {ZYDIS_MNEMONIC_XSAVE, Op::xsave},
    {ZYDIS_MNEMONIC_XSAVE64, Op::xsave64},
    {ZYDIS_MNEMONIC_XSAVEC, Op::xsavec},
    {ZYDIS_MNEMONIC_XSAVEC64, Op::xsavec64},
    {ZYDIS_MNEMONIC_XSAVEOPT, Op::xsaveopt},
    {ZYDIS_MNEMONIC_XSAVEOPT64, Op::xsaveopt64},
    {ZYDIS_MNEMONIC_XSAVES, Op::xsaves},
    {ZYDIS_MNEMONIC_XSAVES64, Op::xsaves64},
    {ZYDIS_MNEMONIC_XRSTOR, Op::xrstor},
    {ZYDIS_MNEMONIC_XRSTOR64, Op::xrstor64},
    {ZYDIS_MNEMONIC_XRSTORS, Op::xrstors},
    {ZYDIS_MNEMONIC_XRSTORS64, Op::xrstors64},
    {ZYDIS_MNEMONIC_LDMXCSR, Op::ldmxcsr},
    {ZYDIS_MNEMONIC_STMXCSR, Op::stmxcsr},
    {ZYDIS_MNEMONIC_VLDMXCSR, Op::vldmxcsr},
    {ZYDIS_MNEMONIC_VSTMXCSR, Op::vstmxcsr}, // clang-format on
};

constexpr auto op_table = [] {
  std::array<Op, ZYDIS_MNEMONIC_MAX_VALUE + 1> t{};
  for (const OpEntry& e : op_entries) t[e.mnemonic] = e.op;
  return t;
}();

struct FeatureEntry {
  ZydisISASet set;
  Feature feature;
  bool needs_vl = false;
};

constexpr FeatureEntry feature_entries[] = {
    // clang-format off
    {ZYDIS_ISA_SET_ADOX_ADCX, feature::adx},
    {ZYDIS_ISA_SET_AES, feature::aes},
    {ZYDIS_ISA_SET_AVX, feature::avx}, {ZYDIS_ISA_SET_AVX2, feature::avx2}, {ZYDIS_ISA_SET_AVX2GATHER, feature::avx2},
    {ZYDIS_ISA_SET_AVXAES, feature::aes}, {ZYDIS_ISA_SET_AVX_GFNI, feature::gfni}, {ZYDIS_ISA_SET_AVX_VNNI, feature::avx_vnni},
    {ZYDIS_ISA_SET_AVX512BW_128, feature::avx512bw, true}, {ZYDIS_ISA_SET_AVX512BW_128N, feature::avx512bw},
    {ZYDIS_ISA_SET_AVX512BW_256, feature::avx512bw, true}, {ZYDIS_ISA_SET_AVX512BW_512, feature::avx512bw},
    {ZYDIS_ISA_SET_AVX512BW_KOP, feature::avx512bw},
    {ZYDIS_ISA_SET_AVX512CD_128, feature::avx512cd, true}, {ZYDIS_ISA_SET_AVX512CD_256, feature::avx512cd, true},
    {ZYDIS_ISA_SET_AVX512CD_512, feature::avx512cd},
    {ZYDIS_ISA_SET_AVX512DQ_128, feature::avx512dq, true}, {ZYDIS_ISA_SET_AVX512DQ_128N, feature::avx512dq},
    {ZYDIS_ISA_SET_AVX512DQ_256, feature::avx512dq, true}, {ZYDIS_ISA_SET_AVX512DQ_512, feature::avx512dq},
    {ZYDIS_ISA_SET_AVX512DQ_KOP, feature::avx512dq}, {ZYDIS_ISA_SET_AVX512DQ_SCALAR, feature::avx512dq},
    {ZYDIS_ISA_SET_AVX512F_128, feature::avx512f, true}, {ZYDIS_ISA_SET_AVX512F_128N, feature::avx512f},
    {ZYDIS_ISA_SET_AVX512F_256, feature::avx512f, true}, {ZYDIS_ISA_SET_AVX512F_512, feature::avx512f},
    {ZYDIS_ISA_SET_AVX512F_KOP, feature::avx512f}, {ZYDIS_ISA_SET_AVX512F_SCALAR, feature::avx512f},
    {ZYDIS_ISA_SET_AVX512_BF16_128, feature::avx512bf16, true}, {ZYDIS_ISA_SET_AVX512_BF16_256, feature::avx512bf16, true},
    {ZYDIS_ISA_SET_AVX512_BF16_512, feature::avx512bf16},
    {ZYDIS_ISA_SET_AVX512_BITALG_128, feature::avx512bitalg, true}, {ZYDIS_ISA_SET_AVX512_BITALG_256, feature::avx512bitalg, true},
    {ZYDIS_ISA_SET_AVX512_BITALG_512, feature::avx512bitalg},
    {ZYDIS_ISA_SET_AVX512_GFNI_128, feature::gfni, true}, {ZYDIS_ISA_SET_AVX512_GFNI_256, feature::gfni, true},
    {ZYDIS_ISA_SET_AVX512_GFNI_512, feature::gfni},
    {ZYDIS_ISA_SET_AVX512_IFMA_128, feature::avx512ifma, true}, {ZYDIS_ISA_SET_AVX512_IFMA_256, feature::avx512ifma, true},
    {ZYDIS_ISA_SET_AVX512_IFMA_512, feature::avx512ifma},
    {ZYDIS_ISA_SET_AVX512_VAES_128, feature::vaes, true}, {ZYDIS_ISA_SET_AVX512_VAES_256, feature::vaes, true},
    {ZYDIS_ISA_SET_AVX512_VAES_512, feature::vaes},
    {ZYDIS_ISA_SET_AVX512_VBMI2_128, feature::avx512vbmi2, true}, {ZYDIS_ISA_SET_AVX512_VBMI2_256, feature::avx512vbmi2, true},
    {ZYDIS_ISA_SET_AVX512_VBMI2_512, feature::avx512vbmi2},
    {ZYDIS_ISA_SET_AVX512_VBMI_128, feature::avx512vbmi, true}, {ZYDIS_ISA_SET_AVX512_VBMI_256, feature::avx512vbmi, true},
    {ZYDIS_ISA_SET_AVX512_VBMI_512, feature::avx512vbmi},
    {ZYDIS_ISA_SET_AVX512_VNNI_128, feature::avx512vnni, true}, {ZYDIS_ISA_SET_AVX512_VNNI_256, feature::avx512vnni, true},
    {ZYDIS_ISA_SET_AVX512_VNNI_512, feature::avx512vnni},
    {ZYDIS_ISA_SET_AVX512_VP2INTERSECT_128, feature::avx512vp2intersect, true},
    {ZYDIS_ISA_SET_AVX512_VP2INTERSECT_256, feature::avx512vp2intersect, true},
    {ZYDIS_ISA_SET_AVX512_VP2INTERSECT_512, feature::avx512vp2intersect},
    {ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_128, feature::vpclmulqdq, true}, {ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_256, feature::vpclmulqdq, true},
    {ZYDIS_ISA_SET_AVX512_VPCLMULQDQ_512, feature::vpclmulqdq},
    {ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_128, feature::avx512vpopcntdq, true},
    {ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_256, feature::avx512vpopcntdq, true},
    {ZYDIS_ISA_SET_AVX512_VPOPCNTDQ_512, feature::avx512vpopcntdq},
    {ZYDIS_ISA_SET_BMI1, feature::bmi1}, {ZYDIS_ISA_SET_BMI2, feature::bmi2}, {ZYDIS_ISA_SET_CLFLUSHOPT, feature::clflushopt},
    {ZYDIS_ISA_SET_CLFSH, feature::clfsh}, {ZYDIS_ISA_SET_CLWB, feature::clwb}, {ZYDIS_ISA_SET_CLZERO, feature::clzero},
    {ZYDIS_ISA_SET_CMOV, feature::cmov}, {ZYDIS_ISA_SET_CMPXCHG16B, feature::cx16}, {ZYDIS_ISA_SET_F16C, feature::f16c},
    {ZYDIS_ISA_SET_FCMOV, feature::cmov}, {ZYDIS_ISA_SET_FMA, feature::fma}, {ZYDIS_ISA_SET_FXSAVE, feature::fxsr},
    {ZYDIS_ISA_SET_FXSAVE64, feature::fxsr}, {ZYDIS_ISA_SET_GFNI, feature::gfni}, {ZYDIS_ISA_SET_INVPCID, feature::invpcid},
    {ZYDIS_ISA_SET_MONITOR, feature::monitor}, {ZYDIS_ISA_SET_MOVBE, feature::movbe}, {ZYDIS_ISA_SET_PCLMULQDQ, feature::pclmulqdq},
    {ZYDIS_ISA_SET_PENTIUMMMX, feature::mmx}, {ZYDIS_ISA_SET_PKU, feature::pku}, {ZYDIS_ISA_SET_POPCNT, feature::popcnt},
    {ZYDIS_ISA_SET_RDPID, feature::rdpid}, {ZYDIS_ISA_SET_RDPRU, feature::rdpru}, {ZYDIS_ISA_SET_RDRAND, feature::rdrand},
    {ZYDIS_ISA_SET_RDSEED, feature::rdseed}, {ZYDIS_ISA_SET_RDTSCP, feature::rdtscp},
    {ZYDIS_ISA_SET_SERIALIZE, feature::serialize}, {ZYDIS_ISA_SET_SHA, feature::sha}, {ZYDIS_ISA_SET_SMAP, feature::smap},
    {ZYDIS_ISA_SET_SSE, feature::sse}, {ZYDIS_ISA_SET_SSE2, feature::sse2}, {ZYDIS_ISA_SET_SSE2MMX, feature::sse2},
    {ZYDIS_ISA_SET_SSE3, feature::sse3}, {ZYDIS_ISA_SET_SSE3X87, feature::sse3}, {ZYDIS_ISA_SET_SSE4, feature::sse41},
    {ZYDIS_ISA_SET_SSE42, feature::sse42}, {ZYDIS_ISA_SET_SSE4A, feature::sse4a}, {ZYDIS_ISA_SET_SSEMXCSR, feature::sse},
    {ZYDIS_ISA_SET_SSSE3, feature::ssse3}, {ZYDIS_ISA_SET_SSSE3MMX, feature::ssse3}, {ZYDIS_ISA_SET_VAES, feature::vaes},
    {ZYDIS_ISA_SET_VPCLMULQDQ, feature::vpclmulqdq}, {ZYDIS_ISA_SET_XSAVE, feature::xsave},
    {ZYDIS_ISA_SET_XSAVEC, feature::xsavec}, {ZYDIS_ISA_SET_XSAVEOPT, feature::xsaveopt}, {ZYDIS_ISA_SET_XSAVES, feature::xsaves},
    {ZYDIS_ISA_SET_X87, feature::fpu},
    // clang-format on
};

// Instruction sets that are nothing to ask CPUID for, or whose instructions check it themselves.
constexpr ZydisISASet plain_sets[] = {
    ZYDIS_ISA_SET_CET,      ZYDIS_ISA_SET_CLDEMOTE,      ZYDIS_ISA_SET_FAT_NOP,
    ZYDIS_ISA_SET_I186,     ZYDIS_ISA_SET_I286PROTECTED, ZYDIS_ISA_SET_I286REAL,
    ZYDIS_ISA_SET_I386,     ZYDIS_ISA_SET_I486,          ZYDIS_ISA_SET_I486REAL,
    ZYDIS_ISA_SET_I86,      ZYDIS_ISA_SET_LAHF,          ZYDIS_ISA_SET_LONGMODE,
    ZYDIS_ISA_SET_LZCNT,    ZYDIS_ISA_SET_PAUSE,         ZYDIS_ISA_SET_PENTIUMREAL,
    ZYDIS_ISA_SET_PPRO,     ZYDIS_ISA_SET_PREFETCHWT1,   ZYDIS_ISA_SET_PREFETCH_NOP,
    ZYDIS_ISA_SET_RDPMC,    ZYDIS_ISA_SET_RDWRFSGS,      ZYDIS_ISA_SET_SSE_PREFETCH,
    ZYDIS_ISA_SET_AMD,      ZYDIS_ISA_SET_VTX,           ZYDIS_ISA_SET_SVM,
    ZYDIS_ISA_SET_AMD3DNOW,
};

struct SetInfo {
  Feature feature;
  bool known = false;
  bool needs_vl = false;
};

constexpr auto set_table = [] {
  std::array<SetInfo, ZYDIS_ISA_SET_MAX_VALUE + 1> t{};
  for (const FeatureEntry& e : feature_entries) t[e.set] = SetInfo{e.feature, true, e.needs_vl};
  for (const ZydisISASet s : plain_sets) t[s] = SetInfo{feature::always, true, false};
  return t;
}();

const ZydisDecoder& decoder_for(unsigned code_bits) {
  static const auto decoders = [] {
    std::array<ZydisDecoder, 3> d;
    ZydisDecoderInit(&d[0], ZYDIS_MACHINE_MODE_REAL_16, ZYDIS_STACK_WIDTH_16);
    ZydisDecoderInit(&d[1], ZYDIS_MACHINE_MODE_LEGACY_32, ZYDIS_STACK_WIDTH_32);
    ZydisDecoderInit(&d[2], ZYDIS_MACHINE_MODE_LONG_64, ZYDIS_STACK_WIDTH_64);
    for (ZydisDecoder& x : d) {
      ZydisDecoderEnableMode(&x, ZYDIS_DECODER_MODE_MPX, ZYAN_FALSE);
      ZydisDecoderEnableMode(&x, ZYDIS_DECODER_MODE_KNC, ZYAN_FALSE);
    }
    return d;
  }();
  return decoders[code_bits == 16 ? 0 : code_bits == 32 ? 1 : 2];
}

// Our byte offset for a general register, AH to BH included.
u8 gpr_offset(ZydisRegister r) {
  if (r >= ZYDIS_REGISTER_AL && r <= ZYDIS_REGISTER_BL) return static_cast<u8>((r - ZYDIS_REGISTER_AL) * 8);
  if (r >= ZYDIS_REGISTER_AH && r <= ZYDIS_REGISTER_BH)
    return static_cast<u8>((r - ZYDIS_REGISTER_AH) * 8 + 1);
  // Zydis counts AH to BH among the byte registers, which shifts SPL and those after it.
  if (r >= ZYDIS_REGISTER_SPL && r <= ZYDIS_REGISTER_R15B)
    return static_cast<u8>((r - ZYDIS_REGISTER_SPL + 4) * 8);
  return static_cast<u8>(ZydisRegisterGetId(r) * 8);
}

u8 address_register(ZydisRegister r) {
  if (r == ZYDIS_REGISTER_NONE) return reg_zero;
  if (r == ZYDIS_REGISTER_RIP || r == ZYDIS_REGISTER_EIP) return reg_rip;
  return static_cast<u8>(ZydisRegisterGetId(r));
}

Seg segment_of(ZydisRegister r) {
  switch (r) {
  case ZYDIS_REGISTER_ES: return Seg::es;
  case ZYDIS_REGISTER_CS: return Seg::cs;
  case ZYDIS_REGISTER_SS: return Seg::ss;
  case ZYDIS_REGISTER_FS: return Seg::fs;
  case ZYDIS_REGISTER_GS: return Seg::gs;
  default: return Seg::ds;
  }
}

void convert_register(ZydisRegister r, Operand& o) {
  using Kind = Operand::Kind;
  o.reg = static_cast<u8>(ZydisRegisterGetId(r));
  switch (ZydisRegisterGetClass(r)) {
  case ZYDIS_REGCLASS_GPR8:
  case ZYDIS_REGCLASS_GPR16:
  case ZYDIS_REGCLASS_GPR32:
  case ZYDIS_REGCLASS_GPR64:
    o.kind = Kind::gpr;
    o.reg = gpr_offset(r);
    break;
  case ZYDIS_REGCLASS_SEGMENT:
    o.kind = Kind::segment;
    o.reg = static_cast<u8>(segment_of(r));
    break;
  case ZYDIS_REGCLASS_CONTROL: o.kind = Kind::control; break;
  case ZYDIS_REGCLASS_DEBUG: o.kind = Kind::debug; break;
  case ZYDIS_REGCLASS_MMX: o.kind = Kind::mmx; break;
  case ZYDIS_REGCLASS_XMM: o.kind = Kind::xmm; break;
  case ZYDIS_REGCLASS_YMM: o.kind = Kind::ymm; break;
  case ZYDIS_REGCLASS_ZMM: o.kind = Kind::zmm; break;
  case ZYDIS_REGCLASS_MASK: o.kind = Kind::mask; break;
  case ZYDIS_REGCLASS_X87: o.kind = Kind::x87; break;
  default: o.kind = Kind::other;
  }
}

void convert_memory(const ZydisDecodedInstruction& in, const ZydisDecodedOperand& z, Decoded& out) {
  out.has_memory = true;
  out.address_only = z.mem.type == ZYDIS_MEMOP_TYPE_AGEN;
  out.vsib = z.mem.type == ZYDIS_MEMOP_TYPE_VSIB;
  out.base = address_register(z.mem.base);
  out.rip_relative = out.base == reg_rip;
  out.index = out.vsib ? static_cast<u8>(ZydisRegisterGetId(z.mem.index)) : address_register(z.mem.index);
  out.scale = z.mem.scale == 8 ? 3 : z.mem.scale == 4 ? 2 : z.mem.scale == 2 ? 1 : 0;
  out.displacement = z.mem.disp.has_displacement ? z.mem.disp.value : 0;
  out.segment = segment_of(z.mem.segment);
  out.memory_bits = z.size;
  out.memory_read = (z.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
  out.memory_written = (z.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
  (void)in;
}

bool vector_operand(const Operand& o) {
  switch (o.kind) {
  case Operand::Kind::mmx:
  case Operand::Kind::xmm:
  case Operand::Kind::ymm:
  case Operand::Kind::zmm:
  case Operand::Kind::mask: return true;
  default: return false;
  }
}

} // namespace

DecodeStatus decode(const u8* bytes, u64 size, unsigned code_bits, Decoded& out) {
  ZydisDecodedInstruction in;
  ZydisDecodedOperand operands[ZYDIS_MAX_OPERAND_COUNT];
  const u64 available = std::min<u64>(size, 15);
  const ZyanStatus status = ZydisDecoderDecodeFull(&decoder_for(code_bits), bytes, available, &in, operands);
  if (!ZYAN_SUCCESS(status)) {
    if (status == ZYDIS_STATUS_NO_MORE_DATA)
      return size >= 15 ? DecodeStatus::too_long : DecodeStatus::need_more;
    if (status == ZYDIS_STATUS_INSTRUCTION_TOO_LONG) return DecodeStatus::too_long;
    return DecodeStatus::invalid;
  }

  if (in.mnemonic == ZYDIS_MNEMONIC_PAUSE && (in.attributes & ZYDIS_ATTRIB_HAS_REX) != 0 &&
      in.raw.rex.B != 0) {
    // With REX.B it is an XCHG, which the library does not know. A prefix that means nothing takes F3's
    // place.
    u8 copy[15];
    std::memcpy(copy, bytes, in.length);
    for (unsigned i = 0; i < in.raw.prefix_count; ++i) {
      if (copy[i] == 0xf3) copy[i] = 0x3e;
    }
    return decode(copy, in.length, code_bits, out);
  }

  out = Decoded{};
  out.length = in.length;
  out.code_bits = static_cast<u8>(code_bits);
  out.operand_bytes = static_cast<u8>(in.operand_width / 8);
  out.address_bytes = static_cast<u8>(in.address_width / 8);
  out.opcode = in.opcode;
  out.map = static_cast<u8>(in.opcode_map);
  out.mnemonic = static_cast<u16>(in.mnemonic);
  out.encoding = in.encoding == ZYDIS_INSTRUCTION_ENCODING_VEX    ? Encoding::vex
                 : in.encoding == ZYDIS_INSTRUCTION_ENCODING_EVEX ? Encoding::evex
                                                                  : Encoding::legacy;
  out.vector_bits = static_cast<u16>(in.avx.vector_length);
  out.lock = (in.attributes & ZYDIS_ATTRIB_HAS_LOCK) != 0;
  for (unsigned i = 0; i < in.raw.prefix_count; ++i) {
    switch (in.raw.prefixes[i].value) {
    case 0xf2:
      out.repne = true;
      out.rep = false;
      break;
    case 0xf3:
      out.rep = true;
      out.repne = false;
      break;
    case 0x66: out.operand_size_prefix = true; break;
    default: break;
    }
  }
  std::memcpy(out.bytes.data(), bytes, in.length);
  out.modrm_offset = in.raw.modrm.offset;
  if (out.modrm_offset != 0) out.modrm = bytes[out.modrm_offset];
  out.sib_offset = in.raw.sib.offset;
  out.disp_offset = in.raw.disp.offset;
  out.disp_size = in.raw.disp.size;
  out.imm_offset = in.raw.imm[0].offset;
  out.imm_size = static_cast<u8>(in.raw.imm[0].size + in.raw.imm[1].size);
  if ((in.attributes & ZYDIS_ATTRIB_HAS_REX) != 0) out.rex_offset = in.raw.rex.offset;
  if ((in.attributes & ZYDIS_ATTRIB_HAS_VEX) != 0) out.vex_offset = in.raw.vex.offset;
  if ((in.attributes & ZYDIS_ATTRIB_HAS_EVEX) != 0) {
    out.evex_offset = in.raw.evex.offset;
    out.evex_z = in.raw.evex.z != 0;
    out.evex_b = in.raw.evex.b != 0;
    out.evex_mask = in.raw.evex.aaa;
  }

  out.operands = static_cast<u8>(std::min<unsigned>(in.operand_count, 10));
  out.visible_operands = in.operand_count_visible;
  bool has_vector = false;
  for (unsigned i = 0; i < out.operands; ++i) {
    const ZydisDecodedOperand& z = operands[i];
    Operand& o = out.operand[i];
    o.bits = z.size;
    o.element_bits = z.element_size;
    o.read = (z.actions & ZYDIS_OPERAND_ACTION_MASK_READ) != 0;
    o.written = (z.actions & ZYDIS_OPERAND_ACTION_MASK_WRITE) != 0;
    o.hidden = z.visibility == ZYDIS_OPERAND_VISIBILITY_HIDDEN;
    switch (z.type) {
    case ZYDIS_OPERAND_TYPE_REGISTER: convert_register(z.reg.value, o); break;
    case ZYDIS_OPERAND_TYPE_MEMORY:
      o.kind = Operand::Kind::mem;
      if (!o.hidden && !out.has_memory) convert_memory(in, z, out);
      break;
    case ZYDIS_OPERAND_TYPE_POINTER:
      o.kind = Operand::Kind::far_pointer;
      o.value = z.ptr.offset;
      o.selector = z.ptr.segment;
      break;
    case ZYDIS_OPERAND_TYPE_IMMEDIATE:
      o.kind = Operand::Kind::imm;
      o.value = z.imm.value.u;
      if (z.imm.is_relative) out.branch_relative = true;
      break;
    default: break;
    }
    has_vector = has_vector || vector_operand(o);
  }

  const SetInfo& set = set_table[in.meta.isa_set];
  if (!set.known) return DecodeStatus::invalid;
  out.feature = set.feature;
  if (set.needs_vl) out.feature2 = feature::avx512vl;

  out.op = op_table[in.mnemonic];
  // Without BMI1 the prefix means nothing and BSF is what runs: not for the feature check to refuse.
  if (out.op == Op::tzcnt) out.feature = feature::always;
  const bool string_like = in.mnemonic == ZYDIS_MNEMONIC_MOVSD || in.mnemonic == ZYDIS_MNEMONIC_CMPSD;
  if (string_like && has_vector) out.op = Op::vector;
  // MOV between general, control and debug registers is the only MOV; KMOV and friends have names of their
  // own.
  if (in.meta.category == ZYDIS_CATEGORY_COND_BR && out.op == Op::invalid) {
    out.op = Op::jcc;
    out.condition = in.opcode & 15;
  } else if (in.meta.category == ZYDIS_CATEGORY_SETCC) {
    out.op = Op::setcc;
    out.condition = in.opcode & 15;
  } else if (in.meta.category == ZYDIS_CATEGORY_CMOV && in.meta.isa_ext != ZYDIS_ISA_EXT_X87) {
    out.op = Op::cmovcc;
    out.condition = in.opcode & 15;
  } else if (out.op == Op::invalid && in.meta.isa_ext == ZYDIS_ISA_EXT_X87) {
    out.op = Op::x87;
  } else if (out.op == Op::invalid && in.meta.category == ZYDIS_CATEGORY_X87_ALU) {
    out.op = Op::x87; // FISTTP, which counts as SSE3
  } else if (out.op == Op::invalid && in.meta.category == ZYDIS_CATEGORY_CONVERT) {
    out.op = Op::vector; // CVTSD2SI and its like from memory have no vector operand
  } else if (out.op == Op::invalid && in.mnemonic == ZYDIS_MNEMONIC_EMMS) {
    out.op = Op::vector;
  } else if (out.op == Op::invalid &&
             (in.mnemonic == ZYDIS_MNEMONIC_VZEROALL || in.mnemonic == ZYDIS_MNEMONIC_VZEROUPPER)) {
    out.op = Op::vector;
  } else if (out.op == Op::invalid && has_vector) {
    out.op = Op::vector;
  }
  if (in.meta.isa_set == ZYDIS_ISA_SET_AMD3DNOW && out.op != Op::prefetch && out.op != Op::prefetchw)
    out.op = Op::invalid;
  return DecodeStatus::ok;
}

const char* mnemonic_name(u16 mnemonic) {
  const char* const name = ZydisMnemonicGetString(static_cast<ZydisMnemonic>(mnemonic));
  return name != nullptr ? name : "?";
}

} // namespace ring3::x86
