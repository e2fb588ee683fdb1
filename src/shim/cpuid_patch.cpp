// SPDX-License-Identifier: Apache-2.0
#include "shim/cpuid_patch.h"

#include "shim/settings.h"
#include "shim/signals.h"
#include "x86/decode/decoded.h"

#include <algorithm>
#include <cpuid.h>
#include <cstring>
#include <elf.h>
#include <link.h>
#include <optional>
#include <sys/mman.h>

namespace ring3::shim {

namespace {

constexpr u32 monitor_line_bytes = 64;
constexpr u8 cpuid_bytes[2] = {0x0f, 0xa2};
constexpr u8 ud2_bytes[2] = {0x0f, 0x0b};

struct Code {
  u64 start = 0;
  u64 size = 0;
  bool contains(u64 a) const { return a - start < size; }
  std::span<const u8> bytes() const { return {reinterpret_cast<const u8*>(start), size}; }
};

// .eh_frame_hdr as GNU tools write it (Linux Standard Base, Core, 10.6.2): a sorted table of functions.
class FunctionTable {
 public:
  explicit FunctionTable(const u8* header) : header_(reinterpret_cast<u64>(header)) {
    constexpr u8 version = 1;
    constexpr u8 encodings[] = {0x1b, 0x03, 0x3b}; // PC-relative; 32-bit count; relative to the header
    if (header[0] != version || std::memcmp(header + 1, encodings, sizeof encodings) != 0) return;
    u32 count;
    std::memcpy(&count, header + 8, sizeof count);
    table_ = {reinterpret_cast<const Row*>(header + 12), count};
  }

  std::optional<Code> find(u64 address) const {
    const auto past = std::ranges::upper_bound(table_, static_cast<s64>(address - header_), {},
                                               [](const Row& r) { return s64{r.function}; });
    if (past == table_.begin()) return std::nullopt;
    const Row& row = *(past - 1);
    // The description: length, offset of the common part, first address (relative to itself), size.
    const u64 description = header_ + static_cast<u64>(s64{row.description});
    s32 first;
    u32 size;
    std::memcpy(&first, reinterpret_cast<const u8*>(description + 8), sizeof first);
    std::memcpy(&size, reinterpret_cast<const u8*>(description + 12), sizeof size);
    const Code code{header_ + static_cast<u64>(s64{row.function}), size};
    // Another encoding than the usual one would not give the address of the table.
    if (description + 8 + static_cast<u64>(s64{first}) != code.start || !code.contains(address))
      return std::nullopt;
    return code;
  }

 private:
  struct Row {
    s32 function;
    s32 description;
  };
  u64 header_;
  std::span<const Row> table_;
};

struct Program {
  std::vector<Code> code;
  std::vector<Code> data;
  const u8* functions = nullptr; // .eh_frame_hdr
};

// The main program comes first (dl_iterate_phdr(3)).
int look_at_program(dl_phdr_info* info, size_t, void* out) {
  auto& program = *static_cast<Program*>(out);
  for (const auto& h : std::span(info->dlpi_phdr, info->dlpi_phnum)) {
    const Code range{info->dlpi_addr + h.p_vaddr, h.p_memsz};
    if (h.p_type == PT_GNU_EH_FRAME) program.functions = reinterpret_cast<const u8*>(range.start);
    if (h.p_type != PT_LOAD || (h.p_flags & PF_R) == 0) continue;
    ((h.p_flags & PF_X) != 0 ? program.code : program.data).push_back(range);
  }
  return 1;
}

bool mentions(const Code& range, std::string_view text) {
  return memmem(reinterpret_cast<const void*>(range.start), range.size, text.data(), text.size()) != nullptr;
}

std::vector<u64>& patched() {
  static std::vector<u64> addresses; // sorted
  return addresses;
}

void replace(u64 address) {
  const u64 first = address & ~page_offset_mask;
  const u64 size = ((address + 1) & ~page_offset_mask) + page_size - first;
  auto* const pages = reinterpret_cast<void*>(first);
  if (mprotect(pages, size, PROT_READ | PROT_WRITE) != 0) return;
  std::memcpy(reinterpret_cast<void*>(address), ud2_bytes, sizeof ud2_bytes);
  mprotect(pages, size, PROT_READ | PROT_EXEC);
  patched().push_back(address);
}

void patch_range(const Code& range, const FunctionTable& functions) {
  Code done; // the last function that was looked through
  u64 at = range.start;
  while (const void* hit = memmem(reinterpret_cast<const void*>(at), range.start + range.size - at,
                                  cpuid_bytes, sizeof cpuid_bytes)) {
    const auto address = reinterpret_cast<u64>(hit);
    at = address + 1;
    const auto function = functions.find(address);
    if (!function || function->start == done.start) continue;
    done = *function;
    for (const u64 offset : find_cpuid(function->bytes())) replace(function->start + offset);
  }
}

const kvm_cpuid_entry2* find(std::span<const kvm_cpuid_entry2> entries, u32 leaf, u32 subleaf = 0) {
  const auto e = std::ranges::find_if(
      entries, [&](const kvm_cpuid_entry2& x) { return x.function == leaf && x.index == subleaf; });
  return e == entries.end() ? nullptr : &*e;
}

} // namespace

std::vector<u64> find_cpuid(std::span<const u8> code) {
  std::vector<u64> found;
  x86::Decoded d;
  for (u64 at = 0; at < code.size(); at += d.length) {
    if (x86::decode(code.data() + at, code.size() - at, 64, d) != x86::DecodeStatus::ok) break;
    // Two bytes can be replaced by two: no prefixes.
    if (d.op == x86::Op::cpuid && d.length == sizeof cpuid_bytes) found.push_back(at);
  }
  return found;
}

x86::CpuidResult program_cpuid(u32 leaf, u32 subleaf, const x86::CpuidResult& host,
                               std::span<const kvm_cpuid_entry2> supported) {
  constexpr u32 monitor = 1U << 3;
  constexpr u32 vmx = 1U << 5;
  constexpr u32 svm = 1U << 2;
  const kvm_cpuid_entry2* const vendor = find(supported, 0);
  const bool amd = vendor != nullptr && vendor->edx == 0x69746e65; // "enti"
  x86::CpuidResult r = host;
  const kvm_cpuid_entry2* const ours = find(supported, leaf, leaf == 0xd ? subleaf : 0);
  switch (leaf) {
  case 0:
    if (ours != nullptr) r = {host.eax, ours->ebx, ours->ecx, ours->edx};
    break;
  case 1:
    if (ours != nullptr) r.eax = ours->eax;
    r.ecx = amd ? r.ecx & ~vmx : r.ecx | vmx;
    // Only ring 0 can use it, and the guest's ring 0 can. VMMs ask here, since KVM_GET_SUPPORTED_CPUID leaves
    // it out (api.rst 4.46).
    r.ecx |= monitor;
    break;
  case 5: // MONITOR's ranges of memory: cache lines
    if (r.eax == 0) r.eax = monitor_line_bytes;
    if (r.ebx == 0) r.ebx = monitor_line_bytes;
    break;
  case 0xd: // where the components are; the sizes of subleaves 0 and 1 are the program's own
    if (subleaf >= 2)
      r = ours != nullptr ? x86::CpuidResult{ours->eax, ours->ebx, ours->ecx, 0} : x86::CpuidResult{};
    break;
  case 0x80000000: r.eax = std::max(r.eax, 0x80000008U); break;
  case 0x80000001:
    if (amd && ours != nullptr) r.eax = ours->eax;
    r.ecx = amd ? r.ecx | svm : r.ecx & ~svm;
    break;
  case 0x80000002:
  case 0x80000003:
  case 0x80000004:
    if (ours != nullptr) r = {ours->eax, ours->ebx, ours->ecx, ours->edx};
    break;
  case 0x80000008:
    if (ours != nullptr) r.eax = ours->eax;
    break;
  default: break;
  }
  return r;
}

void patch_cpuid() {
  Program program;
  dl_iterate_phdr(look_at_program, &program);
  const auto says_kvm = [](const Code& range) { return mentions(range, "/dev/kvm"); };
  if (program.functions == nullptr ||
      (std::ranges::none_of(program.data, says_kvm) && std::ranges::none_of(program.code, says_kvm)))
    return;
  const FunctionTable functions(program.functions);
  for (const Code& range : program.code) patch_range(range, functions);
  if (patched().empty()) return;
  std::ranges::sort(patched());
  install_fault_handlers();
}

bool emulate_cpuid(ucontext_t& context) {
  auto& regs = context.uc_mcontext.gregs;
  if (!std::ranges::binary_search(patched(), static_cast<u64>(regs[REG_RIP]))) return false;
  const auto leaf = static_cast<u32>(regs[REG_RAX]);
  const auto subleaf = static_cast<u32>(regs[REG_RCX]);
  x86::CpuidResult host;
  __cpuid_count(leaf, subleaf, host.eax, host.ebx, host.ecx, host.edx);
  const x86::CpuidResult r = program_cpuid(leaf, subleaf, host, settings().supported_cpuid);
  regs[REG_RAX] = r.eax;
  regs[REG_RBX] = r.ebx;
  regs[REG_RCX] = r.ecx;
  regs[REG_RDX] = r.edx;
  regs[REG_RIP] += sizeof ud2_bytes;
  return true;
}

} // namespace ring3::shim
