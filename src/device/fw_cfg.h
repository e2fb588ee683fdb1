// SPDX-License-Identifier: Apache-2.0
// QEMU's firmware configuration device, the port interface (docs/specs/fw_cfg.rst of QEMU): a 16-bit selector
// at 0x510 and a byte stream at 0x511. Read-only, no DMA interface, no file directory beyond an empty one.
#pragma once

#include "device/device.h"

#include <map>
#include <mutex>
#include <string_view>
#include <vector>

namespace ring3::device {

class FwCfg final : public Device {
 public:
  static constexpr u64 base = 0x510, port_count = 2;
  enum Key : u16 {
    signature = 0x00,
    id = 0x01,
    uuid = 0x02,
    ram_size = 0x03,
    no_graphic = 0x04,
    nb_cpus = 0x05,
    machine_id = 0x06,
    kernel_cmdline = 0x09,
    numa = 0x0d,
    boot_menu = 0x0e,
    max_cpus = 0x0f,
    cmdline_size = 0x14,
    cmdline_data = 0x15,
    file_directory = 0x19,
    irq0_override = 0x8002,
  };

  FwCfg();
  void set(u16 key, std::vector<u8> bytes);
  void set_u16(u16 key, u16 value);
  void set_u32(u16 key, u32 value);
  void set_u64(u16 key, u64 value);
  void set_string(u16 key, std::string_view text); // with its terminating NUL

  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

 private:
  std::mutex mutex_;
  std::map<u16, std::vector<u8>> items_;
  u16 selected_ = 0;
  std::size_t position_ = 0;
};

} // namespace ring3::device
