// SPDX-License-Identifier: Apache-2.0
// What every kernel loader takes and gives. A loader copies the image and its parameters into guest RAM and
// says how the boot CPU starts. Images are hostile input: every field is checked, every failure is an Error
// with a fix.
#pragma once

#include "base/error.h"
#include "base/types.h"
#include "kvm/api.h"
#include "vmm/guest_ram.h"

#include <optional>
#include <span>
#include <string>
#include <vector>

namespace ring3::vmm {

struct BootInput {
  std::span<const std::byte> kernel;
  std::span<const std::byte> initrd; // empty: none
  std::string command_line;
  std::string
      kernel_name; // as the user gave it; multiboot guests see it as the first word of their command line
  std::string initrd_name;
  u64 rsdp = 0; // guest address of the ACPI root pointer
};

// The boot CPU's first state.
struct BootEntry {
  enum class Mode {
    long64, // paging on with the first 4 GiB identity-mapped, flat segments
    flat32  // protected mode without paging, flat segments
  };
  Mode mode = Mode::flat32;
  u64 rip = 0;
  u64 rax = 0, rbx = 0, rsi = 0;
  u64 gdt = 0;         // guest address of the descriptor table (see write_boot_gdt)
  u64 page_tables = 0; // long64 only
};

enum class KernelFormat { bzimage, pvh, multiboot };
std::string_view kernel_format_name(KernelFormat format);

// Looks at the image only.
Result<KernelFormat> sniff_kernel(std::span<const std::byte> kernel);

// Sniffs and loads.
Result<BootEntry> load_kernel(const GuestRam& ram, const BootInput& input);

Result<BootEntry> load_bzimage(const GuestRam& ram,
                               const BootInput& input);                  // Documentation/arch/x86/boot.rst
Result<BootEntry> load_pvh(const GuestRam& ram, const BootInput& input); // Xen's docs/misc/pvh.pandoc
Result<BootEntry> load_multiboot(const GuestRam& ram,
                                 const BootInput& input); // Multiboot specification 0.6.96

// True when the image has a valid multiboot header.
bool has_multiboot_header(std::span<const std::byte> kernel);

// Puts the boot CPU into its first state. 0 or -errno of the call that failed.
int enter(const BootEntry& entry, kvm::VcpuApi& vcpu);

// --- shared by the loaders
// -------------------------------------------------------------------------------------------

// Guest memory that is taken: [base, end).
struct Extent {
  u64 base;
  u64 end;
};

// Room for `size` bytes of boot parameters, page-aligned, clear of `taken`: just below the EBDA if it can be,
// or else after everything else.
std::optional<u64> place_parameters(const GuestRam& ram, u64 size, std::span<const Extent> taken);

constexpr u64 boot_gdt_size = 4 * 8;
// Selectors 0x08: 32-bit code, 0x10: 64-bit code, 0x18: data. 32-bit entry uses data selector 0x18, too.
std::vector<std::byte> boot_gdt();

} // namespace ring3::vmm
