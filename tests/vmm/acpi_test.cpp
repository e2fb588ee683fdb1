// SPDX-License-Identifier: Apache-2.0
#include "vmm/acpi.h"

#include "base/bits.h"
#include "vmm/aml.h"
#include "vmm/guest_ram.h"

#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <string>

namespace ring3::vmm {
namespace {

struct Walk {
  explicit Walk(AcpiTables t) : tables(std::move(t)) {}
  template <class T> T peek(u64 at) const { return load_raw<T>(tables.bytes.data() + (at - tables.base)); }
  std::string text(u64 at, std::size_t n) const {
    return {reinterpret_cast<const char*>(tables.bytes.data() + (at - tables.base)), n};
  }
  unsigned sum(u64 at, std::size_t n) const {
    unsigned total = 0;
    for (std::size_t i = 0; i < n; ++i) total += peek<u8>(at + i);
    return total & 0xff;
  }
  AcpiTables tables;
};

void walk_all(u32 cpus) {
  const Walk w(build_acpi({cpus, serial_ports}).value());
  const u64 rsdp = w.tables.base;
  EXPECT_EQ(rsdp % 16, 0u);
  EXPECT_LE(rsdp + w.tables.bytes.size(), mib);
  EXPECT_EQ(w.text(rsdp, 8), "RSD PTR ");
  EXPECT_EQ(w.sum(rsdp, 20), 0u);
  EXPECT_EQ(w.sum(rsdp, 36), 0u);
  const u64 xsdt = w.peek<u64>(rsdp + 24), rsdt = w.peek<u32>(rsdp + 16);
  EXPECT_EQ(w.text(xsdt, 4), "XSDT");
  EXPECT_EQ(w.text(rsdt, 4), "RSDT");
  EXPECT_EQ(w.sum(xsdt, w.peek<u32>(xsdt + 4)), 0u);
  EXPECT_EQ(w.sum(rsdt, w.peek<u32>(rsdt + 4)), 0u);
  std::map<std::string, u64> found;
  const u64 count = (w.peek<u32>(xsdt + 4) - 36) / 8;
  for (u64 i = 0; i < count; ++i) {
    const u64 at = w.peek<u64>(xsdt + 36 + i * 8);
    EXPECT_EQ(at, w.peek<u32>(rsdt + 36 + i * 4));
    EXPECT_EQ(w.sum(at, w.peek<u32>(at + 4)), 0u);
    found[w.text(at, 4)] = at;
  }
  ASSERT_TRUE(found.contains("FACP") && found.contains("APIC"));
  const u64 fadt = found["FACP"];
  EXPECT_EQ(w.peek<u32>(fadt + 4), 276u);
  EXPECT_EQ(w.peek<u32>(fadt + 76), 0x608u);
  EXPECT_EQ(w.peek<u8>(fadt + 91), 4);
  EXPECT_EQ(w.peek<u8>(fadt + 108), 0x32);
  EXPECT_EQ(w.peek<u64>(fadt + 120), 0xcf9u);
  EXPECT_EQ(w.peek<u8>(fadt + 128), 6);
  EXPECT_EQ(w.peek<u64>(fadt + 152), 0x600u);
  EXPECT_EQ(w.peek<u64>(fadt + 176), 0x604u);
  EXPECT_EQ(w.peek<u64>(fadt + 212), 0x608u);
  const u64 facs = w.peek<u32>(fadt + 36), dsdt = w.peek<u32>(fadt + 40);
  EXPECT_EQ(facs % 64, 0u);
  EXPECT_EQ(w.text(facs, 4), "FACS");
  EXPECT_EQ(w.peek<u32>(facs + 4), 64u);
  EXPECT_EQ(w.peek<u64>(fadt + 140), dsdt);
  EXPECT_EQ(w.text(dsdt, 4), "DSDT");
  EXPECT_EQ(w.sum(dsdt, w.peek<u32>(dsdt + 4)), 0u);

  const u64 madt = found["APIC"], end = madt + w.peek<u32>(madt + 4);
  u32 local = 0, io = 0;
  for (u64 at = madt + 44; at < end; at += w.peek<u8>(at + 1)) {
    ASSERT_GE(w.peek<u8>(at + 1), 6);
    const u8 type = w.peek<u8>(at);
    if (type == 0) {
      EXPECT_EQ(w.peek<u8>(at + 3), local);
      ++local;
    }
    if (type == 9) {
      EXPECT_EQ(w.peek<u32>(at + 4), local);
      ++local;
    }
    io += type == 1;
  }
  EXPECT_EQ(local, cpus);
  EXPECT_EQ(io, 1u);
}

TEST(Acpi, TablesOfOneCpu) { walk_all(1); }
TEST(Acpi, TablesOfManyCpus) {
  walk_all(255);
  walk_all(256);
  walk_all(1024);
}
TEST(Acpi, TooManyCpusIsAnError) { EXPECT_FALSE(build_acpi({100000, serial_ports})); }

std::string hex(const aml::Bytes& bytes) {
  std::string s;
  for (std::byte b : bytes) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", std::to_integer<unsigned>(b));
    s += two;
  }
  return s;
}

TEST(Aml, Encodings) {
  EXPECT_EQ(hex(aml::integer(0)), "00");
  EXPECT_EQ(hex(aml::integer(1)), "01");
  EXPECT_EQ(hex(aml::integer(5)), "0a05");
  EXPECT_EQ(hex(aml::integer(0x1234)), "0b3412");
  EXPECT_EQ(hex(aml::integer(0x12345678)), "0c78563412");
  EXPECT_EQ(hex(aml::eisa_id("PNP0501")), "0c41d00501");
  EXPECT_EQ(hex(aml::name("\\_S5", aml::package({aml::integer(5), aml::integer(5), aml::integer(0)}))),
            "085c5f53355f1207030a050a0500");
  EXPECT_EQ(hex(aml::resource_template({aml::io_ports(0x3f8, 8), aml::irq(4)})),
            "11100a0d4701f803f8030108221000"
            "7900");
  // The length of 0x40 bytes and more takes two bytes.
  const aml::Bytes big = aml::scope("A", aml::Bytes(100));
  EXPECT_EQ(hex(aml::Bytes(big.begin(), big.begin() + 3)), "104a06");
}

} // namespace
} // namespace ring3::vmm
