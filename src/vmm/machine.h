// SPDX-License-Identifier: Apache-2.0
// The machine: memory, interrupt controllers, devices and vCPU threads around a kvm::VmApi. It knows no CPU
// implementation; whatever serves the API runs the guest.
//
// Threads: everything but the devices is called from one main thread. Each vCPU has a thread of its own from
// start() until stop(). The outcome is set once, by whichever thread sees the guest end first.
#pragma once

#include "base/error.h"
#include "device/acpi_pm.h"
#include "device/bus.h"
#include "device/fw_cfg.h"
#include "device/i8042.h"
#include "device/pc_testdev.h"
#include "device/platform_ports.h"
#include "device/rtc.h"
#include "device/serial.h"
#include "kvm/api.h"
#include "kvm/clock.h"
#include "vmm/boot.h"
#include "vmm/guest_ram.h"
#include "vmm/platform.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace ring3::vmm {

// How the guest ended.
struct Outcome {
  enum class Kind { power_off, reset, debug_exit, command_result, triple_fault, crash, internal_error };
  Kind kind = Kind::power_off;
  u32 value = 0;      // debug_exit: the value written; command_result: the exit code
  std::string detail; // crash and internal_error: one line
};

struct MachineConfig {
  u64 memory = 512 * mib;
  u32 cpus = 1;
  // The CPUID entries of one vCPU.
  std::function<std::vector<kvm_cpuid_entry2>(u32 index, u32 count)> cpuid;
  // One sink for each serial port the machine has, COM1 first; at most serial_ports.size().
  std::vector<device::Serial::Sink> serial_sinks;
  std::function<void(u8)> debug_console; // port 0xe9; empty: the port does not exist
  // Called on any thread when the main thread should look: the guest ended, a deadline moved, input has room.
  std::function<void()> wake;
};

class Machine {
 public:
  // The VM is fresh: nothing has been created in it. `vm` and `clock` outlive the machine.
  static Result<std::unique_ptr<Machine>> create(kvm::VmApi& vm, const kvm::Clock& clock,
                                                 MachineConfig config);
  ~Machine(); // the vCPU threads must have ended, see stop()
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  // Loads the kernel and the firmware tables and sets up the boot CPU. Before start(). Fills in input.rsdp.
  Result<void> load(BootInput input);
  Result<void> start();
  // Asks the vCPU threads to end; does not wait.
  void request_stop();
  // Ends the vCPU threads. False when one did not end in time: then only _exit() is left.
  [[nodiscard]] bool stop(std::chrono::milliseconds patience);

  std::optional<Outcome> outcome() const;

  // Serves the devices whose deadline has passed; returns the next deadline (nanoseconds of the clock), if
  // any.
  std::optional<u64> service_devices();

  device::Serial& serial(std::size_t index) { return *serials_[index]; }
  const GuestRam& ram() const { return ram_; }
  struct CpuStats {
    u64 instructions, exits;
    std::vector<std::string> executor; // what executes them says about itself
  };
  std::vector<CpuStats> stats() const;

 private:
  struct Cpu {
    u32 index = 0;
    kvm::VcpuApi* api = nullptr;
    std::atomic<u64> exits = 0;
    std::thread thread;
  };

  Machine(kvm::VmApi& vm, const kvm::Clock& clock, MachineConfig config, GuestRam ram);
  Result<void> create_vm();
  void make_devices();
  device::IrqLine line(u32 gsi);
  void run_cpu(Cpu& cpu);
  bool handle_exit(Cpu& cpu);
  void handle_io(kvm_run& page);
  void handle_mmio(kvm_run& page);
  void on_event(const device::MachineEvent& event);
  void finish(Outcome outcome);
  std::string location(Cpu& cpu);

  kvm::VmApi& vm_;
  const kvm::Clock& clock_;
  MachineConfig config_;
  GuestRam ram_;
  std::vector<std::unique_ptr<Cpu>> cpus_;

  device::Bus io_, mmio_;
  std::vector<std::unique_ptr<device::Serial>> serials_;
  std::vector<std::unique_ptr<device::Device>> others_;
  std::unique_ptr<device::Rtc> rtc_;
  std::unique_ptr<device::AcpiPm> acpi_pm_;
  std::unique_ptr<device::I8042> i8042_;
  device::FwCfg* fw_cfg_ = nullptr;

  std::atomic<bool> stopping_ = false;
  mutable std::mutex mutex_; // outcome_, running_
  std::condition_variable ended_;
  std::optional<Outcome> outcome_;
  u32 running_ = 0;
};

} // namespace ring3::vmm
