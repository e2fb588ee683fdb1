// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/cpuid_features.h"

#include <algorithm>
#include <cpuid.h>

namespace ring3::x86 {

namespace {

constexpr bool from_host = true;
constexpr bool ours = false;

// name, bit, needs the host to have it, AMD only, Intel only, only when asked for
constexpr NamedFeature table[] = {
    // clang-format off
    {"fpu", feature::fpu, ours, false, false, false},
    {"vme", feature::vme, ours, false, false, false},
    {"de", feature::de, ours, false, false, false},
    {"pse", feature::pse, ours, false, false, false},
    {"tsc", feature::tsc, ours, false, false, false},
    {"msr", feature::msr, ours, false, false, false},
    {"pae", feature::pae, ours, false, false, false},
    {"mce", feature::mce, ours, false, false, false},
    {"cx8", feature::cx8, ours, false, false, false},
    {"apic", feature::apic, ours, false, false, false},
    {"sep", feature::sep, ours, false, false, false},
    {"mtrr", feature::mtrr, ours, false, false, false},
    {"pge", feature::pge, ours, false, false, false},
    {"mca", feature::mca, ours, false, false, false},
    {"cmov", feature::cmov, ours, false, false, false},
    {"pat", feature::pat, ours, false, false, false},
    {"pse36", feature::pse36, ours, false, false, false},
    {"clfsh", feature::clfsh, ours, false, false, false},
    {"mmx", feature::mmx, ours, false, false, false},
    {"fxsr", feature::fxsr, ours, false, false, false},
    {"sse", feature::sse, ours, false, false, false},
    {"sse2", feature::sse2, ours, false, false, false},
    {"sse3", feature::sse3, from_host, false, false, false},
    {"pclmulqdq", feature::pclmulqdq, from_host, false, false, false},
    {"monitor", feature::monitor, ours, false, false, true},
    {"ssse3", feature::ssse3, from_host, false, false, false},
    {"fma", feature::fma, from_host, false, false, false},
    {"cx16", feature::cx16, ours, false, false, false},
    {"pcid", feature::pcid, ours, false, false, false},
    {"sse41", feature::sse41, from_host, false, false, false},
    {"sse42", feature::sse42, from_host, false, false, false},
    {"x2apic", feature::x2apic, ours, false, false, false},
    {"movbe", feature::movbe, from_host, false, false, false},
    {"popcnt", feature::popcnt, from_host, false, false, false},
    {"tsc_deadline", feature::tsc_deadline, ours, false, false, false},
    {"aes", feature::aes, from_host, false, false, false},
    {"xsave", feature::xsave, ours, false, false, false},
    {"avx", feature::avx, from_host, false, false, false},
    {"f16c", feature::f16c, from_host, false, false, false},
    {"rdrand", feature::rdrand, from_host, false, false, false},
    {"hypervisor", feature::hypervisor, ours, false, false, false},
    {"arat", feature::arat, ours, false, false, false},
    {"fsgsbase", feature::fsgsbase, ours, false, false, false},
    {"tsc_adjust", feature::tsc_adjust, ours, false, false, false},
    {"bmi1", feature::bmi1, from_host, false, false, false},
    {"avx2", feature::avx2, from_host, false, false, false},
    {"smep", feature::smep, ours, false, false, false},
    {"bmi2", feature::bmi2, from_host, false, false, false},
    {"erms", feature::erms, ours, false, false, false},
    {"invpcid", feature::invpcid, ours, false, false, false},
    {"avx512f", feature::avx512f, from_host, false, false, false},
    {"avx512dq", feature::avx512dq, from_host, false, false, false},
    {"rdseed", feature::rdseed, from_host, false, false, false},
    {"adx", feature::adx, from_host, false, false, false},
    {"smap", feature::smap, ours, false, false, false},
    {"avx512ifma", feature::avx512ifma, from_host, false, false, false},
    {"clflushopt", feature::clflushopt, ours, false, false, false},
    {"clwb", feature::clwb, ours, false, false, false},
    {"avx512cd", feature::avx512cd, from_host, false, false, false},
    {"sha", feature::sha, from_host, false, false, false},
    {"avx512bw", feature::avx512bw, from_host, false, false, false},
    {"avx512vl", feature::avx512vl, from_host, false, false, false},
    {"avx512vbmi", feature::avx512vbmi, from_host, false, false, false},
    {"umip", feature::umip, ours, false, false, false},
    {"pku", feature::pku, ours, false, false, false},
    {"avx512vbmi2", feature::avx512vbmi2, from_host, false, false, false},
    {"gfni", feature::gfni, from_host, false, false, false},
    {"vaes", feature::vaes, from_host, false, false, false},
    {"vpclmulqdq", feature::vpclmulqdq, from_host, false, false, false},
    {"avx512vnni", feature::avx512vnni, from_host, false, false, false},
    {"avx512bitalg", feature::avx512bitalg, from_host, false, false, false},
    {"avx512vpopcntdq", feature::avx512vpopcntdq, from_host, false, false, false},
    {"la57", feature::la57, ours, false, false, false},
    {"rdpid", feature::rdpid, ours, false, false, false},
    {"pks", feature::pks, ours, false, false, false},
    {"fsrm", feature::fsrm, ours, false, false, false},
    {"avx512vp2intersect", feature::avx512vp2intersect, from_host, false, false, false},
    {"spec_ctrl", feature::spec_ctrl, ours, false, true, false},
    {"arch_capabilities", feature::arch_capabilities, ours, false, true, false},
    {"serialize", feature::serialize, ours, false, false, false},
    {"avx_vnni", feature::avx_vnni, from_host, false, false, false},
    {"avx512bf16", feature::avx512bf16, from_host, false, false, false},
    {"xsaveopt", feature::xsaveopt, ours, false, false, false},
    {"xsavec", feature::xsavec, ours, false, false, false},
    {"xgetbv1", feature::xgetbv1, ours, false, false, false},
    {"xsaves", feature::xsaves, ours, false, false, false},
    {"lahf_lm", feature::lahf_lm, ours, false, false, false},
    {"abm", feature::abm, from_host, false, false, false},
    {"sse4a", feature::sse4a, from_host, true, false, false},
    {"misalignsse", feature::misalignsse, from_host, true, false, false},
    {"prefetchw", feature::prefetchw, ours, false, false, false},
    {"syscall", feature::syscall, ours, false, false, false},
    {"nx", feature::nx, ours, false, false, false},
    {"mmxext", feature::mmxext, ours, true, false, false},
    {"ffxsr", feature::ffxsr, ours, true, false, false},
    {"pdpe1gb", feature::pdpe1gb, ours, false, false, false},
    {"rdtscp", feature::rdtscp, ours, false, false, false},
    {"lm", feature::lm, ours, false, false, false},
    {"clzero", feature::clzero, ours, true, false, false},
    // clang-format on
};

u32 host_register(const Feature& f) {
  u32 a = 0;
  u32 b = 0;
  u32 c = 0;
  u32 d = 0;
  if (__get_cpuid_count(f.leaf, f.subleaf, &a, &b, &c, &d) == 0) return 0;
  switch (f.reg) {
  case CpuidReg::eax: return a;
  case CpuidReg::ebx: return b;
  case CpuidReg::ecx: return c;
  default: return d;
  }
}

} // namespace

std::span<const NamedFeature> named_features() { return table; }

const NamedFeature* find_feature(std::string_view name) {
  // The spellings of /proc/cpuinfo and of QEMU for those whose names have a dot or an underscore.
  constexpr std::pair<std::string_view, std::string_view> aliases[] = {{"sse4_1", "sse41"},
                                                                       {"sse4.1", "sse41"},
                                                                       {"sse4_2", "sse42"},
                                                                       {"sse4.2", "sse42"},
                                                                       {"pni", "sse3"},
                                                                       {"lzcnt", "abm"},
                                                                       {"3dnowprefetch", "prefetchw"},
                                                                       {"sha-ni", "sha"},
                                                                       {"sha_ni", "sha"},
                                                                       {"tsc-deadline", "tsc_deadline"},
                                                                       {"tsc_deadline_timer", "tsc_deadline"},
                                                                       {"clflush", "clfsh"},
                                                                       {"tsc-adjust", "tsc_adjust"},
                                                                       {"spec-ctrl", "spec_ctrl"}};
  for (const auto& [alias, real] : aliases) {
    if (alias == name) name = real;
  }
  const auto* f =
      std::find_if(std::begin(table), std::end(table), [&](const NamedFeature& x) { return x.name == name; });
  return f == std::end(table) ? nullptr : f;
}

bool feature_available(const NamedFeature& f) {
  return !f.needs_host || (host_register(f.feature) >> f.feature.bit & 1) != 0;
}

} // namespace ring3::x86
