// SPDX-License-Identifier: Apache-2.0
#include "vmm/guest_programs.h"

#include "vmm/byte_writer.h"

#include <array>
#include <elf.h>

namespace ring3::vmm {
namespace {

constexpr auto report_result_code = std::to_array<u8>({
    0x48, 0x8b, 0x74, 0x24, 0x10, // 00 mov rsi, [rsp+16]       ; argv[1]
    0x31, 0xdb,                   // 05 xor ebx, ebx            ; the code
    0x48, 0x85, 0xf6,             // 07 test rsi, rsi
    0x74, 0x15,                   // 0a je 21                   ; no argument: 0
    0x0f, 0xb6, 0x06,             // 0c movzx eax, byte [rsi]
    0x83, 0xe8, 0x30,             // 0f sub eax, '0'
    0x83, 0xf8, 0x09,             // 12 cmp eax, 9
    0x77, 0x0a,                   // 15 ja 21
    0x6b, 0xdb, 0x0a,             // 17 imul ebx, ebx, 10
    0x01, 0xc3,                   // 1a add ebx, eax
    0x48, 0xff, 0xc6,             // 1c inc rsi
    0xeb, 0xeb,                   // 1f jmp 0c
    0xbd, 0x02, 0x00, 0x00, 0x00, // 21 mov ebp, 2
    0x89, 0xef,                   // 26 mov edi, ebp            ; ioctl(fd, TCSBRK, 1), which is tcdrain
    0xbe, 0x09, 0x54, 0x00, 0x00, // 28 mov esi, 0x5409
    0xba, 0x01, 0x00, 0x00, 0x00, // 2d mov edx, 1
    0xb8, 0x10, 0x00, 0x00, 0x00, // 32 mov eax, 16
    0x0f, 0x05,                   // 37 syscall
    0xff, 0xcd,                   // 39 dec ebp
    0x75, 0xe9,                   // 3b jne 26
    0xbf, 0xf0, 0x05, 0x00, 0x00, // 3d mov edi, 0x5f0          ; ioperm(0x5f0, 1, 1)
    0xbe, 0x01, 0x00, 0x00, 0x00, // 42 mov esi, 1
    0xba, 0x01, 0x00, 0x00, 0x00, // 47 mov edx, 1
    0xb8, 0xad, 0x00, 0x00, 0x00, // 4c mov eax, 173
    0x0f, 0x05,                   // 51 syscall
    0x89, 0xd8,                   // 53 mov eax, ebx
    0xba, 0xf0, 0x05, 0x00, 0x00, // 55 mov edx, 0x5f0
    0xee,                         // 5a out dx, al
    0xbf, 0xad, 0xde, 0xe1, 0xfe, // 5b mov edi, 0xfee1dead     ; reboot(magic, magic, RB_POWER_OFF)
    0xbe, 0x69, 0x19, 0x12, 0x28, // 60 mov esi, 672274793
    0xba, 0xdc, 0xfe, 0x21, 0x43, // 65 mov edx, 0x4321fedc
    0xb8, 0xa9, 0x00, 0x00, 0x00, // 6a mov eax, 169
    0x0f, 0x05,                   // 6f syscall
    0x89, 0xdf,                   // 71 mov edi, ebx            ; exit(code)
    0xb8, 0x3c, 0x00, 0x00, 0x00, // 73 mov eax, 60
    0x0f, 0x05,                   // 78 syscall
});

} // namespace

std::vector<std::byte> report_result_program() {
  constexpr u64 base = 0x400000, code_at = sizeof(Elf64_Ehdr) + sizeof(Elf64_Phdr);
  constexpr u64 size = code_at + report_result_code.size();
  ByteWriter w;
  w.u32v(0x464c457f).u8v(ELFCLASS64).u8v(ELFDATA2LSB).u8v(EV_CURRENT).zeros(9);
  w.u16v(ET_EXEC)
      .u16v(EM_X86_64)
      .u32v(EV_CURRENT)
      .u64v(base + code_at)
      .u64v(sizeof(Elf64_Ehdr))
      .u64v(0)
      .u32v(0);
  w.u16v(sizeof(Elf64_Ehdr)).u16v(sizeof(Elf64_Phdr)).u16v(1).u16v(0).u16v(0).u16v(0);
  w.u32v(PT_LOAD).u32v(PF_R | PF_X).u64v(0).u64v(base).u64v(base).u64v(size).u64v(size).u64v(0x1000);
  w.append(std::as_bytes(std::span(report_result_code)));
  return w.take();
}

} // namespace ring3::vmm
