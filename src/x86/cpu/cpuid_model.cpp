// SPDX-License-Identifier: Apache-2.0
#include "x86/cpu/cpuid_model.h"

#include "x86/cpu/cpuid_features.h"
#include "x86/cpu/xsave_layout.h"
#include "x86/pv/pv_features.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>
#include <utility>

namespace ring3::x86 {

namespace {

enum class VendorId : u8 { intel, amd };

// How one model differs from the others; everything derived is computed in cpuid_entries().
struct Model {
  ModelInfo info;
  VendorId vendor;
  u8 family;
  u8 model;
  u8 stepping;
  u8 physical_bits;
  std::string_view brand;    // 48 bytes at the most
  std::string_view features; // space-separated names; "*": all that can be offered
};

constexpr std::string_view base_features =
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse sse2 sse3 "
    "cx16 "
    "syscall nx lm lahf_lm x2apic hypervisor tsc_deadline arat tsc_adjust";

constexpr std::string_view skylake_server_features =
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse sse2 sse3 "
    "pclmulqdq "
    "ssse3 fma cx16 pcid sse41 sse42 x2apic movbe popcnt tsc_deadline aes xsave avx f16c rdrand hypervisor "
    "arat "
    "fsgsbase tsc_adjust bmi1 avx2 smep bmi2 erms invpcid avx512f avx512dq rdseed adx smap clwb avx512cd "
    "avx512bw "
    "avx512vl clflushopt pku xsaveopt xsavec xgetbv1 xsaves lahf_lm abm prefetchw syscall nx pdpe1gb rdtscp "
    "lm "
    "spec_ctrl arch_capabilities";

constexpr std::string_view epyc_features =
    "fpu vme de pse tsc msr pae mce cx8 apic sep mtrr pge mca cmov pat pse36 clfsh mmx fxsr sse sse2 sse3 "
    "pclmulqdq "
    "ssse3 fma cx16 sse41 sse42 x2apic movbe popcnt tsc_deadline aes xsave avx f16c rdrand hypervisor arat "
    "fsgsbase "
    "tsc_adjust bmi1 avx2 smep bmi2 rdseed adx smap clflushopt sha xsaveopt xsavec xgetbv1 lahf_lm abm sse4a "
    "misalignsse prefetchw syscall nx mmxext ffxsr pdpe1gb rdtscp lm";

constexpr Model models[] = {
    {{"max", "GenuineIntel", "everything that ring3 implements and this host can run"},
     VendorId::intel,
     6,
     0x6a,
     6,
     46,
     "ring3 software CPU",
     "*"},
    {{"max-amd", "AuthenticAMD", "the same with AMD's identity and rules"},
     VendorId::amd,
     0x19,
     0x11,
     1,
     48,
     "ring3 software CPU",
     "*"},
    {{"base", "GenuineIntel", "the x86-64 baseline: no AVX, no XSAVE"},
     VendorId::intel,
     6,
     0x0f,
     11,
     40,
     "ring3 software CPU (x86-64 baseline)",
     base_features},
    {{"skylake-server", "GenuineIntel", "Intel Xeon Scalable, first generation"},
     VendorId::intel,
     6,
     0x55,
     4,
     46,
     "Intel Xeon Processor (Skylake)",
     skylake_server_features},
    {{"epyc", "AuthenticAMD", "AMD EPYC, first generation"},
     VendorId::amd,
     0x17,
     1,
     2,
     48,
     "AMD EPYC Processor",
     epyc_features},
};

const Model* find_model(std::string_view name) {
  const auto* m =
      std::find_if(std::begin(models), std::end(models), [&](const Model& x) { return x.info.name == name; });
  return m == std::end(models) ? nullptr : m;
}

template <class F> void for_each_word(std::string_view list, F f) {
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(' '), list.size());
    if (end > 0) f(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
}

bool usual(const NamedFeature& f) { return !f.on_request; }

std::vector<const NamedFeature*> features_of(const Model& m) {
  std::vector<const NamedFeature*> v;
  if (m.features == "*") {
    for (const NamedFeature& f : named_features()) {
      if (usual(f) && feature_available(f) && !(m.vendor == VendorId::intel && f.amd_only) &&
          !(m.vendor == VendorId::amd && f.intel_only)) {
        v.push_back(&f);
      }
    }
    return v;
  }
  for_each_word(m.features, [&](std::string_view name) {
    const NamedFeature* f = find_feature(name);
    if (f != nullptr && feature_available(*f)) v.push_back(f);
  });
  return v;
}

// --- building the table ---

class Table {
 public:
  kvm_cpuid_entry2& leaf(u32 function, u32 index = 0, bool indexed = false) {
    for (kvm_cpuid_entry2& e : entries_) {
      if (e.function == function && e.index == index) return e;
    }
    kvm_cpuid_entry2 e{};
    e.function = function;
    e.index = index;
    if (indexed) e.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    entries_.push_back(e);
    return entries_.back();
  }
  void set(Feature f) {
    kvm_cpuid_entry2& e = leaf(f.leaf, f.subleaf, f.leaf == 7 || f.leaf == 0xd);
    u32& r = f.reg == CpuidReg::eax   ? e.eax
             : f.reg == CpuidReg::ebx ? e.ebx
             : f.reg == CpuidReg::ecx ? e.ecx
                                      : e.edx;
    r |= 1u << f.bit;
  }
  bool has(Feature f) {
    kvm_cpuid_entry2& e = leaf(f.leaf, f.subleaf, f.leaf == 7 || f.leaf == 0xd);
    const u32 r = f.reg == CpuidReg::eax   ? e.eax
                  : f.reg == CpuidReg::ebx ? e.ebx
                  : f.reg == CpuidReg::ecx ? e.ecx
                                           : e.edx;
    return (r >> f.bit & 1) != 0;
  }
  std::vector<kvm_cpuid_entry2> take() { return std::move(entries_); }

 private:
  std::vector<kvm_cpuid_entry2> entries_;
};

void set_text(kvm_cpuid_entry2& e, const char* text) {
  std::memcpy(&e.eax, text, 4);
  std::memcpy(&e.ebx, text + 4, 4);
  std::memcpy(&e.ecx, text + 8, 4);
  std::memcpy(&e.edx, text + 12, 4);
}

u32 signature(const Model& m) {
  const u32 base_family = std::min<u32>(m.family, 15);
  const u32 extended_family = m.family - base_family;
  return m.stepping | (m.model & 15u) << 4 | base_family << 8 | static_cast<u32>(m.model >> 4) << 16 |
         extended_family << 20;
}

unsigned bits_for(u32 count) {
  unsigned bits = 0;
  while ((1u << bits) < count) ++bits;
  return bits;
}

// One socket with one thread a core.
void add_topology(Table& t, const Model& m, u32 index, u32 count) {
  const unsigned core_bits = bits_for(count);
  kvm_cpuid_entry2& one = t.leaf(1);
  one.ebx |= 8u << 8 | std::min(count, 255u) << 16 | (index & 0xff) << 24;
  if (count > 1) t.set(feature::htt);
  if (m.vendor == VendorId::intel) {
    // Leaf 4: 32 KiB data, 32 KiB code, 1 MiB second level, 16 MiB third level.
    struct Cache {
      u32 type, level, ways, sets;
      bool shared;
    };
    constexpr Cache caches[] = {
        {1, 1, 8, 64, false}, {2, 1, 8, 64, false}, {3, 2, 16, 1024, false}, {3, 3, 16, 16384, true}};
    u32 i = 0;
    for (const Cache& c : caches) {
      kvm_cpuid_entry2& e = t.leaf(4, i++, true);
      e.eax = c.type | c.level << 5 | 1u << 8 | (c.shared ? (1u << core_bits) - 1 : 0) << 14 |
              ((1u << core_bits) - 1) << 26;
      e.ebx = 63 | (c.ways - 1) << 22;
      e.ecx = c.sets - 1;
    }
    t.leaf(4, i, true);
    kvm_cpuid_entry2& smt = t.leaf(0xb, 0, true);
    smt.ebx = 1;
    smt.ecx = 1u << 8;
    smt.edx = index;
    kvm_cpuid_entry2& core = t.leaf(0xb, 1, true);
    core.eax = core_bits;
    core.ebx = count;
    core.ecx = 1 | 2u << 8;
    core.edx = index;
  } else {
    t.leaf(0x80000005).ecx = 32u << 24 | 8u << 16 | 1u << 8 | 64;
    t.leaf(0x80000005).edx = 32u << 24 | 8u << 16 | 1u << 8 | 64;
    t.leaf(0x80000006).ecx = 512u << 16 | 6u << 12 | 1u << 8 | 64;
    t.leaf(0x80000008).ecx = std::min(count - 1, 255u) | core_bits << 12;
    if (count > 1) t.leaf(0x80000001).ecx |= 2; // CmpLegacy
  }
}

struct Ratio {
  u64 numerator, denominator;
};

// The last convergent of a / b's continued fraction with a numerator up to `most`, which is more than a / b.
Ratio convergent(u64 a, u64 b, u64 most) {
  Ratio before{0, 1}, now{1, 0};
  while (b != 0) {
    const u64 q = a / b;
    const Ratio next{q * now.numerator + before.numerator, q * now.denominator + before.denominator};
    if (next.numerator > most) break;
    before = std::exchange(now, next);
    a = std::exchange(b, a % b);
  }
  return now;
}

void add_time(Table& t, const Model& m, u64 tsc_khz) {
  constexpr u64 bus_khz = 1'000'000; // ApicTimer::default_bus_cycle_ns
  if (m.vendor == VendorId::intel) {
    // The crystal is what the local APIC's timer counts (SDM vol. 3, 11.5.4). Linux multiplies its kHz by
    // the numerator in 32 bits.
    const Ratio ratio = convergent(tsc_khz, bus_khz, ~u32{0} / bus_khz);
    kvm_cpuid_entry2& e = t.leaf(0x15);
    e.eax = static_cast<u32>(ratio.denominator);
    e.ebx = static_cast<u32>(ratio.numerator);
    e.ecx = bus_khz * 1000;
    kvm_cpuid_entry2& mhz = t.leaf(0x16);
    mhz.eax = mhz.ebx = static_cast<u16>(std::min<u64>((tsc_khz + 500) / 1000, 0xffff));
    mhz.ecx = 100;
  }
  t.leaf(0x80000007).edx |= 1u << 8; // invariant TSC
  // The generic hypervisor leaf: the TSC and bus frequency in kHz, for whoever asks.
  kvm_cpuid_entry2& khz = t.leaf(0x40000010);
  khz.eax = static_cast<u32>(std::min<u64>(tsc_khz, ~u32{0}));
  khz.ebx = bus_khz;
}

void add_hypervisor(Table& t) {
  for (const kvm_cpuid_entry2& e : kvm_cpuid_leaves()) t.leaf(e.function) = e;
  t.leaf(0x40000000).eax = 0x40000010; // the last leaf is add_time()'s
}

void add_xsave(Table& t) {
  if (!t.has(feature::xsave)) return;
  u64 allowed = 3;
  const bool avx512 = t.has(feature::avx512f);
  for (const xsave::Component& c : xsave::components) {
    const bool present = c.index == xsave::component::avx    ? t.has(feature::avx)
                         : c.index == xsave::component::pkru ? t.has(feature::pku)
                                                             : avx512;
    if (!present) continue;
    allowed |= bit(c.index);
    kvm_cpuid_entry2& e = t.leaf(0xd, c.index, true);
    e.eax = c.size;
    e.ebx = c.offset;
    e.ecx = c.align64 ? 2 : 0;
  }
  kvm_cpuid_entry2& d0 = t.leaf(0xd, 0, true);
  d0.eax = static_cast<u32>(allowed);
  d0.ebx = xsave::extended_offset;
  d0.ecx = xsave::standard_size(allowed);
  t.leaf(0xd, 1, true);
}

} // namespace

Result<CpuModelSelection> select_cpu_model(std::string_view spec) {
  const std::size_t comma = spec.find(',');
  const std::string_view name = spec.substr(0, comma);
  const Model* m = find_model(name);
  if (m == nullptr) {
    std::string known;
    for (const Model& x : models) known += (known.empty() ? "" : ", ") + std::string(x.info.name);
    return fail(fmt::format("unknown CPU model '{}'", name), fmt::format("use one of: {}", known), 2);
  }
  CpuModelSelection s;
  s.name = name;
  for (const NamedFeature* f : features_of(*m)) s.features.emplace_back(f->name);
  std::string_view rest = comma == std::string_view::npos ? std::string_view{} : spec.substr(comma + 1);
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find(','), rest.size());
    const std::string_view item = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (item.size() < 2 || (item[0] != '+' && item[0] != '-')) {
      return fail(fmt::format("'{}' is not a CPU feature setting", item), "write +feature or -feature", 2);
    }
    const NamedFeature* f = find_feature(item.substr(1));
    if (f == nullptr) {
      return fail(fmt::format("unknown CPU feature '{}'", item.substr(1)), "see: ring3 features", 2);
    }
    const std::string canonical(f->name);
    std::erase(s.features, canonical);
    if (item[0] == '+') {
      if (!feature_available(*f)) {
        return fail(fmt::format("this host cannot run '{}'", f->name),
                    "leave it out: it runs on the host's own units", 2);
      }
      s.features.push_back(canonical);
    }
  }
  return s;
}

std::vector<kvm_cpuid_entry2> cpuid_entries(const CpuModelSelection& selection, u32 index, u32 count,
                                            u64 tsc_khz) {
  const Model& m = *find_model(selection.name);
  Table t;
  for (const std::string& name : selection.features) t.set(find_feature(name)->feature);
  // The extended leaf repeats the old feature bits on AMD.
  if (m.vendor == VendorId::amd) t.leaf(0x80000001).edx |= t.leaf(1).edx & 0x0183f3ff;

  t.leaf(1).eax = signature(m);
  t.leaf(0x80000001).eax = m.vendor == VendorId::amd ? signature(m) : 0;
  add_topology(t, m, index, count);
  add_time(t, m, tsc_khz);
  add_hypervisor(t);
  add_xsave(t);
  t.leaf(7, 0, true).eax = 1;
  t.leaf(7, 1, true);
  char brand[48] = {};
  std::memcpy(brand, m.brand.data(), std::min<std::size_t>(m.brand.size(), sizeof brand - 1));
  for (u32 i = 0; i < 3; ++i) set_text(t.leaf(0x80000002 + i), brand + i * 16);
  const bool la57 = t.has(feature::la57);
  t.leaf(0x80000008).eax = m.physical_bits | (la57 ? 57u : 48u) << 8;

  kvm_cpuid_entry2& zero = t.leaf(0);
  zero.eax = m.vendor == VendorId::intel ? 0x16 : 0xd;
  if (!t.has(feature::xsave) && m.vendor == VendorId::amd) zero.eax = 7;
  const char* vendor = m.vendor == VendorId::intel ? "GenuineIntel" : "AuthenticAMD";
  std::memcpy(&zero.ebx, vendor, 4);
  std::memcpy(&zero.edx, vendor + 4, 4);
  std::memcpy(&zero.ecx, vendor + 8, 4);
  kvm_cpuid_entry2& extended = t.leaf(0x80000000);
  extended.eax = 0x80000008;
  if (m.vendor == VendorId::amd) {
    extended.ebx = zero.ebx;
    extended.ecx = zero.ecx;
    extended.edx = zero.edx;
  }
  std::vector<kvm_cpuid_entry2> entries = t.take();
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return a.function != b.function ? a.function < b.function : a.index < b.index;
  });
  return entries;
}

std::span<const ModelInfo> cpu_models() {
  static const std::vector<ModelInfo> all = [] {
    std::vector<ModelInfo> v;
    for (const Model& m : models) v.push_back(m.info);
    return v;
  }();
  return all;
}

std::vector<std::string_view> model_features(std::string_view name) {
  std::vector<std::string_view> v;
  const Model* m = find_model(name);
  if (m == nullptr) return v;
  for (const NamedFeature* f : features_of(*m)) v.push_back(f->name);
  return v;
}

} // namespace ring3::x86
