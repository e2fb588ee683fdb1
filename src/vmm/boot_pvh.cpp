// SPDX-License-Identifier: Apache-2.0
// ELF kernels with a Xen PVH entry note: 32-bit entry, EBX points at an hvm_start_info.
#include "vmm/boot.h"

#include "base/address.h"
#include "base/bits.h"
#include "vmm/byte_writer.h"
#include "vmm/elf_image.h"

#include <fmt/format.h>

namespace ring3::vmm {
namespace {

constexpr u32 note_phys32_entry = 18; // XEN_ELFNOTE_PHYS32_ENTRY
constexpr u32 start_info_magic = 0x336ec578;
constexpr u64 start_info_size = 56, module_size = 32, map_entry_size = 24;

} // namespace

Result<BootEntry> load_pvh(const GuestRam& ram, const BootInput& input) {
  const Result<ElfImage> image = parse_elf(input.kernel);
  if (!image) return std::unexpected(image.error());
  std::optional<u64> start;
  for (const ElfNote& note : image->notes) {
    if (note.name != "Xen" || note.type != note_phys32_entry) continue;
    if (note.description.size() >= 8)
      start = load_raw<u64>(note.description.data());
    else if (note.description.size() >= 4)
      start = load_raw<u32>(note.description.data());
  }
  if (!start)
    return fail("the ELF kernel has no PVH entry point",
                "build it with CONFIG_PVH=y, or give --kernel the bzImage (vmlinuz)");

  Result<std::vector<Extent>> taken = load_elf_segments(ram, input.kernel, *image);
  if (!taken) return std::unexpected(taken.error());
  bool entry_loaded = false;
  u64 end = mib;
  for (const Extent& e : *taken) {
    entry_loaded |= *start >= e.base && *start < e.end;
    end = std::max(end, e.end);
  }
  if (!entry_loaded)
    return fail("the PVH entry point is outside the kernel", "the file is damaged; fetch it again");

  u64 initrd_at = 0;
  if (!input.initrd.empty()) {
    const u64 floor = (end + page_offset_mask) & ~page_offset_mask;
    if (floor >= ram.low_end() || input.initrd.size() > ram.low_end() - floor)
      return fail("the initrd does not fit into the guest's memory beside the kernel",
                  "use a larger --memory");
    initrd_at = (ram.low_end() - input.initrd.size()) & ~page_offset_mask;
    if (initrd_at < floor || !ram.write(initrd_at, input.initrd))
      return fail("the initrd does not fit into the guest's memory beside the kernel",
                  "use a larger --memory");
    taken->push_back({initrd_at, initrd_at + input.initrd.size()});
  }

  const std::vector<MemoryRange> map = ram.map();
  const u64 modules_at = start_info_size, map_at = modules_at + module_size,
            gdt_at = map_at + map.size() * map_entry_size, text_at = gdt_at + boot_gdt_size,
            size = text_at + input.command_line.size() + 1;
  const std::optional<u64> block = place_parameters(ram, size, *taken);
  if (!block) return fail("no room for the boot parameters", "use a larger --memory");

  ByteWriter w;
  w.u32v(start_info_magic).u32v(1).u32v(0).u32v(initrd_at != 0 ? 1 : 0);
  w.u64v(initrd_at != 0 ? *block + modules_at : 0).u64v(*block + text_at).u64v(input.rsdp);
  w.u64v(*block + map_at).u32v(static_cast<u32>(map.size())).u32v(0);
  w.u64v(initrd_at).u64v(input.initrd.size()).u64v(0).u64v(0);
  for (const MemoryRange& r : map) w.u64v(r.base).u64v(r.size).u32v(static_cast<u32>(r.type)).u32v(0);
  w.append(boot_gdt()).text(input.command_line).u8v(0);
  if (!ram.write(*block, w.bytes())) return fail("no room for the boot parameters", "use a larger --memory");

  BootEntry entry;
  entry.rip = *start;
  entry.rbx = *block;
  entry.gdt = *block + gdt_at;
  return entry;
}

} // namespace ring3::vmm
