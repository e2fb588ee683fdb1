// SPDX-License-Identifier: Apache-2.0
// Multiboot 1: 32-bit entry with EAX = 0x2badb002 and EBX at the information structure. As in QEMU, the
// command line starts with the kernel's file name, and the initrd becomes the only module.
#include "vmm/boot.h"

#include "base/address.h"
#include "base/bits.h"
#include "vmm/byte_writer.h"
#include "vmm/elf_image.h"

#include <algorithm>
#include <cstring>
#include <fmt/format.h>

namespace ring3::vmm {
namespace {

constexpr u32 header_magic = 0x1badb002, loader_magic = 0x2badb002;
constexpr u32 flag_unknown_required = 0xfff8; // bits 0-15 are demands; 0-2 are defined
constexpr u32 flag_addresses = 0x10000;       // the a.out kludge
constexpr std::size_t search_limit = 8192;
constexpr u32 info_memory = 1, info_command_line = 4, info_modules = 8, info_map = 0x40, info_loader = 0x200;
constexpr u64 info_size = 88, module_size = 16, map_entry_size = 24;
constexpr std::string_view loader_name = "ring3";

std::optional<std::size_t> find_header(std::span<const std::byte> file) {
  const std::size_t limit = std::min(file.size(), search_limit);
  for (std::size_t at = 0; at + 12 <= limit; at += 4) {
    const u32 magic = load_raw<u32>(file.data() + at);
    if (magic != header_magic) continue;
    const u32 flags = load_raw<u32>(file.data() + at + 4), checksum = load_raw<u32>(file.data() + at + 8);
    if (magic + flags + checksum == 0) return at;
  }
  return std::nullopt;
}

struct Loaded {
  std::vector<Extent> taken;
  u64 entry;
};

Result<Loaded> load_by_addresses(const GuestRam& ram, std::span<const std::byte> file, std::size_t header) {
  const auto damaged = [](std::string what) {
    return fail("multiboot: " + std::move(what), "the file is damaged or incomplete; build it again");
  };
  if (file.size() - header < 32) return damaged("shorter than its header");
  auto word = [&](unsigned i) { return u64{load_raw<u32>(file.data() + header + i * 4)}; };
  const u64 header_addr = word(3), load_addr = word(4), load_end = word(5), bss_end = word(6),
            entry = word(7);
  if (load_addr > header_addr || header_addr - load_addr > header)
    return damaged("its header is not where it says");
  const u64 offset = header - (header_addr - load_addr);
  u64 length = file.size() - offset;
  if (load_end != 0) {
    if (load_end < load_addr) return damaged("its end lies before its start");
    length = load_end - load_addr;
    if (length > file.size() - offset) return damaged("it lies past the end of the file");
  }
  const u64 memory = std::max(length, bss_end > load_addr ? bss_end - load_addr : 0);
  ElfImage image;
  image.loads.push_back({offset, length, memory, load_addr, load_addr});
  Result<std::vector<Extent>> taken = load_elf_segments(ram, file, image);
  if (!taken) return std::unexpected(taken.error());
  return Loaded{std::move(*taken), entry};
}

Result<Loaded> load_elf(const GuestRam& ram, std::span<const std::byte> file) {
  const Result<ElfImage> image = parse_elf(file);
  if (!image) return std::unexpected(image.error());
  if (image->is_64)
    return fail("multiboot: the kernel is a 64-bit ELF file", "convert it: objcopy -O elf32-i386 IN OUT");
  Result<std::vector<Extent>> taken = load_elf_segments(ram, file, *image);
  if (!taken) return std::unexpected(taken.error());
  // The entry point is a virtual address; where that differs from the physical one, the segment says by how
  // much.
  u64 entry = image->entry;
  for (const ElfSegment& s : image->loads)
    if (image->entry >= s.virtual_address && image->entry - s.virtual_address < s.memory_size) {
      entry = s.physical + (image->entry - s.virtual_address);
      break;
    }
  return Loaded{std::move(*taken), entry};
}

} // namespace

bool has_multiboot_header(std::span<const std::byte> kernel) { return find_header(kernel).has_value(); }

Result<BootEntry> load_multiboot(const GuestRam& ram, const BootInput& input) {
  const std::optional<std::size_t> header = find_header(input.kernel);
  if (!header) return fail("multiboot: no valid header", "give --kernel a multiboot image");
  const u32 flags = load_raw<u32>(input.kernel.data() + *header + 4);
  if (flags & flag_unknown_required)
    return fail(
        fmt::format("multiboot: the kernel demands unknown features ({:#x})", flags & flag_unknown_required),
        "use a multiboot 1 kernel");
  Result<Loaded> loaded =
      (flags & flag_addresses) ? load_by_addresses(ram, input.kernel, *header) : load_elf(ram, input.kernel);
  if (!loaded) return std::unexpected(loaded.error());
  const auto inside = [&](const Extent& e) { return loaded->entry >= e.base && loaded->entry < e.end; };
  if (std::ranges::none_of(loaded->taken, inside))
    return fail("multiboot: the entry point is outside the kernel", "the file is damaged; build it again");

  u64 module_at = 0;
  if (!input.initrd.empty()) {
    u64 end = mib;
    for (const Extent& e : loaded->taken) end = std::max(end, e.end);
    module_at = (end + page_offset_mask) & ~page_offset_mask;
    if (module_at >= low_ram_limit || !ram.write(module_at, input.initrd))
      return fail("the initrd does not fit into the guest's memory behind the kernel",
                  "use a larger --memory");
    loaded->taken.push_back({module_at, module_at + input.initrd.size()});
  }

  std::string command_line = input.kernel_name;
  if (!input.command_line.empty()) command_line += ' ' + input.command_line;
  const std::vector<MemoryRange> map = ram.map();
  const u64 module_entry_at = info_size, map_at = module_entry_at + module_size,
            gdt_at = map_at + map.size() * map_entry_size, text_at = gdt_at + boot_gdt_size,
            module_text_at = text_at + command_line.size() + 1,
            loader_at = module_text_at + input.initrd_name.size() + 1,
            size = loader_at + loader_name.size() + 1;
  const std::optional<u64> block = place_parameters(ram, size, loaded->taken);
  if (!block) return fail("no room for the boot parameters", "use a larger --memory");
  auto at = [&](u64 offset) { return static_cast<u32>(*block + offset); };

  ByteWriter w;
  w.u32v(info_memory | info_command_line | info_map | info_loader | (module_at != 0 ? info_modules : 0));
  w.u32v(static_cast<u32>(ebda_base / kib));
  w.u32v(static_cast<u32>(ram.low_end() > mib ? (ram.low_end() - mib) / kib : 0));
  w.u32v(0xffffffff).u32v(at(text_at));
  w.u32v(module_at != 0 ? 1 : 0).u32v(module_at != 0 ? at(module_entry_at) : 0);
  w.zeros(16);
  w.u32v(static_cast<u32>(map.size() * map_entry_size)).u32v(at(map_at));
  w.zeros(12).u32v(at(loader_at)).zeros(info_size - 68);
  w.u32v(static_cast<u32>(module_at)).u32v(static_cast<u32>(module_at + input.initrd.size()));
  w.u32v(at(module_text_at)).u32v(0);
  for (const MemoryRange& r : map) {
    w.u32v(map_entry_size - 4)
        .u64v(r.base)
        .u64v(r.size)
        .u32v(static_cast<u32>(r.type)); // size does not count itself
  }
  w.append(boot_gdt()).text(command_line).u8v(0).text(input.initrd_name).u8v(0).text(loader_name).u8v(0);
  if (!ram.write(*block, w.bytes())) return fail("no room for the boot parameters", "use a larger --memory");

  BootEntry entry;
  entry.rip = loaded->entry;
  entry.rax = loader_magic;
  entry.rbx = *block;
  entry.gdt = *block + gdt_at;
  return entry;
}

} // namespace ring3::vmm
