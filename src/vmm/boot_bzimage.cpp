// SPDX-License-Identifier: Apache-2.0
// Linux's own format: a real-mode setup part that is not run here, then the kernel, entered at its 64-bit
// entry point.
#include "vmm/boot.h"

#include "base/address.h"
#include "base/bits.h"
#include "vmm/byte_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <fmt/format.h>

namespace ring3::vmm {
namespace {

// Offsets in the setup header, which is also part of the boot parameters ("zero page").
constexpr u64 setup_sects = 0x1f1, syssize = 0x1f4, boot_flag = 0x1fe, jump_end = 0x201, magic = 0x202,
              version = 0x206, loader_type = 0x210, load_flags = 0x211, code32_start = 0x214,
              ramdisk_image = 0x218, ramdisk_size = 0x21c, heap_end = 0x224, cmd_line_ptr = 0x228,
              initrd_addr_max = 0x22c, kernel_alignment = 0x230, relocatable = 0x234, xload_flags = 0x236,
              cmdline_size = 0x238, setup_data = 0x250, pref_address = 0x258, init_size = 0x260,
              header_min_end = 0x264;
// Offsets in the boot parameters.
constexpr u64 acpi_rsdp_addr = 0x070, e820_entries = 0x1e8, setup_header = 0x1f1, e820_table = 0x2d0,
              zero_page_size = 0x1000;
constexpr std::size_t e820_max = 128;
constexpr u32 header_magic = 0x53726448; // "HdrS"
constexpr u16 lowest_version = 0x020c;   // 2.12, Linux 3.8: the first with the 64-bit entry point
constexpr u16 xlf_kernel_64 = 1;
constexpr u64 entry_64_offset = 0x200;
constexpr u64 page_table_pages = 6; // PML4, PDPT, four page directories of 2 MiB pages: 4 GiB

template <class T> T get(std::span<const std::byte> file, u64 offset) {
  return load_raw<T>(file.data() + offset);
}

std::unexpected<Error> damaged(std::string what) {
  return fail("bzImage: " + std::move(what), "the file is damaged or incomplete; fetch it again");
}

void write_page_tables(std::byte* tables, u64 base) {
  constexpr u64 present_write = 3, large = 0x80;
  std::memset(tables, 0, page_table_pages * page_size);
  store_raw<u64>(tables, (base + page_size) | present_write);
  for (u64 directory = 0; directory < 4; ++directory) {
    std::byte* entry = tables + page_size + directory * 8;
    store_raw<u64>(entry, (base + (2 + directory) * page_size) | present_write);
    for (u64 i = 0; i < 512; ++i) {
      const u64 address = (directory * 512 + i) * 2 * mib;
      store_raw<u64>(tables + (2 + directory) * page_size + i * 8, address | present_write | large);
    }
  }
}

struct Header {
  u64 payload_offset, payload_size;
  u64 load_address, memory_size; // where the kernel runs and how much it needs from there
  u64 highest_initrd;
  u64 longest_command_line;
};

Result<Header> parse_header(std::span<const std::byte> file) {
  if (file.size() < header_min_end) return damaged("shorter than its setup header");
  if (get<u32>(file, magic) != header_magic || get<u16>(file, boot_flag) != 0xaa55)
    return damaged("its setup header is not valid");
  const u16 protocol = get<u16>(file, version);
  if (protocol < lowest_version || !(get<u16>(file, xload_flags) & xlf_kernel_64))
    return fail(fmt::format("bzImage: boot protocol {}.{} without a 64-bit entry point", protocol >> 8,
                            protocol & 255),
                "use a 64-bit kernel, Linux 3.8 or later");
  Header h{};
  u64 sectors = get<u8>(file, setup_sects);
  if (sectors == 0) sectors = 4;
  h.payload_offset = (sectors + 1) * 512;
  h.payload_size = u64{get<u32>(file, syssize)} * 16;
  if (h.payload_size <= entry_64_offset) return damaged("it holds no kernel");
  // syssize counts in paragraphs, so the last one may be partly outside the file.
  if (h.payload_offset >= file.size() || file.size() - h.payload_offset + 15 < h.payload_size)
    return damaged(
        fmt::format("it should have {} bytes and has {}", h.payload_offset + h.payload_size, file.size()));
  h.payload_size = std::min<u64>(h.payload_size, file.size() - h.payload_offset);
  h.load_address = get<u64>(file, pref_address);
  h.memory_size = std::max<u64>(get<u32>(file, init_size), h.payload_size);
  h.highest_initrd = u64{get<u32>(file, initrd_addr_max)} + 1;
  h.longest_command_line = get<u32>(file, cmdline_size);
  if (h.load_address < mib || h.load_address > low_ram_limit || (h.load_address & page_offset_mask) != 0)
    return damaged(fmt::format("its load address {:#x} makes no sense", h.load_address));
  return h;
}

} // namespace

Result<BootEntry> load_bzimage(const GuestRam& ram, const BootInput& input) {
  const Result<Header> parsed = parse_header(input.kernel);
  if (!parsed) return std::unexpected(parsed.error());
  const Header& h = *parsed;

  const u64 kernel_end = h.load_address + h.memory_size;
  if (h.load_address >= ram.low_end() || kernel_end > ram.low_end())
    return fail(fmt::format("this kernel needs at least {} MiB of memory to start, the guest has {}",
                            (kernel_end + mib - 1) / mib, ram.low_end() / mib),
                "use a larger --memory");
  if (input.command_line.size() > h.longest_command_line)
    return fail(fmt::format("the kernel command line has {} bytes, this kernel takes {}",
                            input.command_line.size(), h.longest_command_line),
                "shorten --append", 2);

  u64 initrd_at = 0;
  if (!input.initrd.empty()) {
    const u64 top = std::min(ram.low_end(), h.highest_initrd);
    const u64 floor = (kernel_end + page_offset_mask) & ~page_offset_mask;
    if (top < floor || input.initrd.size() > top - floor)
      return fail(fmt::format("the initrd of {} MiB does not fit into the guest's memory beside the kernel",
                              (input.initrd.size() + mib - 1) / mib),
                  "use a larger --memory");
    initrd_at = (top - input.initrd.size()) & ~page_offset_mask;
    if (initrd_at < floor)
      return fail("the initrd does not fit into the guest's memory", "use a larger --memory");
  }

  // Boot parameters, one block: zero page, page tables, GDT, command line.
  constexpr u64 tables_offset = zero_page_size, gdt_offset = tables_offset + page_table_pages * page_size,
                text_offset = gdt_offset + boot_gdt_size;
  const u64 block_size = text_offset + input.command_line.size() + 1;
  const std::array taken = {Extent{h.load_address, kernel_end}};
  const std::optional<u64> block = place_parameters(ram, block_size, taken);
  if (!block || *block + block_size > ram.low_end() ||
      (initrd_at != 0 && *block >= mib && *block + block_size > initrd_at))
    return fail("no room for the boot parameters", "use a larger --memory");
  const std::span<std::byte> area = ram.at(*block, block_size);
  if (area.empty()) return fail("no room for the boot parameters", "use a larger --memory");
  std::memset(area.data(), 0, area.size());

  std::byte* zero_page = area.data();
  auto put = [&](u64 offset, auto value) { store_raw(zero_page + offset, value); };
  // The header's own length is encoded in the jump instruction at its start.
  const u64 header_end = std::min<u64>(magic + get<u8>(input.kernel, jump_end), input.kernel.size());
  if (header_end < header_min_end) return damaged("its setup header is too short");
  std::memcpy(zero_page + setup_header, input.kernel.data() + setup_header, header_end - setup_header);
  put(loader_type, u8{0xff});
  put(load_flags, static_cast<u8>(get<u8>(input.kernel, load_flags) | 1)); // loaded high
  put(heap_end, u16{0});
  put(code32_start, static_cast<u32>(h.load_address));
  put(setup_data, u64{0});
  put(cmd_line_ptr, static_cast<u32>(*block + text_offset));
  put(ramdisk_image, static_cast<u32>(initrd_at));
  put(ramdisk_size, static_cast<u32>(input.initrd.size()));
  put(acpi_rsdp_addr, input.rsdp);
  const std::vector<MemoryRange> map = ram.map();
  const std::size_t count = std::min(map.size(), e820_max);
  put(e820_entries, static_cast<u8>(count));
  for (std::size_t i = 0; i < count; ++i) {
    put(e820_table + i * 20, map[i].base);
    put(e820_table + i * 20 + 8, map[i].size);
    put(e820_table + i * 20 + 16, static_cast<u32>(map[i].type));
  }
  write_page_tables(area.data() + tables_offset, *block + tables_offset);
  const std::vector<std::byte> gdt = boot_gdt();
  std::memcpy(area.data() + gdt_offset, gdt.data(), gdt.size());
  std::memcpy(area.data() + text_offset, input.command_line.data(), input.command_line.size());

  if (!ram.write(h.load_address, input.kernel.subspan(h.payload_offset, h.payload_size)) ||
      (initrd_at != 0 && !ram.write(initrd_at, input.initrd)))
    return fail("the kernel does not fit into the guest's memory", "use a larger --memory");

  BootEntry entry;
  entry.mode = BootEntry::Mode::long64;
  entry.rip = h.load_address + entry_64_offset;
  entry.rsi = *block;
  entry.gdt = *block + gdt_offset;
  entry.page_tables = *block + tables_offset;
  return entry;
}

} // namespace ring3::vmm
