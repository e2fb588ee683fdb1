// SPDX-License-Identifier: Apache-2.0
// Feeds any bytes to the kernel loaders. The first byte chooses the loader and how much of the rest is an
// initrd, so that one input reaches all of them; every outcome but a crash, a hang or an overrun is fine.
#include "vmm/boot.h"

#include <cstdlib>

using namespace ring3;
using namespace ring3::vmm;

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  static const GuestRam ram = [] {
    Result<GuestRam> made = GuestRam::create(32 * mib);
    if (!made) std::abort();
    return std::move(*made);
  }();
  if (size == 0) return 0;
  const unsigned choice = data[0] & 3;
  const std::span<const std::byte> rest = std::as_bytes(std::span(data + 1, size - 1));
  const std::size_t initrd_size = (data[0] & 4) ? rest.size() / 4 : 0;
  BootInput input;
  input.kernel = rest.first(rest.size() - initrd_size);
  input.initrd = rest.last(initrd_size);
  input.command_line = "console=ttyS0";
  input.kernel_name = "kernel";
  input.initrd_name = "initrd";
  input.rsdp = acpi_base;
  Result<BootEntry> entry = choice == 0   ? load_bzimage(ram, input)
                            : choice == 1 ? load_pvh(ram, input)
                            : choice == 2 ? load_multiboot(ram, input)
                                          : load_kernel(ram, input);
  // A loader that succeeds has put everything it names into RAM.
  if (entry && (ram.at(entry->gdt, boot_gdt_size).empty() || ram.at(entry->rip, 1).empty())) std::abort();
  return 0;
}
