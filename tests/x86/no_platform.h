// SPDX-License-Identifier: Apache-2.0
// What surrounds a Cpu whose tests need neither devices nor time.
#pragma once

#include "x86/api/vm_settings.h"
#include "x86/cpu/cpu.h"

namespace ring3::x86::test {

class NoPlatform : public Platform {
 public:
  bool port_read(u16, u8, u32&) override { return false; }
  bool port_write(u16, u8, u32) override { return false; }
  bool mmio_read(GuestPhys, std::span<std::byte>) override { return false; }
  bool mmio_write(GuestPhys, std::span<const std::byte>) override { return false; }
  bool claims_page(GuestPhys) const override { return false; }
  u64 tsc() const override { return 0; }
  u8 cr8() const override { return 0; }
  void set_cr8(u8) override {}
  bool read_apic_msr(u32, u64&) override { return false; }
  bool write_apic_msr(u32, u64, bool) override { return false; }
  void tsc_changed() override {}
  u64 tsc_khz() const override { return 1000000; }
  u64 tsc_offset_for(u64 value) override { return value; }
  void pause() override {}
  bool has_pv_msr(u32) const override { return false; }
  bool read_pv_msr(u32, u64&) override { return false; }
  bool write_pv_msr(u32, u64) override { return false; }
  std::optional<s64> hypercall(u64, const std::array<u64, 4>&, bool) override { return 0; }
  std::optional<u32> put_off_access(GuestPhys, const std::byte*) override { return std::nullopt; }
  const VmSettings& settings() const override { return settings_; }
  void poll() override {}
  void code_page_found() override {}

 private:
  VmSettings settings_;
};

} // namespace ring3::x86::test
