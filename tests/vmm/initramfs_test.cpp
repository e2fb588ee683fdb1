// SPDX-License-Identifier: Apache-2.0
#include "vmm/initramfs.h"

#include "vmm/guest_programs.h"
#include "vmm/host_files.h"
#include "vmm/input_encoder.h"
#include "vmm/session.h"

#include <gtest/gtest.h>
#include <map>
#include <sys/stat.h>

namespace ring3::vmm {
namespace {

struct Entry {
  u32 mode;
  std::string content;
  u32 major, minor;
};

// Strict reader of the newc format.
std::map<std::string, Entry> unpack(const std::vector<std::byte>& archive) {
  const std::string_view all(reinterpret_cast<const char*>(archive.data()), archive.size());
  std::map<std::string, Entry> entries;
  std::size_t at = 0;
  auto align = [](std::size_t n) { return (n + 3) & ~std::size_t{3}; };
  while (true) {
    EXPECT_EQ(all.substr(at, 6), "070701");
    auto field = [&](unsigned i) {
      return static_cast<u32>(std::stoul(std::string(all.substr(at + 6 + i * 8, 8)), nullptr, 16));
    };
    const u32 size = field(6), name_size = field(11);
    const std::string name(all.substr(at + 110, name_size - 1));
    EXPECT_EQ(all[at + 110 + name_size - 1], '\0');
    const std::size_t data = align(at + 110 + name_size);
    if (name == "TRAILER!!!") {
      EXPECT_EQ(data, all.size());
      return entries;
    }
    entries[name] = {field(1), std::string(all.substr(data, size)), field(9), field(10)};
    at = align(data + size);
  }
}

TEST(Initramfs, HoldsWhatTheCommandNeeds) {
  const std::vector<std::byte> busybox(12345, std::byte{1});
  const auto entries = unpack(build_initramfs({.busybox = busybox, .command = {"echo", "it's", ""}}));
  EXPECT_EQ(entries.at("bin/busybox").content.size(), 12345u);
  EXPECT_EQ(entries.at("bin/busybox").mode, S_IFREG | 0755u);
  EXPECT_EQ(entries.at("bin/sh").mode, S_IFLNK | 0777u);
  EXPECT_EQ(entries.at("bin/sh").content, "busybox");
  EXPECT_EQ(entries.at("dev/console").major, 5u);
  EXPECT_EQ(entries.at("dev/console").minor, 1u);
  EXPECT_EQ(entries.at("init").mode, S_IFREG | 0755u);
  EXPECT_EQ(entries.at("ring3/command").content, "#!/bin/sh\n'echo' 'it'\\''s' ''\n");
  EXPECT_TRUE(is_static_executable(report_result_program()));
}

TEST(Initramfs, ShellHasNoCommand) {
  const auto entries = unpack(build_initramfs({.busybox = {}, .command = {}, .rows = 24, .columns = 80}));
  EXPECT_FALSE(entries.contains("ring3/command"));
  EXPECT_NE(entries.at("init").content.find("stty rows 24 cols 80"), std::string::npos);
  EXPECT_NE(entries.at("init").content.find("cttyhack"), std::string::npos);
}

std::string encode(std::string_view text, bool end = false) {
  InputEncoder encoder;
  std::vector<u8> out;
  encoder.encode({reinterpret_cast<const u8*>(text.data()), text.size()}, out);
  if (end) encoder.end(out);
  return {out.begin(), out.end()};
}

TEST(InputEncoder, ProtectsSpecialCharacters) {
  EXPECT_EQ(encode("plain\n"), "plain\n");
  EXPECT_EQ(encode("\x04\x16"), "\x16\x04\x16\x16");
}

TEST(InputEncoder, HandsLongLinesOn) {
  const std::string out = encode(std::string(5000, 'x'));
  std::size_t run = 0;
  for (char c : out) {
    run = c == '\x04' ? 0 : run + 1;
    EXPECT_LT(run, 2000u);
  }
}

TEST(InputEncoder, EndInMidLineTakesOneMore) {
  EXPECT_EQ(encode("a\n", true), "a\n" + std::string(16, '\x04'));
  EXPECT_EQ(encode("a", true), "a" + std::string(17, '\x04'));
}

TEST(ReadyFilter, DropsUpToTheMarker) {
  ReadyFilter filter;
  std::string out;
  for (char c : std::string("noise rring3-ring3-ready\nhello\nring3-ready\n"))
    if (filter.pass(static_cast<u8>(c))) out += c;
  EXPECT_TRUE(filter.ready());
  EXPECT_EQ(out, "hello\nring3-ready\n");
}

TEST(ConsoleEscape, LeavesAndSendsItself) {
  ConsoleEscape escape;
  std::vector<u8> out;
  const auto feed = [&](std::string_view s) {
    return escape.filter({reinterpret_cast<const u8*>(s.data()), s.size()}, out);
  };
  EXPECT_FALSE(feed("ab\x01"));
  EXPECT_FALSE(feed("\x01x"));
  EXPECT_EQ(std::string(out.begin(), out.end()), "ab\x01x");
  EXPECT_TRUE(feed("\x01x"));
}

} // namespace
} // namespace ring3::vmm
