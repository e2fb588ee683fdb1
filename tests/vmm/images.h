// SPDX-License-Identifier: Apache-2.0
// Small kernel images made by the tests.
#pragma once

#include "base/bits.h"
#include "vmm/byte_writer.h"

#include <cstring>
#include <elf.h>
#include <vector>

namespace ring3::vmm::test {

using Image = std::vector<std::byte>;

template <class T> void put(Image& image, std::size_t at, T value) { store_raw(image.data() + at, value); }

inline Image bzimage() {
  Image image(1024 + 4096);
  put<u8>(image, 0x1f1, 1);
  put<u32>(image, 0x1f4, 4096 / 16);
  put<u16>(image, 0x1fe, 0xaa55);
  put<u16>(image, 0x200, 0x6aeb);
  put<u32>(image, 0x202, 0x53726448);
  put<u16>(image, 0x206, 0x020f);
  put<u8>(image, 0x211, 1);
  put<u32>(image, 0x22c, 0x7fffffff);
  put<u8>(image, 0x234, 1);
  put<u16>(image, 0x236, 1);
  put<u32>(image, 0x238, 2047);
  put<u64>(image, 0x258, 0x1000000);
  put<u32>(image, 0x260, 0x100000);
  for (std::size_t i = 0; i < 4096; ++i) image[1024 + i] = static_cast<std::byte>(i * 7);
  return image;
}

// One segment of 64 bytes at 2 MiB with 4 KiB of memory, and a note when `pvh`.
inline Image elf64(bool pvh) {
  Image image(0x1000);
  Elf64_Ehdr h{};
  std::memcpy(h.e_ident, ELFMAG, SELFMAG);
  h.e_ident[EI_CLASS] = ELFCLASS64;
  h.e_ident[EI_DATA] = ELFDATA2LSB;
  h.e_type = ET_EXEC;
  h.e_machine = EM_X86_64;
  h.e_entry = 0xffffffff80200000;
  h.e_phoff = sizeof h;
  h.e_phentsize = sizeof(Elf64_Phdr);
  h.e_phnum = pvh ? 2 : 1;
  put(image, 0, h);
  Elf64_Phdr load{};
  load.p_type = PT_LOAD;
  load.p_offset = 0x200;
  load.p_paddr = 0x200000;
  load.p_filesz = 64;
  load.p_memsz = 0x1000;
  put(image, sizeof h, load);
  Elf64_Phdr note{};
  note.p_type = PT_NOTE;
  note.p_offset = 0x300;
  note.p_filesz = 24;
  note.p_align = 4;
  put(image, sizeof h + sizeof load, note);
  put<u32>(image, 0x300, 4);
  put<u32>(image, 0x304, 8);
  put<u32>(image, 0x308, 18);
  std::memcpy(image.data() + 0x30c, "Xen", 4);
  put<u64>(image, 0x310, 0x200010);
  for (std::size_t i = 0; i < 64; ++i) image[0x200 + i] = std::byte{0xf4};
  return image;
}

inline void put_multiboot_header(Image& image, std::size_t at, u32 flags) {
  put<u32>(image, at, 0x1badb002);
  put<u32>(image, at + 4, flags);
  put<u32>(image, at + 8, 0 - (0x1badb002 + flags));
}

inline Image multiboot_elf() {
  Image image(0x1000);
  Elf32_Ehdr h{};
  std::memcpy(h.e_ident, ELFMAG, SELFMAG);
  h.e_ident[EI_CLASS] = ELFCLASS32;
  h.e_ident[EI_DATA] = ELFDATA2LSB;
  h.e_type = ET_EXEC;
  h.e_machine = EM_386;
  h.e_entry = 0x400010;
  h.e_phoff = sizeof h;
  h.e_phentsize = sizeof(Elf32_Phdr);
  h.e_phnum = 1;
  put(image, 0, h);
  Elf32_Phdr load{};
  load.p_type = PT_LOAD;
  load.p_offset = 0x200;
  load.p_vaddr = load.p_paddr = 0x400000;
  load.p_filesz = 0x100;
  load.p_memsz = 0x2000;
  put(image, sizeof h, load);
  put_multiboot_header(image, 0x200, 0);
  return image;
}

inline Image multiboot_aout() {
  Image image(0x1000);
  put_multiboot_header(image, 0x40, 0x10003);
  put<u32>(image, 0x4c, 0x100040); // header_addr
  put<u32>(image, 0x50, 0x100000); // load_addr
  put<u32>(image, 0x54, 0);        // load_end: the whole file
  put<u32>(image, 0x58, 0x103000); // bss_end
  put<u32>(image, 0x5c, 0x100080); // entry
  return image;
}

} // namespace ring3::vmm::test
