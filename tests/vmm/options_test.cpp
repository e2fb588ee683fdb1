// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"
#include "vmm/guest_ram.h"
#include "vmm/host_files.h"
#include "vmm/parse_options.h"

#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

TEST(Options, MemorySizes) {
  EXPECT_EQ(parse_memory("512M").value(), 512 * mib);
  EXPECT_EQ(parse_memory("4g").value(), 4 * gib);
  EXPECT_EQ(parse_memory("2048K").value(), 2 * mib);
  EXPECT_EQ(parse_memory("1T").value(), 1024 * gib);
  EXPECT_EQ(parse_memory("1GiB").value(), gib);
  EXPECT_EQ(parse_memory("256").value(), 256 * mib);
  EXPECT_EQ(parse_memory("1048576").value(), mib);
  for (const char* bad : {"", "0", "1K", "1P", "-1", "abc", "12Q", "1.5G", "99999999999999999999",
                          "18446744073709551615", "16777216T", "1MM", " 1M", "65T"}) {
    const auto r = parse_memory(bad);
    ASSERT_FALSE(r) << bad;
    EXPECT_EQ(r.error().exit_code, 2);
    EXPECT_FALSE(r.error().fix.empty());
    EXPECT_EQ(r.error().message.find('\n'), std::string::npos);
  }
}

TEST(Options, Cpus) {
  EXPECT_EQ(parse_cpus("1").value(), 1u);
  EXPECT_EQ(parse_cpus("1024").value(), 1024u);
  for (const char* bad : {"", "0", "1025", "abc", "2x", "-1", "4294967297"}) {
    ASSERT_FALSE(parse_cpus(bad)) << bad;
    EXPECT_EQ(parse_cpus(bad).error().exit_code, 2);
  }
}

int cli(std::vector<std::string> arguments) { return cli_main(arguments); }

TEST(Cli, UsageErrorsExitWithTwo) {
  EXPECT_EQ(cli({"run", "--nonsense"}), 2);
  EXPECT_EQ(cli({}), 2);
  EXPECT_EQ(cli({"run", "--"}), 2);
  EXPECT_EQ(cli({"run", "--memory", "0"}), 2);
  EXPECT_EQ(cli({"run", "--cpus", "1025"}), 2);
  EXPECT_EQ(cli({"features", "--", "x"}), 2);
}

TEST(Cli, HelpAndVersion) {
  EXPECT_EQ(cli({"--help"}), 0);
  EXPECT_EQ(cli({"--version"}), 0);
  EXPECT_EQ(cli({"run", "--help"}), 0);
}

TEST(Cli, BadKernelFiles) {
  EXPECT_EQ(cli({"run", "--kernel", "/nonexistent"}), 1);
  EXPECT_EQ(cli({"run", "--kernel", "/"}), 1);
  EXPECT_EQ(cli({"run", "--kernel", "/dev/zero"}), 1);
  EXPECT_EQ(cli({"run", "--kernel", "/dev/null"}), 1);
}

TEST(HostFiles, PicksTheNewestKernelByVersion) {
  const auto folder = std::filesystem::temp_directory_path() / ("ring3-test-" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  EXPECT_EQ(newest_kernel_in(folder), "");
  for (const char* name :
       {"vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-56-amd64", "vmlinuz-6.1.0-10-amd64", "config-9"})
    std::ofstream(folder / name) << "x";
  std::filesystem::create_directory(folder / "vmlinuz-7.0");
  EXPECT_EQ(newest_kernel_in(folder), (folder / "vmlinuz-6.1.0-56-amd64").string());
  EXPECT_EQ(newest_kernel_in("/nonexistent"), "");
  std::filesystem::remove_all(folder);
}

} // namespace
} // namespace ring3::vmm
