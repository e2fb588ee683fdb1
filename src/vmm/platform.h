// SPDX-License-Identifier: Apache-2.0
// Where the machine's devices are: ports, interrupt lines and addresses, in one place for the machine that
// makes them and the tables that describe them.
#pragma once

#include "base/types.h"

#include <array>

namespace ring3::vmm {

struct SerialPort {
  u16 base;
  u32 gsi;
};
// COM1 is the console. COM2 and COM3 exist for `-- CMD`: standard input and output, and standard error.
// COM3's line is its own, because an edge-triggered line cannot be shared.
constexpr std::array<SerialPort, 3> serial_ports = {{{0x3f8, 4}, {0x2f8, 3}, {0x3e8, 10}}};

constexpr u16 rtc_port = 0x70;
constexpr u32 rtc_gsi = 8;
constexpr u16 i8042_data_port = 0x60, i8042_command_port = 0x64, system_control_port = 0x92;
constexpr u16 post_port = 0x80;
constexpr u16 acpi_pm_port = 0x600;
constexpr u32 sci_gsi = 9;
constexpr u64 io_apic_address = 0xfec00000, local_apic_address = 0xfee00000;

} // namespace ring3::vmm
