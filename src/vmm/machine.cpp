// SPDX-License-Identifier: Apache-2.0
#include "vmm/machine.h"

#include "vmm/acpi.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fmt/format.h>
#include <sys/prctl.h>
#include <system_error>
#include <utility>

namespace ring3::vmm {
namespace {

Result<void> check(int rc, std::string_view what) {
  if (rc >= 0) return {};
  return fail(fmt::format("{}: {}", what, std::strerror(-rc)),
              "this is a fault in ring3 or a lack of host memory; try fewer --cpus or a smaller --memory");
}

} // namespace

Machine::Machine(kvm::VmApi& vm, const kvm::Clock& clock, MachineConfig config, GuestRam ram)
    : vm_(vm), clock_(clock), config_(std::move(config)), ram_(std::move(ram)) {}

Machine::~Machine() {
  for (const auto& cpu : cpus_)
    if (cpu->thread.joinable()) cpu->thread.join();
}

Result<std::unique_ptr<Machine>> Machine::create(kvm::VmApi& vm, const kvm::Clock& clock,
                                                 MachineConfig config) {
  Result<GuestRam> ram = GuestRam::create(config.memory);
  if (!ram) return std::unexpected(ram.error());
  std::unique_ptr<Machine> machine(new Machine(vm, clock, std::move(config), std::move(*ram)));
  machine->make_devices();
  if (const Result<void> made = machine->create_vm(); !made) return std::unexpected(made.error());
  return machine;
}

Result<void> Machine::create_vm() {
  u32 slot = 0;
  for (const GuestRam::Segment& segment : ram_.segments()) {
    kvm_userspace_memory_region region{};
    region.slot = slot++;
    region.guest_phys_addr = segment.guest_base;
    region.memory_size = segment.host.size();
    region.userspace_addr = reinterpret_cast<std::uintptr_t>(segment.host.data());
    if (const int rc = vm_.set_user_memory_region(region); rc < 0)
      return fail(
          fmt::format("cannot give the guest {} MiB of memory: {}", ram_.size() / mib, std::strerror(-rc)),
          "use a smaller --memory", 2);
  }
  vm_.keep_memory_private(); // no device here writes it
  if (auto r = check(vm_.create_irqchip(), "cannot create the interrupt controllers"); !r) return r;
  kvm_pit_config pit{};
  pit.flags = KVM_PIT_SPEAKER_DUMMY; // port 0x61 belongs to the PIT
  if (auto r = check(vm_.create_pit(pit), "cannot create the timer"); !r) return r;
  for (u32 i = 0; i < config_.cpus; ++i) {
    auto cpu = std::make_unique<Cpu>();
    cpu->index = i;
    if (auto r = check(vm_.create_vcpu(i, cpu->api), fmt::format("cannot create CPU {}", i)); !r) return r;
    const std::vector<kvm_cpuid_entry2> entries = config_.cpuid(i, config_.cpus);
    if (auto r = check(cpu->api->set_cpuid(entries), fmt::format("cannot set up CPU {}", i)); !r) return r;
    // As AMD's firmware leaves it: the TSC counts at the P0 frequency. Kernels do not trust it otherwise.
    constexpr u32 hwcr = 0xc0010015;
    const kvm_msr_entry tsc_is_p0{.index = hwcr, .reserved = 0, .data = u64{1} << 24};
    cpu->api->set_msrs({&tsc_is_p0, 1});
    cpus_.push_back(std::move(cpu));
  }
  return {};
}

device::IrqLine Machine::line(u32 gsi) {
  return [this, gsi](bool level) { vm_.irq_line(gsi, level); };
}

void Machine::make_devices() {
  using namespace device;
  const EventSink events = [this](const MachineEvent& e) { on_event(e); };
  const WakeFn wake = config_.wake;
  auto keep = [this](auto owned) {
    auto& reference = *owned;
    others_.push_back(std::move(owned));
    return &reference;
  };
  // Constant addresses that do not overlap: a failure here is a mistake in this function.
  bool fine = true;
  for (std::size_t i = 0; i < std::min(config_.serial_sinks.size(), serial_ports.size()); ++i) {
    serials_.push_back(std::make_unique<Serial>(line(serial_ports[i].gsi), config_.serial_sinks[i], wake));
    fine &= io_.add(serial_ports[i].base, Serial::port_count, *serials_.back());
  }
  rtc_ = std::make_unique<Rtc>(clock_, line(rtc_gsi), wake,
                               CmosContents{ram_.low_end(), ram_.high_size(), config_.cpus});
  fine &= io_.add(rtc_port, Rtc::port_count, *rtc_);
  i8042_ = std::make_unique<I8042>(events);
  fine &= io_.add(i8042_data_port, 1, i8042_->data_port());
  fine &= io_.add(i8042_command_port, 1, i8042_->command_port());
  fine &= io_.add(system_control_port, 1, *keep(std::make_unique<SystemControlPortA>(events)));
  acpi_pm_ = std::make_unique<AcpiPm>(clock_, line(sci_gsi), wake, events);
  fine &= io_.add(acpi_pm_port, AcpiPm::port_count, *acpi_pm_, 4);
  fine &= io_.add(PciConfigPorts::base, PciConfigPorts::port_count,
                  *keep(std::make_unique<PciConfigPorts>(events)), 4);
  fine &= io_.add(debug_exit_port, 4,
                  *keep(std::make_unique<EventPort>(MachineEvent::Kind::debug_exit, events)), 4);
  fine &= io_.add(command_result_port, 1,
                  *keep(std::make_unique<EventPort>(MachineEvent::Kind::command_result, events)));
  fine &= io_.add(post_port, 1, *keep(std::make_unique<CharacterPort>([](u8) {})));
  if (config_.debug_console)
    fine &= io_.add(debug_console_port, 1, *keep(std::make_unique<CharacterPort>(config_.debug_console)));
  fw_cfg_ = keep(std::make_unique<FwCfg>());
  fw_cfg_->set_u64(FwCfg::ram_size, ram_.size());
  fw_cfg_->set_u16(FwCfg::nb_cpus, static_cast<u16>(config_.cpus));
  fw_cfg_->set_u16(FwCfg::max_cpus, static_cast<u16>(config_.cpus));
  fine &= io_.add(FwCfg::base, FwCfg::port_count, *fw_cfg_, 2);
  fine &= io_.add(TestIoPorts::base, TestIoPorts::port_count, *keep(std::make_unique<TestIoPorts>()), 4);
  auto set_line = [this](u32 gsi, bool level) { vm_.irq_line(gsi, level); };
  fine &= io_.add(TestIrqLines::base, TestIrqLines::port_count,
                  *keep(std::make_unique<TestIrqLines>(set_line)), 4);
  fine &= mmio_.add(TestIoMemory::base, TestIoMemory::length, *keep(std::make_unique<TestIoMemory>()), 8);
  if (!fine) std::abort();
}

Result<void> Machine::load(BootInput input) {
  const Result<AcpiTables> acpi = build_acpi({config_.cpus, std::span(serial_ports).first(serials_.size())});
  if (!acpi) return std::unexpected(acpi.error());
  input.rsdp = acpi->base;
  fw_cfg_->set_string(device::FwCfg::cmdline_data, input.command_line);
  fw_cfg_->set_u32(device::FwCfg::cmdline_size, static_cast<u32>(input.command_line.size() + 1));
  const Result<BootEntry> entry = load_kernel(ram_, input);
  if (!entry) return std::unexpected(entry.error());
  if (!ram_.write(acpi->base, acpi->bytes))
    return fail("no room for the ACPI tables", "use a larger --memory");
  return check(enter(*entry, *cpus_.front()->api), "cannot set up the boot CPU");
}

Result<void> Machine::start() {
  for (const auto& cpu : cpus_) {
    try {
      {
        std::lock_guard lock(mutex_);
        ++running_;
      }
      cpu->thread = std::thread([this, c = cpu.get()] { run_cpu(*c); });
    } catch (const std::system_error& e) {
      std::lock_guard lock(mutex_);
      --running_;
      return fail(fmt::format("cannot start a thread for CPU {}: {}", cpu->index, e.code().message()),
                  "use fewer --cpus, or raise the limit on processes (ulimit -u)");
    }
  }
  return {};
}

void Machine::request_stop() {
  stopping_ = true;
  for (const auto& cpu : cpus_) cpu->api->kick();
}

bool Machine::stop(std::chrono::milliseconds patience) {
  request_stop();
  std::unique_lock lock(mutex_);
  if (!ended_.wait_for(lock, patience, [this] { return running_ == 0; })) return false;
  lock.unlock();
  for (const auto& cpu : cpus_)
    if (cpu->thread.joinable()) cpu->thread.join();
  return true;
}

std::optional<Outcome> Machine::outcome() const {
  std::lock_guard lock(mutex_);
  return outcome_;
}

void Machine::finish(Outcome outcome) {
  {
    std::lock_guard lock(mutex_);
    if (!outcome_) outcome_ = std::move(outcome);
  }
  stopping_ = true;
  if (config_.wake) config_.wake();
}

void Machine::on_event(const device::MachineEvent& event) {
  using Kind = device::MachineEvent::Kind;
  switch (event.kind) {
  case Kind::power_off: return finish({Outcome::Kind::power_off, 0, {}});
  case Kind::reset: return finish({Outcome::Kind::reset, 0, {}});
  case Kind::debug_exit: return finish({Outcome::Kind::debug_exit, event.value, {}});
  case Kind::command_result: return finish({Outcome::Kind::command_result, event.value & 0xff, {}});
  }
}

std::optional<u64> Machine::service_devices() {
  const std::array<device::TimedDevice*, 2> timed = {rtc_.get(), acpi_pm_.get()};
  std::optional<u64> next;
  for (device::TimedDevice* d : timed) {
    std::optional<u64> deadline = d->next_deadline_ns();
    if (deadline && *deadline <= clock_.now_ns()) {
      d->service();
      deadline = d->next_deadline_ns();
    }
    if (deadline && (!next || *deadline < *next)) next = deadline;
  }
  return next;
}

std::vector<Machine::CpuStats> Machine::stats() const {
  std::vector<CpuStats> all;
  for (const auto& cpu : cpus_)
    all.push_back({cpu->api->instructions(), cpu->exits, cpu->api->executor_stats()});
  return all;
}

void Machine::run_cpu(Cpu& cpu) {
  // A halted CPU waits for its timer: the usual 50 microseconds of leeway would come on top of each wait.
  prctl(PR_SET_TIMERSLACK, 1);
  while (!stopping_) {
    const int rc = cpu.api->run();
    if (rc == -EINTR || rc == -EAGAIN) continue;
    if (rc < 0) {
      finish({Outcome::Kind::internal_error, 0,
              fmt::format("CPU {} cannot run: {}", cpu.index, std::strerror(-rc))});
      break;
    }
    cpu.exits.fetch_add(1, std::memory_order_relaxed);
    if (!handle_exit(cpu)) break;
  }
  // Notified with the lock held: once running_ is seen to be 0, the machine may go.
  std::lock_guard lock(mutex_);
  --running_;
  ended_.notify_all();
}

std::string Machine::location(Cpu& cpu) {
  kvm_regs regs{};
  if (cpu.api->get_regs(regs) < 0) return fmt::format("CPU {}", cpu.index);
  return fmt::format("CPU {} at rip {:#x}", cpu.index, static_cast<u64>(regs.rip));
}

// True: go on.
bool Machine::handle_exit(Cpu& cpu) {
  kvm_run& page = cpu.api->run_page();
  auto internal = [&](std::string what) {
    finish({Outcome::Kind::internal_error, 0, fmt::format("{}: {}", location(cpu), what)});
    return false;
  };
  switch (page.exit_reason) {
  case KVM_EXIT_IO: handle_io(page); return true;
  case KVM_EXIT_MMIO: handle_mmio(page); return true;
  case KVM_EXIT_INTR:
  case KVM_EXIT_IRQ_WINDOW_OPEN: return true;
  case KVM_EXIT_SHUTDOWN: finish({Outcome::Kind::triple_fault, 0, location(cpu)}); return false;
  case KVM_EXIT_SYSTEM_EVENT:
    switch (page.system_event.type) {
    case KVM_SYSTEM_EVENT_SHUTDOWN: finish({Outcome::Kind::power_off, 0, {}}); return false;
    case KVM_SYSTEM_EVENT_RESET: finish({Outcome::Kind::reset, 0, {}}); return false;
    default: finish({Outcome::Kind::crash, 0, location(cpu)}); return false;
    }
  case KVM_EXIT_HLT: return internal("halted outside the interrupt controllers' reach");
  case KVM_EXIT_INTERNAL_ERROR: return internal(fmt::format("internal error {}", +page.internal.suberror));
  case KVM_EXIT_FAIL_ENTRY:
    return internal(fmt::format("cannot enter the guest (reason {:#x})",
                                static_cast<u64>(page.fail_entry.hardware_entry_failure_reason)));
  default: return internal(fmt::format("unexpected exit {}", +page.exit_reason));
  }
}

void Machine::handle_io(kvm_run& page) {
  const unsigned size = page.io.size;
  u8* data = reinterpret_cast<u8*>(&page) + page.io.data_offset;
  for (u32 i = 0; i < page.io.count; ++i, data += size) {
    if (page.io.direction == KVM_EXIT_IO_OUT)
      io_.write(page.io.port, {data, size});
    else
      io_.read(page.io.port, {data, size});
  }
}

void Machine::handle_mmio(kvm_run& page) {
  const std::size_t size = std::min<std::size_t>(page.mmio.len, sizeof page.mmio.data);
  if (page.mmio.is_write)
    mmio_.write(page.mmio.phys_addr, {page.mmio.data, size});
  else
    mmio_.read(page.mmio.phys_addr, {page.mmio.data, size});
}

} // namespace ring3::vmm
