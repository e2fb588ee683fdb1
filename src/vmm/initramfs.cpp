// SPDX-License-Identifier: Apache-2.0
#include "vmm/initramfs.h"

#include "vmm/guest_programs.h"

#include <fmt/format.h>
#include <sys/stat.h>

namespace ring3::vmm {
namespace {

constexpr std::string_view init_common = R"(#!/bin/busybox sh
export PATH=/bin HOME=/root
/bin/busybox mount -t devtmpfs dev /dev
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox --install -s /bin
)";

// The terminal of the command: data in both directions is passed as it is; only ^D and ^V mean something.
constexpr std::string_view init_command = R"(exec 3<>/dev/ttyS1 4<>/dev/ttyS2
stty raw -echo 115200 <&4
stty raw -echo 115200 crtscts icanon iexten erase undef kill undef werase undef rprnt undef \
  eol undef eol2 undef eof '^D' lnext '^V' <&3
printf 'ring3-ready\n' >&3
sh /ring3/command <&3 >&3 2>&4 3>&- 4>&-
code=$?
exec >&3 2>&4
/ring3/report-result $code
poweroff -f
)";

constexpr std::string_view init_shell = R"(setsid cttyhack sh
poweroff -f
)";

std::span<const std::byte> bytes_of(std::string_view text) { return std::as_bytes(std::span(text)); }

} // namespace

std::string shell_quote(std::string_view word) {
  std::string quoted = "'";
  for (char c : word) {
    if (c == '\'')
      quoted += R"('\'')";
    else
      quoted += c;
  }
  return quoted + '\'';
}

void CpioWriter::entry(std::string_view path, u32 mode, u32 links, std::span<const std::byte> content,
                       u32 major, u32 minor) {
  auto pad = [&] { bytes_.resize((bytes_.size() + 3) & ~std::size_t{3}); };
  const u32 inode = next_inode_++;
  const std::string header =
      fmt::format("070701{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}{:08X}",
                  inode, mode, 0, 0, links, 0, content.size(), 0, 0, major, minor, path.size() + 1, 0);
  for (const std::string_view part : {std::string_view(header), path, std::string_view("\0", 1)}) {
    const auto raw = bytes_of(part);
    bytes_.insert(bytes_.end(), raw.begin(), raw.end());
  }
  pad();
  bytes_.insert(bytes_.end(), content.begin(), content.end());
  pad();
}

void CpioWriter::directory(std::string_view path, u32 permissions) {
  entry(path, S_IFDIR | permissions, 2, {}, 0, 0);
}
void CpioWriter::file(std::string_view path, std::span<const std::byte> content, u32 permissions) {
  entry(path, S_IFREG | permissions, 1, content, 0, 0);
}
void CpioWriter::symlink(std::string_view path, std::string_view target) {
  entry(path, S_IFLNK | 0777, 1, bytes_of(target), 0, 0);
}
void CpioWriter::character_device(std::string_view path, u32 major, u32 minor, u32 permissions) {
  entry(path, S_IFCHR | permissions, 1, {}, major, minor);
}

std::vector<std::byte> CpioWriter::finish() {
  entry("TRAILER!!!", 0, 1, {}, 0, 0);
  return std::move(bytes_);
}

std::vector<std::byte> build_initramfs(const InitramfsConfig& config) {
  CpioWriter archive;
  for (const char* path : {"bin", "dev", "etc", "proc", "ring3", "root", "run", "sys", "var"})
    archive.directory(path);
  archive.directory("tmp", 01777);
  archive.character_device("dev/console", 5, 1, 0600); // wanted before /init can mount /dev
  archive.file("bin/busybox", config.busybox, 0755);
  archive.symlink("bin/sh", "busybox");
  archive.file("etc/passwd", bytes_of("root:x:0:0:root:/root:/bin/sh\n"), 0644);
  archive.file("etc/group", bytes_of("root:x:0:\n"), 0644);

  std::string init(init_common);
  if (config.command.empty()) {
    init += "export TERM=" + shell_quote(config.terminal) + '\n';
    if (config.rows != 0 && config.columns != 0)
      init += fmt::format("stty rows {} cols {} </dev/console\n", config.rows, config.columns);
    init += init_shell;
  } else {
    init += init_command;
    std::string line = "#!/bin/sh\n";
    for (const std::string& word : config.command) line += shell_quote(word) + ' ';
    line.back() = '\n';
    archive.file("ring3/command", bytes_of(line), 0755);
    archive.file("ring3/report-result", report_result_program(), 0755);
  }
  archive.file("init", bytes_of(init), 0755);
  return archive.finish();
}

} // namespace ring3::vmm
