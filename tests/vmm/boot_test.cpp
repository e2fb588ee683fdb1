// SPDX-License-Identifier: Apache-2.0
#include "vmm/boot.h"

#include "images.h"

#include <gtest/gtest.h>

namespace ring3::vmm {
namespace {

using namespace test;

GuestRam make_ram(u64 size = 64 * mib) { return GuestRam::create(size).value(); }

template <class T> T peek(const GuestRam& ram, u64 at) {
  const auto bytes = ram.at(at, sizeof(T));
  return bytes.empty() ? T{} : load_raw<T>(bytes.data());
}

std::string text(const GuestRam& ram, u64 at) {
  std::string s;
  while (!ram.at(at, 1).empty() && peek<char>(ram, at) != 0 && s.size() < 4096) s += peek<char>(ram, at++);
  return s;
}

BootInput input_for(const Image& kernel, const Image& initrd = {}) {
  BootInput input;
  input.kernel = kernel;
  input.initrd = initrd;
  input.command_line = "one two";
  input.kernel_name = "test.flat";
  input.initrd_name = "env";
  input.rsdp = acpi_base;
  return input;
}

TEST(GuestRam, SplitsAroundTheHole) {
  const GuestRam ram = make_ram(4 * gib);
  ASSERT_EQ(ram.segments().size(), 2u);
  EXPECT_EQ(ram.segments()[1].guest_base, high_ram_base);
  EXPECT_FALSE(ram.at(low_ram_limit - 1, 1).empty());
  EXPECT_TRUE(ram.at(low_ram_limit, 1).empty());
  EXPECT_TRUE(ram.at(low_ram_limit - 1, 2).empty());
  EXPECT_FALSE(ram.at(high_ram_base + gib - 1, 1).empty());
  EXPECT_TRUE(ram.at(high_ram_base + gib - 1, 2).empty());
  EXPECT_TRUE(ram.at(~u64{0}, 2).empty());
  EXPECT_TRUE(ram.at(0, ~u64{0}).empty());
}

TEST(GuestRam, RefusesAbsurdSizes) {
  EXPECT_FALSE(GuestRam::create(0));
  EXPECT_FALSE(GuestRam::create(max_memory + 1));
}

TEST(Sniff, TellsTheFormats) {
  EXPECT_EQ(sniff_kernel(bzimage()).value(), KernelFormat::bzimage);
  EXPECT_EQ(sniff_kernel(elf64(true)).value(), KernelFormat::pvh);
  EXPECT_EQ(sniff_kernel(multiboot_elf()).value(), KernelFormat::multiboot);
  EXPECT_EQ(sniff_kernel(multiboot_aout()).value(), KernelFormat::multiboot);
  EXPECT_FALSE(sniff_kernel({}));
  EXPECT_FALSE(sniff_kernel(Image(100)));
}

TEST(BzImage, LoadsKernelInitrdAndParameters) {
  const GuestRam ram = make_ram();
  const Image kernel = bzimage(), initrd(5000, std::byte{0x55});
  const Result<BootEntry> entry = load_kernel(ram, input_for(kernel, initrd));
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->mode, BootEntry::Mode::long64);
  EXPECT_EQ(entry->rip, 0x1000200u);
  EXPECT_EQ(peek<u8>(ram, 0x1000003), 21);
  const u64 zero_page = entry->rsi;
  EXPECT_EQ(peek<u32>(ram, zero_page + 0x202), 0x53726448u);
  EXPECT_EQ(peek<u8>(ram, zero_page + 0x210), 0xff);
  EXPECT_EQ(peek<u64>(ram, zero_page + 0x70), acpi_base);
  EXPECT_EQ(text(ram, peek<u32>(ram, zero_page + 0x228)), "one two");
  const u64 at = peek<u32>(ram, zero_page + 0x218);
  EXPECT_EQ(peek<u32>(ram, zero_page + 0x21c), 5000u);
  EXPECT_EQ(at % 4096, 0u);
  EXPECT_LE(at + 5000, ram.low_end());
  EXPECT_EQ(peek<u8>(ram, at + 4999), 0x55);
  EXPECT_EQ(peek<u8>(ram, zero_page + 0x1e8), ram.map().size());
  EXPECT_EQ(peek<u64>(ram, zero_page + 0x2d0 + 8), ebda_base);
  // 2 MiB pages, identity: walk for 0x1000200 by hand.
  const u64 pdpt = peek<u64>(ram, entry->page_tables) & ~u64{0xfff};
  const u64 directory = peek<u64>(ram, pdpt) & ~u64{0xfff};
  EXPECT_EQ(peek<u64>(ram, directory + 8 * 8), 0x1000083u);
}

TEST(BzImage, SaysWhatIsWrong) {
  const GuestRam ram = make_ram();
  Image old = bzimage();
  put<u16>(old, 0x206, 0x0203);
  EXPECT_FALSE(load_kernel(ram, input_for(old)));
  Image cut = bzimage();
  cut.resize(2000);
  EXPECT_NE(load_kernel(ram, input_for(cut)).error().message.find("2000"), std::string::npos);
  Image far = bzimage();
  put<u64>(far, 0x258, 0x8000000);
  EXPECT_NE(load_kernel(ram, input_for(far)).error().message.find("at least 129 MiB"), std::string::npos);
  const Image kernel = bzimage(), huge(60 * mib);
  EXPECT_FALSE(load_kernel(ram, input_for(kernel, huge)));
  BootInput long_line = input_for(kernel);
  long_line.command_line = std::string(3000, 'x');
  EXPECT_FALSE(load_kernel(ram, long_line));
}

TEST(Pvh, LoadsAndDescribes) {
  const GuestRam ram = make_ram();
  const Image kernel = elf64(true), initrd(100, std::byte{7});
  const Result<BootEntry> entry = load_kernel(ram, input_for(kernel, initrd));
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->rip, 0x200010u);
  const u64 info = entry->rbx;
  EXPECT_EQ(peek<u32>(ram, info), 0x336ec578u);
  EXPECT_EQ(peek<u32>(ram, info + 12), 1u);
  const u64 module = peek<u64>(ram, info + 16);
  EXPECT_EQ(peek<u64>(ram, module + 8), 100u);
  EXPECT_EQ(peek<u8>(ram, peek<u64>(ram, module)), 7);
  EXPECT_EQ(text(ram, peek<u64>(ram, info + 24)), "one two");
  EXPECT_EQ(peek<u64>(ram, info + 32), acpi_base);
  EXPECT_EQ(peek<u32>(ram, info + 48), ram.map().size());
}

TEST(Pvh, NeedsTheNote) { EXPECT_FALSE(load_kernel(make_ram(), input_for(elf64(false)))); }

TEST(Multiboot, LoadsElfWithModule) {
  const GuestRam ram = make_ram();
  const Image kernel = multiboot_elf(), initrd(100, std::byte{9});
  const Result<BootEntry> entry = load_kernel(ram, input_for(kernel, initrd));
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->rip, 0x400010u);
  EXPECT_EQ(entry->rax, 0x2badb002u);
  const u64 info = entry->rbx;
  EXPECT_EQ(text(ram, peek<u32>(ram, info + 16)), "test.flat one two");
  EXPECT_EQ(peek<u32>(ram, info + 8), 63 * 1024u);
  EXPECT_EQ(peek<u32>(ram, info + 20), 1u);
  const u64 module = peek<u32>(ram, info + 24);
  EXPECT_EQ(peek<u32>(ram, module), 0x402000u);
  EXPECT_EQ(peek<u32>(ram, module + 4), 0x402064u);
  EXPECT_EQ(text(ram, peek<u32>(ram, module + 8)), "env");
  EXPECT_EQ(peek<u32>(ram, info + 44), ram.map().size() * 24);
  EXPECT_EQ(text(ram, peek<u32>(ram, info + 64)), "ring3");
}

TEST(Multiboot, LoadsByAddresses) {
  const GuestRam ram = make_ram();
  const Image kernel = multiboot_aout();
  const Result<BootEntry> entry = load_kernel(ram, input_for(kernel));
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_EQ(entry->rip, 0x100080u);
  EXPECT_EQ(peek<u32>(ram, 0x100040), 0x1badb002u);
}

TEST(Multiboot, ParametersKeepClearOfLowKernels) {
  const GuestRam ram = make_ram();
  Image kernel = multiboot_elf();
  put<u32>(kernel, 52 + 12, 0x9e000); // p_paddr, right where the parameters would go
  put<u32>(kernel, 52 + 20, 0x1000);
  const Result<BootEntry> entry = load_kernel(ram, input_for(kernel));
  ASSERT_TRUE(entry) << entry.error().message;
  EXPECT_GE(entry->rbx, mib);
  put<u32>(kernel, 52 + 12, 0xf0000);
  EXPECT_FALSE(load_kernel(ram, input_for(kernel))); // over the firmware area
}

TEST(Loaders, SurviveTruncationAndNoise) {
  const GuestRam ram = make_ram(24 * mib);
  u32 seed = 42;
  auto random = [&] { return seed = seed * 1664525 + 1013904223, seed >> 8; };
  for (const Image& good : {bzimage(), elf64(true), multiboot_elf(), multiboot_aout()}) {
    for (std::size_t n = 0; n < good.size(); n += 1 + n / 16) {
      const Image cut(good.begin(), good.begin() + static_cast<std::ptrdiff_t>(n));
      (void)load_bzimage(ram, input_for(Image(cut).empty() ? good : cut));
      (void)load_kernel(ram, input_for(cut));
      (void)load_pvh(ram, input_for(cut));
      (void)load_multiboot(ram, input_for(cut));
    }
    for (int round = 0; round < 3000; ++round) {
      Image noisy = good;
      for (unsigned i = 0; i < 1 + random() % 8; ++i)
        noisy[random() % std::min<std::size_t>(noisy.size(), 0x320)] = static_cast<std::byte>(random());
      (void)load_kernel(ram, input_for(noisy));
    }
  }
}

} // namespace
} // namespace ring3::vmm
