// SPDX-License-Identifier: Apache-2.0
// Reads the program headers and notes of a 32- or 64-bit little-endian x86 ELF file, and loads its segments
// by physical address. Nothing of the file is trusted.
#pragma once

#include "base/error.h"
#include "vmm/boot.h"

#include <optional>
#include <span>
#include <string_view>
#include <vector>

namespace ring3::vmm {

bool is_elf(std::span<const std::byte> file);

struct ElfSegment {
  u64 offset, file_size, memory_size, physical, virtual_address;
};

struct ElfNote {
  std::string_view name; // without its NUL
  u32 type;
  std::span<const std::byte> description;
};

struct ElfImage {
  bool is_64 = false;
  u64 entry = 0;
  std::vector<ElfSegment> loads;
  std::vector<ElfNote> notes;
};

// Refuses foreign machines, headers and segments that reach past the end of the file.
Result<ElfImage> parse_elf(std::span<const std::byte> file);

// Copies and zero-fills the segments; refuses what is outside low RAM or in the legacy hole. Returns what is
// taken.
Result<std::vector<Extent>> load_elf_segments(const GuestRam& ram, std::span<const std::byte> file,
                                              const ElfImage& image);

} // namespace ring3::vmm
