// SPDX-License-Identifier: Apache-2.0
// The machine's ACPI 6.4 tables: RSDP, RSDT, XSDT, FADT, FACS, MADT, DSDT, all below 1 MiB.
#pragma once

#include "base/error.h"
#include "base/types.h"
#include "vmm/platform.h"

#include <cstddef>
#include <span>
#include <vector>

namespace ring3::vmm {

struct AcpiConfig {
  u32 cpus = 1;
  std::span<const SerialPort> serial_ports; // described to the guest
};

struct AcpiTables {
  u64 base;                     // where the bytes belong in guest memory
  std::vector<std::byte> bytes; // starts with the RSDP
};

// Fails when the tables outgrow the firmware area (more than about 6,000 CPUs).
Result<AcpiTables> build_acpi(const AcpiConfig& config);

} // namespace ring3::vmm
