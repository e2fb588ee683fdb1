// SPDX-License-Identifier: Apache-2.0
#include "vmm/acpi.h"

#include "device/acpi_pm.h"
#include "device/platform_ports.h"
#include "vmm/aml.h"
#include "vmm/byte_writer.h"
#include "vmm/guest_ram.h"

#include <algorithm>
#include <array>
#include <string>

namespace ring3::vmm {
namespace {

constexpr std::size_t header_size = 36;
constexpr u32 first_x2apic_id = 255; // the 8-bit id 255 means everyone

u8 checksum(std::span<const std::byte> bytes) {
  unsigned sum = 0;
  for (std::byte b : bytes) sum += std::to_integer<unsigned>(b);
  return static_cast<u8>(0x100 - (sum & 0xff));
}

std::vector<std::byte> table(std::string_view signature, u8 revision, std::span<const std::byte> body) {
  ByteWriter w;
  w.text(signature).u32v(static_cast<u32>(header_size + body.size())).u8v(revision).u8v(0);
  w.padded("RING3", 6).padded("RING3VM", 8).u32v(1).padded("RNG3", 4).u32v(1);
  w.append(body);
  w.patch(9, checksum(w.bytes()), 1);
  return w.take();
}

std::vector<std::byte> dsdt(const AcpiConfig& config) {
  using namespace aml;
  Bytes devices;
  u32 uid = 1;
  for (const SerialPort& port : config.serial_ports) {
    const std::string device_name = "COM" + std::to_string(uid);
    const Bytes d =
        device(device_name, join({name("_HID", eisa_id("PNP0501")), name("_UID", integer(uid)),
                                  name("_CRS", resource_template({io_ports(port.base, 8), irq(port.gsi)}))}));
    devices.insert(devices.end(), d.begin(), d.end());
    ++uid;
  }
  const Bytes rtc =
      device("RTC", join({name("_HID", eisa_id("PNP0B00")),
                          name("_CRS", resource_template({io_ports(rtc_port, 2), irq(rtc_gsi)}))}));
  devices.insert(devices.end(), rtc.begin(), rtc.end());
  const Bytes s5 = integer(device::AcpiPm::s5_sleep_type);
  const Bytes body =
      join({name("\\_S5", package({s5, s5, integer(0), integer(0)})), scope("\\_SB", devices)});
  return table("DSDT", 2, body);
}

std::vector<std::byte> madt(const AcpiConfig& config) {
  ByteWriter w;
  w.u32v(static_cast<u32>(local_apic_address)).u32v(1); // PC-AT compatible: the PIC pair exists, too
  for (u32 id = 0; id < config.cpus; ++id) {
    if (id < first_x2apic_id)
      w.u8v(0).u8v(8).u8v(static_cast<u8>(id)).u8v(static_cast<u8>(id)).u32v(1);
    else
      w.u8v(9).u8v(16).u16v(0).u32v(id).u32v(1).u32v(id);
  }
  w.u8v(1).u8v(12).u8v(0).u8v(0).u32v(static_cast<u32>(io_apic_address)).u32v(0); // I/O APIC 0, GSIs from 0
  // GSI n is IOAPIC pin n in KVM's default routing, the PIT's 0 included, so only the SCI needs an override.
  w.u8v(2).u8v(10).u8v(0).u8v(sci_gsi).u32v(sci_gsi).u16v(0x000d); // level-triggered, active high
  w.u8v(4).u8v(6).u8v(0xff).u16v(0).u8v(1);                        // NMI at LINT1 of all CPUs
  if (config.cpus > first_x2apic_id) w.u8v(10).u8v(12).u16v(0).u32v(0xffffffff).u8v(1).zeros(3);
  return table("APIC", 5, w.bytes());
}

std::vector<std::byte> facs() {
  ByteWriter w;
  w.text("FACS").u32v(64).zeros(24).u8v(2).zeros(31); // version 2; the global lock is free
  return w.take();
}

void port_address(ByteWriter& w, u64 port, u8 bits, u8 access) { // Generic Address Structure, system I/O
  w.u8v(1).u8v(bits).u8v(0).u8v(access).u64v(port);
}

std::vector<std::byte> fadt(u64 facs_at, u64 dsdt_at) {
  using device::AcpiPm;
  constexpr u32 event = acpi_pm_port + AcpiPm::event_offset, control = acpi_pm_port + AcpiPm::control_offset,
                timer = acpi_pm_port + AcpiPm::timer_offset;
  ByteWriter w;
  w.u32v(static_cast<u32>(facs_at)).u32v(static_cast<u32>(dsdt_at)).u8v(0).u8v(0);
  w.u16v(sci_gsi).u32v(0).zeros(4); // no SMI command port: ACPI mode is always on
  w.u32v(event).u32v(0).u32v(control).u32v(0).u32v(0).u32v(timer).u32v(0).u32v(0);
  w.u8v(4).u8v(2).u8v(0).u8v(4).zeros(4); // block lengths: PM1 event, control, PM2, timer; GPE and C states
  w.u16v(0xffff).u16v(0xffff);            // no C2, no C3
  w.zeros(8);                             // flush size and stride, duty cycle, RTC alarm's day and month
  w.u8v(0x32).u16v(0x0005).u8v(0);        // century register; legacy devices but no VGA and no 8042 keyboard
  constexpr u32 flags = 1 << 0 | 1 << 2 | // WBINVD and HLT work
                        1 << 4 | 1 << 5 | 1 << 6 | // no fixed power or sleep button, no RTC wake event
                        1 << 8 | 1 << 10 |         // 32-bit timer, reset register
                        1 << 12;                   // headless
  w.u32v(flags);
  port_address(w, device::PciConfigPorts::reset_port, 8, 1);
  w.u8v(device::PciConfigPorts::reset_value).u16v(0).u8v(4); // minor version 6.4
  w.u64v(0).u64v(dsdt_at);                                   // the FACS is given by its 32-bit field
  port_address(w, event, 32, 2);
  w.zeros(12);
  port_address(w, control, 16, 2);
  w.zeros(24);
  port_address(w, timer, 32, 3);
  w.zeros(24 + 24 + 8); // GPE blocks, sleep registers, hypervisor vendor
  return table("FACP", 6, w.bytes());
}

} // namespace

Result<AcpiTables> build_acpi(const AcpiConfig& config) {
  constexpr std::size_t rsdp_size = 36, alignment = 64;
  ByteWriter area;
  area.zeros(rsdp_size);
  auto place = [&](std::span<const std::byte> bytes) {
    area.align(alignment);
    const u64 at = acpi_base + area.size();
    area.append(bytes);
    return at;
  };
  const u64 facs_at = place(facs());
  const u64 dsdt_at = place(dsdt(config));
  const std::array roots = {place(fadt(facs_at, dsdt_at)), place(madt(config))};
  ByteWriter narrow, wide;
  for (u64 at : roots) {
    narrow.u32v(static_cast<u32>(at));
    wide.u64v(at);
  }
  const u64 rsdt_at = place(table("RSDT", 1, narrow.bytes()));
  const u64 xsdt_at = place(table("XSDT", 1, wide.bytes()));
  if (area.size() > mib - acpi_base)
    return fail("the ACPI tables do not fit for so many CPUs", "use fewer --cpus");

  ByteWriter rsdp;
  rsdp.text("RSD PTR ").u8v(0).padded("RING3", 6).u8v(2).u32v(static_cast<u32>(rsdt_at)).u32v(rsdp_size);
  rsdp.u64v(xsdt_at).u8v(0).zeros(3);
  rsdp.patch(8, checksum(std::span(rsdp.bytes()).first(20)), 1); // the part that ACPI 1.0 knew
  rsdp.patch(32, checksum(rsdp.bytes()), 1);
  AcpiTables tables{acpi_base, area.take()};
  std::ranges::copy(rsdp.bytes(), tables.bytes.begin());
  return tables;
}

} // namespace ring3::vmm
