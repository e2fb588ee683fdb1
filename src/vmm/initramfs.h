// SPDX-License-Identifier: Apache-2.0
// The initramfs that `ring3 run` makes on the fly: busybox, an /init of ours and the command to run, as an
// uncompressed "newc" cpio archive (Documentation/driver-api/early-userspace/buffer-format.rst).
#pragma once

#include "base/error.h"
#include "base/types.h"

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace ring3::vmm {

class CpioWriter {
 public:
  void directory(std::string_view path, u32 permissions = 0755);
  void file(std::string_view path, std::span<const std::byte> content, u32 permissions);
  void symlink(std::string_view path, std::string_view target);
  void character_device(std::string_view path, u32 major, u32 minor, u32 permissions);
  // Ends the archive.
  std::vector<std::byte> finish();

 private:
  void entry(std::string_view path, u32 mode, u32 links, std::span<const std::byte> content, u32 major,
             u32 minor);
  std::vector<std::byte> bytes_;
  u32 next_inode_ = 1;
};

struct InitramfsConfig {
  std::span<const std::byte> busybox; // a static ELF executable
  std::vector<std::string> command;   // empty: an interactive shell on the console
  std::string terminal = "vt220";     // TERM of the shell
  unsigned rows = 0, columns = 0;     // of the shell's terminal; 0: unknown
};

// What the guest prints on COM2 as soon as the terminal passes bytes unchanged. Everything before it is to be
// dropped.
constexpr std::string_view ready_marker = "ring3-ready\n";

// With a command: COM2 carries its standard input and output, COM3 its standard error, and its exit code is
// written to port 0x5f0. COM2 is a canonical terminal with echo and all translation off; the host marks end
// of file with ^D and protects ^D and ^V in the data with ^V (class InputEncoder).
std::vector<std::byte> build_initramfs(const InitramfsConfig& config);

// Quotes a word for the shell.
std::string shell_quote(std::string_view word);

} // namespace ring3::vmm
