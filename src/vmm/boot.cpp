// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot.h"

#include "base/address.h"
#include "base/bits.h"
#include "vmm/byte_writer.h"
#include "vmm/elf_image.h"

#include <algorithm>
#include <fmt/format.h>

namespace ring3::vmm {
namespace {

constexpr u64 cr0_pe = 1, cr0_et = 0x10, cr0_pg = u64{1} << 31;
constexpr u64 cr4_pae = 0x20;
constexpr u64 efer_lme = 0x100, efer_lma = 0x400;

kvm_segment flat_segment(u16 selector, u8 type, bool long_mode) {
  kvm_segment s{};
  s.limit = 0xffffffff;
  s.selector = selector;
  s.type = type;
  s.present = 1;
  s.s = 1;
  s.g = 1;
  s.db = long_mode ? 0 : 1;
  s.l = long_mode ? 1 : 0;
  return s;
}

} // namespace

std::string_view kernel_format_name(KernelFormat format) {
  switch (format) {
  case KernelFormat::bzimage: return "bzImage";
  case KernelFormat::pvh: return "ELF with a PVH entry";
  default: return "multiboot";
  }
}

Result<KernelFormat> sniff_kernel(std::span<const std::byte> kernel) {
  if (kernel.empty())
    return fail("the kernel file is empty", "give --kernel a bzImage, a PVH or a multiboot kernel");
  if (kernel.size() >= 0x206 && load_raw<u32>(kernel.data() + 0x202) == 0x53726448)
    return KernelFormat::bzimage;
  if (has_multiboot_header(kernel)) return KernelFormat::multiboot;
  if (is_elf(kernel)) return KernelFormat::pvh;
  return fail("the kernel file is neither a bzImage nor an ELF image nor a multiboot image",
              "give --kernel a file such as /boot/vmlinuz-6.1.0-amd64");
}

Result<BootEntry> load_kernel(const GuestRam& ram, const BootInput& input) {
  const Result<KernelFormat> format = sniff_kernel(input.kernel);
  if (!format) return std::unexpected(format.error());
  switch (*format) {
  case KernelFormat::bzimage: return load_bzimage(ram, input);
  case KernelFormat::pvh: return load_pvh(ram, input);
  default: return load_multiboot(ram, input);
  }
}

std::optional<u64> place_parameters(const GuestRam& ram, u64 size, std::span<const Extent> taken) {
  size = (size + page_offset_mask) & ~page_offset_mask;
  auto is_free = [&](u64 base) {
    return std::ranges::none_of(taken, [&](const Extent& e) { return base < e.end && e.base < base + size; });
  };
  constexpr u64 top = ebda_base & ~page_offset_mask;
  if (size <= top / 2 && is_free(top - size)) return top - size;
  u64 end = mib;
  for (const Extent& e : taken) end = std::max(end, e.end);
  end = (end + page_offset_mask) & ~page_offset_mask;
  if (end < mib || ram.at(end, size).empty() || end + size > low_ram_limit) return std::nullopt;
  return end;
}

std::vector<std::byte> boot_gdt() {
  ByteWriter w;
  w.u64v(0).u64v(0x00cf9b000000ffff).u64v(0x00af9b000000ffff).u64v(0x00cf93000000ffff);
  return w.take();
}

int enter(const BootEntry& entry, kvm::VcpuApi& vcpu) {
  kvm_sregs sregs{};
  if (const int rc = vcpu.get_sregs(sregs); rc < 0) return rc;
  const bool long_mode = entry.mode == BootEntry::Mode::long64;
  constexpr u8 code = 0x0b, data = 0x03; // accessed, readable or writable
  sregs.cs = flat_segment(long_mode ? 0x10 : 0x08, code, long_mode);
  for (kvm_segment* s : {&sregs.ds, &sregs.es, &sregs.fs, &sregs.gs, &sregs.ss}) {
    *s = flat_segment(0x18, data, false);
  }
  // VMX wants a busy TSS in TR; the guest loads its own before it matters.
  sregs.tr = kvm_segment{};
  sregs.tr.type = 0x0b;
  sregs.tr.present = 1;
  sregs.tr.limit = 0xffff;
  sregs.gdt = {.base = entry.gdt, .limit = boot_gdt_size - 1, .padding = {}};
  sregs.idt = {.base = 0, .limit = 0, .padding = {}};
  sregs.cr0 = cr0_pe | cr0_et | (long_mode ? cr0_pg : 0);
  sregs.cr3 = long_mode ? entry.page_tables : 0;
  sregs.cr4 = long_mode ? cr4_pae : 0;
  sregs.efer = long_mode ? efer_lme | efer_lma : 0;
  if (const int rc = vcpu.set_sregs(sregs); rc < 0) return rc;

  kvm_regs regs{};
  regs.rip = entry.rip;
  regs.rax = entry.rax;
  regs.rbx = entry.rbx;
  regs.rsi = entry.rsi;
  regs.rflags = 2;
  return vcpu.set_regs(regs);
}

} // namespace ring3::vmm
