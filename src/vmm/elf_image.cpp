// SPDX-License-Identifier: Apache-2.0
#include "vmm/elf_image.h"

#include "base/bits.h"

#include <cstring>
#include <elf.h>
#include <fmt/format.h>

namespace ring3::vmm {
namespace {

constexpr std::string_view rebuild = "the file is damaged or incomplete; fetch or build it again";

std::unexpected<Error> damaged(std::string what) {
  return fail("ELF kernel: " + std::move(what), std::string(rebuild));
}

bool inside(u64 offset, u64 length, u64 total) { return offset <= total && length <= total - offset; }

void parse_notes(std::span<const std::byte> area, u64 alignment, std::vector<ElfNote>& out) {
  // Notes pad to 4 bytes, or to 8 where the segment says so; a malformed one ends the list.
  const u64 mask = alignment == 8 ? 7 : 3;
  u64 at = 0;
  while (inside(at, 12, area.size())) {
    const u32 name_size = load_raw<u32>(area.data() + at);
    const u32 size = load_raw<u32>(area.data() + at + 4);
    const u32 type = load_raw<u32>(area.data() + at + 8);
    const u64 name_at = at + 12;
    const u64 data_at = (name_at + name_size + mask) & ~mask;
    if (!inside(name_at, name_size, area.size()) || !inside(data_at, size, area.size())) return;
    std::string_view name(reinterpret_cast<const char*>(area.data() + name_at), name_size);
    if (!name.empty() && name.back() == '\0') name.remove_suffix(1);
    out.push_back({name, type, area.subspan(data_at, size)});
    at = (data_at + size + mask) & ~mask;
  }
}

template <class Header, class Program> Result<ElfImage> parse(std::span<const std::byte> file, bool is_64) {
  if (file.size() < sizeof(Header)) return damaged("shorter than its header");
  const auto header = load_raw<Header>(file.data());
  if (header.e_machine != (is_64 ? EM_X86_64 : EM_386))
    return fail(fmt::format("ELF kernel: made for another machine (e_machine {})", header.e_machine),
                "use a kernel built for x86");
  if (header.e_type != ET_EXEC && header.e_type != ET_DYN)
    return fail("ELF kernel: not an executable file", "give --kernel a linked kernel image");
  if (header.e_phnum == 0) return damaged("no program headers");
  if (header.e_phentsize != sizeof(Program)) return damaged("program headers of an unknown size");
  if (!inside(header.e_phoff, u64{header.e_phnum} * sizeof(Program), file.size()))
    return damaged("its program headers lie past the end of the file");
  ElfImage image;
  image.is_64 = is_64;
  image.entry = header.e_entry;
  for (unsigned i = 0; i < header.e_phnum; ++i) {
    const auto p = load_raw<Program>(file.data() + header.e_phoff + i * sizeof(Program));
    if (p.p_type != PT_LOAD && p.p_type != PT_NOTE) continue;
    if (!inside(p.p_offset, p.p_filesz, file.size()))
      return damaged(fmt::format("segment {} lies past the end of the file", i));
    if (p.p_type == PT_NOTE) {
      parse_notes(file.subspan(p.p_offset, p.p_filesz), p.p_align, image.notes);
      continue;
    }
    if (p.p_memsz < p.p_filesz)
      return damaged(fmt::format("segment {} is larger in the file than in memory", i));
    if (p.p_memsz != 0) image.loads.push_back({p.p_offset, p.p_filesz, p.p_memsz, p.p_paddr, p.p_vaddr});
  }
  if (image.loads.empty()) return damaged("nothing to load");
  return image;
}

} // namespace

bool is_elf(std::span<const std::byte> file) {
  return file.size() >= SELFMAG && std::memcmp(file.data(), ELFMAG, SELFMAG) == 0;
}

Result<ElfImage> parse_elf(std::span<const std::byte> file) {
  if (!is_elf(file) || file.size() < EI_NIDENT) return damaged("shorter than its header");
  const auto ident = [&](int i) { return std::to_integer<unsigned>(file[static_cast<std::size_t>(i)]); };
  if (ident(EI_DATA) != ELFDATA2LSB) return fail("ELF kernel: big-endian", "use a kernel built for x86");
  if (ident(EI_CLASS) == ELFCLASS64) return parse<Elf64_Ehdr, Elf64_Phdr>(file, true);
  if (ident(EI_CLASS) == ELFCLASS32) return parse<Elf32_Ehdr, Elf32_Phdr>(file, false);
  return damaged("neither 32 nor 64 bits");
}

Result<std::vector<Extent>> load_elf_segments(const GuestRam& ram, std::span<const std::byte> file,
                                              const ElfImage& image) {
  std::vector<Extent> taken;
  for (const ElfSegment& s : image.loads) {
    const std::span<std::byte> target =
        s.physical < low_ram_limit ? ram.at(s.physical, s.memory_size) : std::span<std::byte>{};
    if (target.empty())
      return fail(
          fmt::format("the kernel needs memory at {:#x} to {:#x}, but the guest's low memory ends at {:#x}",
                      s.physical, s.physical + s.memory_size, ram.low_end()),
          "use a larger --memory");
    const u64 end = s.physical + s.memory_size;
    if (s.physical < mib && end > legacy_hole)
      return fail(fmt::format("the kernel wants to be loaded over the firmware area at {:#x}", s.physical),
                  "link it to 1 MiB or above");
    std::memcpy(target.data(), file.data() + s.offset, s.file_size);
    std::memset(target.data() + s.file_size, 0, s.memory_size - s.file_size);
    taken.push_back({s.physical, end});
  }
  return taken;
}

} // namespace ring3::vmm
