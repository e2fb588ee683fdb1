// SPDX-License-Identifier: Apache-2.0
#include "differential.h"

#include "x86/interp/host_code.h"

#include <algorithm>
#include <fmt/format.h>

namespace ring3::x86::native {

namespace {

constexpr const char* gpr_names[16] = {"rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
                                       "r8",  "r9",  "r10", "r11", "r12", "r13", "r14", "r15"};

std::string hex(const u8* p, unsigned size) {
  std::string s;
  for (unsigned i = size; i-- > 0;) s += fmt::format("{:02x}", p[i]);
  return s;
}

std::string bytes_of(const Case& c) {
  std::string s;
  for (unsigned i = 0; i < c.bytes.size; ++i)
    s += fmt::format("{}{:02x}", i == 0 ? "" : " ", c.bytes.data[i]);
  return s;
}

// Flags that need not agree, with the reason.
struct FlagException {
  Op op;
  u64 flags;
  const char* reason;
};
constexpr FlagException flag_exceptions[] = {
    // Undefined, and differ between processors; ours leaves them alone.
    {Op::div, rflags::arithmetic, "undefined"},
    {Op::idiv, rflags::arithmetic, "undefined"},
    // 64-bit processes cannot execute these, so ours are written out.
    {Op::aaa, rflags::of | rflags::sf | rflags::zf | rflags::pf, "undefined"},
    {Op::aas, rflags::of | rflags::sf | rflags::zf | rflags::pf, "undefined"},
    {Op::daa, rflags::of, "undefined"},
    {Op::das, rflags::of, "undefined"},
    {Op::aad, rflags::of | rflags::af | rflags::cf, "undefined"},
    {Op::aam, rflags::of | rflags::af | rflags::cf, "undefined"},
};

u64 compared_flags(const Decoded& d) {
  // RF is set in the image of a fault only on the native side, where it was delivered.
  u64 mask = rflags::all & ~rflags::rf & ~rflags::tf;
  for (const FlagException& e : flag_exceptions) {
    if (e.op == d.op) mask &= ~e.flags;
  }
  return mask;
}

std::string describe(const Outcome& o) {
  if (o.stopped) return fmt::format("stopped: {}", o.note != nullptr ? o.note : "?");
  if (!o.faulted) return "no fault";
  return fmt::format("fault {} error {:#x} cr2 {:#x}", static_cast<unsigned>(o.fault.vector),
                     o.fault.error_code, o.fault.cr2);
}

// Outcomes that the manuals leave to the processor. The state is not compared then.
const char* allowed_difference(const Decoded& d, const Outcome& native, const Outcome& ours) {
  const bool both = native.faulted && ours.faulted && native.fault.vector == ours.fault.vector;
  if ((d.op == Op::popa || d.op == Op::popad) && both)
    return "registers popped before the fault may be written";
  if (d.op == Op::call && native.faulted && ours.faulted)
    return "a bad stack and a bad target: either may come first";
  if (d.vsib && both) return "elements before the fault may be done, in any order";
  const bool masked_aligned = d.op == Op::vector && d.evex_mask != 0 && d.has_memory;
  if (masked_aligned && !native.faulted && ours.faulted && ours.fault.vector == Vector::gp)
    return "AMD does not check the alignment of an operand of which nothing is used";
  const bool no_broadcast_class = (d.map == 1 && d.opcode == 0x71) || (d.map == 2 && d.opcode == 0x8f);
  if (d.op == Op::vector && d.evex_mask != 0 && no_broadcast_class && !native.faulted && ours.faulted &&
      ours.fault.vector == Vector::pf)
    return "class E4NF: AMD does not touch masked elements of VPSLLW and VPSHUFBITQMB, the SDM does";
  if (d.op == Op::vector && both && native.fault.vector == Vector::pf &&
      native.fault.cr2 >> 12 == ours.fault.cr2 >> 12)
    return "which byte of a partly masked operand faults first";
  if (d.op == Op::vector && ours.faulted && ours.fault.vector == Vector::gp &&
      native.fault.vector != Vector::gp && std::string_view(mnemonic_of(d)).starts_with("sha"))
    return "AMD does not check the alignment of the SHA instructions' operands";
  if (d.op == Op::x87 && both && d.memory_bits > 80 && native.fault.vector == Vector::pf &&
      native.fault.cr2 >> 12 == ours.fault.cr2 >> 12)
    return "the order in which an environment is read or written";
  return nullptr;
}

class Differences {
 public:
  void add(std::string_view what, u64 start, u64 native, u64 ours) {
    if (native != ours) {
      text_ +=
          fmt::format("  {:<8} start {:#018x}  native {:#018x}  ours {:#018x}\n", what, start, native, ours);
    }
  }
  void add_bytes(std::string_view what, const u8* start, const u8* native, const u8* ours, unsigned size) {
    if (std::memcmp(native, ours, size) == 0) return;
    text_ += fmt::format("  {:<8} start  {}\n  {:<8} native {}\n  {:<8} ours   {}\n", what, hex(start, size),
                         "", hex(native, size), "", hex(ours, size));
  }
  void add_memory(u64 base, const u8* start, const u8* native, const u8* ours) {
    if (std::memcmp(native, ours, arena::region_size) == 0) return;
    unsigned first = 0;
    while (native[first] == ours[first]) ++first;
    unsigned last = arena::region_size - 1;
    while (native[last] == ours[last]) --last;
    const unsigned shown = std::min(last - first + 1, 64U);
    text_ += fmt::format("  memory {:#x}, {} bytes\n", base + first, last - first + 1);
    add_bytes("", start + first, native + first, ours + first, shown);
  }
  const std::string& text() const { return text_; }

 private:
  std::string text_;
};

} // namespace

Differential::Differential(u64 seed) : seed_(seed), maker_(seed), forms_(enumerate_forms()) {
  if (native_.unusable() == nullptr) leave_out_unavailable();
}

// What our CPUID does not offer is compared only if the host refuses it too.
void Differential::leave_out_unavailable() {
  std::vector<Form> kept;
  MachineState state;
  state.flags = rflags::fixed1 | rflags::if_;
  for (u64& g : state.gpr) g = arena::data + 0x800;
  state.gpr[rsp] = arena::stack + 0x800;
  for (Form& f : forms_.forms) {
    if (!host::has_feature(f.sample.feature) || !host::has_feature(f.sample.feature2)) {
      forms_.left_out.push_back({f.name, "the host does not have it"});
      continue;
    }
    if (!guest_.offers(f.sample)) {
      native_.execute({f.sample.bytes.data(), f.sample.length}, f.shape.code_bits, state, expected_);
      if (!expected_.faulted || expected_.fault.vector != Vector::ud) {
        forms_.left_out.push_back({f.name, "the host has it, our CPUID does not offer it"});
        continue;
      }
      forms_.left_out.push_back({f.name, "neither the host nor ours has it: #UD on both"});
      continue;
    }
    kept.push_back(std::move(f));
  }
  forms_.forms = std::move(kept);
}

void Differential::filter(std::string_view part) {
  std::erase_if(forms_.forms, [&](const Form& f) { return f.name.find(part) == std::string::npos; });
}

bool Differential::run(const Form& form, u64 first, u64 count, std::string& report) {
  for (u64 i = first; i < first + count; ++i) {
    if (!compare(form, i, report)) return false;
  }
  return true;
}

bool Differential::run_engines(const Form& form, u64 first, u64 count, std::string& report) {
  for (u64 i = first; i < first + count; ++i) {
    Random mix(seed_ ^ form.key);
    const u64 case_seed = mix.next() + i * 0x9e3779b97f4a7c15;
    const u64 encoding_seed = form.sample.op == Op::vector ? mix.next() + i % 16 : case_seed;
    std::memset(&memory_, static_cast<int>(i & 0xff), sizeof memory_);
    if (!maker_.make(form, encoding_seed, case_seed, case_, memory_)) {
      ++progress_.no_encoding;
      continue;
    }
    ++progress_.cases;
    std::memcpy(guest_.data(), memory_.data, sizeof memory_.data);
    std::memcpy(guest_.stack(), memory_.stack, sizeof memory_.stack);
    if (guest_.engines_agree(case_.decoded, case_.state)) continue;
    ++progress_.mismatches;
    report = fmt::format("{}  [{}]; form: {}\n", disassemble(case_.bytes.data.data(), case_.bytes.size, 64),
                         bytes_of(case_), form.name);
    return false;
  }
  return true;
}

bool Differential::compare(const Form& form, u64 number, std::string& report) {
  Random mix(seed_ ^ form.key);
  const u64 case_seed = mix.next() + number * 0x9e3779b97f4a7c15;
  // Vector instructions are compiled per choice of registers, and that memory is finite.
  const u64 encoding_seed = form.sample.op == Op::vector ? mix.next() + number % 16 : case_seed;
  // The background must not depend on the cases before this one.
  std::memset(&memory_, static_cast<int>(number & 0xff), sizeof memory_);
  if (!maker_.make(form, encoding_seed, case_seed, case_, memory_)) {
    ++progress_.no_encoding;
    return true;
  }
  ++progress_.cases;
  std::memcpy(native_.data(), memory_.data, sizeof memory_.data);
  std::memcpy(native_.stack(), memory_.stack, sizeof memory_.stack);
  std::memcpy(guest_.data(), memory_.data, sizeof memory_.data);
  std::memcpy(guest_.stack(), memory_.stack, sizeof memory_.stack);
  const Decoded& d = case_.decoded;
  native_.execute({case_.bytes.data.data(), case_.bytes.size}, d.code_bits, case_.state, expected_);
  guest_.execute(d, d.code_bits, case_.state, got_);

  const MachineState& n = expected_.state;
  const MachineState& o = got_.state;
  const MachineState& s = case_.state;
  Differences diff;
  const unsigned registers = d.code_bits == 64 ? 16 : 8;
  const u64 width = d.code_bits == 64 ? ~u64{0} : 0xffffffff;
  for (unsigned i = 0; i < registers; ++i)
    diff.add(gpr_names[i], s.gpr[i], n.gpr[i] & width, o.gpr[i] & width);
  diff.add("rip", s.rip, n.rip & width, o.rip & width);
  const u64 flags = compared_flags(d);
  diff.add("flags", s.flags & flags, n.flags & flags, o.flags & flags);
  diff.add("mxcsr", s.x87.mxcsr, n.x87.mxcsr, o.x87.mxcsr);
  diff.add("fcw", s.x87.fcw, n.x87.fcw, o.x87.fcw);
  diff.add("fsw", s.x87.fsw, n.x87.fsw, o.x87.fsw);
  diff.add("ftw", s.x87.ftw, n.x87.ftw, o.x87.ftw);
  for (unsigned i = 0; i < 8; ++i)
    diff.add_bytes(fmt::format("st{}", i), s.x87.st[i], n.x87.st[i], o.x87.st[i], 10);
  if (std::memcmp(&n.vector, &o.vector, sizeof n.vector) != 0) {
    const unsigned size = (native_.xsave_mask() & 0x40) != 0 ? 64 : (native_.xsave_mask() & 4) != 0 ? 32 : 16;
    for (unsigned i = 0; i < (size == 64 ? 32U : 16U); ++i) {
      diff.add_bytes(fmt::format("zmm{}", i), s.vector.zmm[i], n.vector.zmm[i], o.vector.zmm[i], size);
    }
    for (unsigned i = 0; i < 8 && size == 64; ++i)
      diff.add(fmt::format("k{}", i), s.vector.k[i], n.vector.k[i], o.vector.k[i]);
  }
  diff.add_memory(arena::data, memory_.data, native_.data(), guest_.data());
  diff.add_memory(arena::stack, memory_.stack, native_.stack(), guest_.stack());
  // Whether something is mapped in the kernel's half is nobody's business here.
  if (expected_.faulted && expected_.fault.vector == Vector::pf && expected_.fault.cr2 >> 63 != 0) {
    expected_.fault.error_code &= ~pf::present;
  }
  const bool same_fault =
      expected_.faulted == got_.faulted && !got_.stopped &&
      (!got_.faulted ||
       (expected_.fault.vector == got_.fault.vector && expected_.fault.error_code == got_.fault.error_code &&
        (got_.fault.vector != Vector::pf || expected_.fault.cr2 == got_.fault.cr2)));
  if ((!same_fault || !diff.text().empty()) && allowed_difference(d, expected_, got_) != nullptr) {
    ++progress_.allowed;
    return true;
  }
  if (same_fault && diff.text().empty()) {
    progress_.faults += expected_.faulted;
    return true;
  }
  ++progress_.mismatches;
  const std::string name = form.name.substr(0, form.name.find(' '));
  report = fmt::format("{}  [{}]{}\n", disassemble(case_.bytes.data.data(), case_.bytes.size, d.code_bits),
                       bytes_of(case_), d.code_bits == 32 ? "  32-bit code" : "");
  if (!same_fault) report += fmt::format("  native: {}\n  ours:   {}\n", describe(expected_), describe(got_));
  report += diff.text();
  report += fmt::format("  flags {:#x} mxcsr {:#x} fcw {:#x} fsw {:#x}; form: {}\n", s.flags, s.x87.mxcsr,
                        s.x87.fcw, s.x87.fsw, form.name);
  report += fmt::format("  again: native-diff --seed {} --filter '{}' --case {}\n", seed_, form.name, number);
  return false;
}

} // namespace ring3::x86::native
