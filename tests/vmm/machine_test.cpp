// SPDX-License-Identifier: Apache-2.0
// The machine around a scripted CPU: each exit that a real one could make, and how the machine ends.
#include "vmm/machine.h"

#include "images.h"

#include <cstring>
#include <gtest/gtest.h>
#include <queue>

namespace ring3::vmm {
namespace {

using namespace std::chrono_literals;

class MockVcpu final : public kvm::VcpuApi {
 public:
  using Step = std::function<int(MockVcpu&)>;
  explicit MockVcpu(std::vector<Step> script) : script_(std::move(script)) {}

  // Plays the script, then halts until kicked.
  int run() override {
    if (next_ < script_.size()) return script_[next_++](*this);
    std::unique_lock lock(mutex_);
    kicked_changed_.wait(lock, [this] { return kicked_; });
    kicked_ = false;
    return -EINTR;
  }
  kvm_run& run_page() override { return *reinterpret_cast<kvm_run*>(page_.data()); }
  void kick() override {
    std::lock_guard lock(mutex_);
    kicked_ = true;
    kicked_changed_.notify_all();
  }
  int get_regs(kvm_regs& out) override { return out = regs, 0; }
  int set_regs(const kvm_regs& in) override { return regs = in, 0; }
  int get_sregs(kvm_sregs& out) override { return out = sregs, 0; }
  int set_sregs(const kvm_sregs& in) override { return sregs = in, 0; }
  int set_cpuid(std::span<const kvm_cpuid_entry2>) override { return 0; }
  int get_mp_state(kvm_mp_state&) override { return 0; }
  int set_mp_state(const kvm_mp_state&) override { return 0; }
  int get_msrs(std::span<kvm_msr_entry>) override { return 0; }
  int set_msrs(std::span<const kvm_msr_entry>) override { return 0; }
  int interrupt(u32) override { return 0; }
  int nmi() override { return 0; }
  u64 instructions() const override { return next_; }
  std::vector<std::string> executor_stats() const override { return {}; }

  u8* io_data() { return page_.data() + data_offset; }
  static constexpr u64 data_offset = 4096;
  kvm_regs regs{};
  kvm_sregs sregs{};

 private:
  alignas(64) std::array<u8, 8192> page_{};
  std::vector<Step> script_;
  std::size_t next_ = 0;
  std::mutex mutex_;
  std::condition_variable kicked_changed_;
  bool kicked_ = false;
};

MockVcpu::Step io(bool out, u16 port, u8 size, u64 value, u32 count = 1) {
  return [=](MockVcpu& cpu) {
    kvm_run& page = cpu.run_page();
    page.exit_reason = KVM_EXIT_IO;
    page.io.direction = out ? KVM_EXIT_IO_OUT : KVM_EXIT_IO_IN;
    page.io.port = port;
    page.io.size = size;
    page.io.count = count;
    page.io.data_offset = MockVcpu::data_offset;
    for (u32 i = 0; i < count; ++i) std::memcpy(cpu.io_data() + i * size, &value, size);
    return 0;
  };
}
MockVcpu::Step exit_with(u32 reason) {
  return [=](MockVcpu& cpu) {
    cpu.run_page().exit_reason = reason;
    return 0;
  };
}

class MockVm final : public kvm::VmApi {
 public:
  explicit MockVm(std::vector<std::vector<MockVcpu::Step>> scripts) : scripts_(std::move(scripts)) {}
  void keep_memory_private() override {}
  int set_user_memory_region(const kvm_userspace_memory_region& r) override {
    return regions.push_back(r), 0;
  }
  int create_irqchip() override { return 0; }
  int create_pit(const kvm_pit_config&) override { return 0; }
  int irq_line(u32, bool) override { return 0; }
  int signal_msi(const kvm_msi&) override { return 0; }
  int create_vcpu(u32 id, kvm::VcpuApi*& out) override {
    if (id == fail_at) return -ENOMEM;
    cpus.push_back(
        std::make_unique<MockVcpu>(id < scripts_.size() ? scripts_[id] : std::vector<MockVcpu::Step>{}));
    out = cpus.back().get();
    return 0;
  }
  int get_dirty_log(u32, std::span<u64>) override { return 0; }

  std::vector<kvm_userspace_memory_region> regions;
  std::vector<std::unique_ptr<MockVcpu>> cpus;
  u32 fail_at = ~0u;

 private:
  std::vector<std::vector<MockVcpu::Step>> scripts_;
};

struct MachineTest : testing::Test {
  MachineConfig config(u32 cpus = 1) {
    return {.memory = 8 * mib,
            .cpus = cpus,
            .cpuid = [](u32, u32) { return std::vector<kvm_cpuid_entry2>{}; },
            .serial_sinks = {[this](u8 b) { sent += static_cast<char>(b); }},
            .debug_console = {},
            .wake = {}};
  }
  Outcome run(std::vector<MockVcpu::Step> script, u32 cpus = 1) {
    MockVm vm({std::move(script)});
    auto machine = Machine::create(vm, clock, config(cpus));
    EXPECT_TRUE(machine);
    EXPECT_TRUE((*machine)->start());
    for (int i = 0; i < 5000 && !(*machine)->outcome(); ++i) std::this_thread::sleep_for(1ms);
    EXPECT_TRUE((*machine)->outcome());
    const Outcome outcome = (*machine)->outcome().value_or(Outcome{});
    EXPECT_TRUE((*machine)->stop(5s));
    return outcome;
  }
  kvm::HostClock clock;
  std::string sent;
};

TEST_F(MachineTest, SerialOutputAndStringIo) {
  const Outcome o = run({io(true, 0x3f8, 1, 'a'), io(true, 0x3f8, 1, 'b', 3), io(true, 0xf4, 4, 3)});
  EXPECT_EQ(o.kind, Outcome::Kind::debug_exit);
  EXPECT_EQ(o.value, 3u);
  EXPECT_EQ(sent, "abbb");
}

TEST_F(MachineTest, EveryWayToEnd) {
  using Kind = Outcome::Kind;
  EXPECT_EQ(run({io(true, 0x604, 2, 0x3400)}).kind, Kind::power_off);
  EXPECT_EQ(run({io(true, 0x64, 1, 0xfe)}).kind, Kind::reset);
  EXPECT_EQ(run({io(true, 0xcf9, 1, 6)}).kind, Kind::reset);
  EXPECT_EQ(run({io(true, 0x92, 1, 1)}).kind, Kind::reset);
  const Outcome result = run({io(true, 0x5f0, 1, 42)});
  EXPECT_EQ(result.kind, Kind::command_result);
  EXPECT_EQ(result.value, 42u);
  EXPECT_EQ(run({exit_with(KVM_EXIT_SHUTDOWN)}).kind, Kind::triple_fault);
  EXPECT_EQ(run({exit_with(KVM_EXIT_INTERNAL_ERROR)}).kind, Kind::internal_error);
  EXPECT_EQ(run({exit_with(KVM_EXIT_FAIL_ENTRY)}).kind, Kind::internal_error);
  EXPECT_EQ(run({exit_with(KVM_EXIT_HLT)}).kind, Kind::internal_error);
  EXPECT_EQ(run({exit_with(12345)}).kind, Kind::internal_error);
  EXPECT_EQ(run({[](MockVcpu&) { return -EFAULT; }}).kind, Kind::internal_error);
}

TEST_F(MachineTest, UnclaimedPortsAndMemoryReadAllOnes) {
  u32 port_value = 0;
  u64 memory_value = 0;
  auto mmio_read = [](MockVcpu& cpu) {
    kvm_run& page = cpu.run_page();
    page.exit_reason = KVM_EXIT_MMIO;
    page.mmio.phys_addr = 0xd0000000;
    page.mmio.len = 8;
    page.mmio.is_write = 0;
    return 0;
  };
  run({io(false, 0x1234, 4, 0),
       [&](MockVcpu& cpu) { return std::memcpy(&port_value, cpu.io_data(), 4), -EINTR; }, mmio_read,
       [&](MockVcpu& cpu) { return std::memcpy(&memory_value, cpu.run_page().mmio.data, 8), -EINTR; },
       io(true, 0xf4, 1, 0)});
  EXPECT_EQ(port_value, 0xffffffffu);
  EXPECT_EQ(memory_value, ~u64{0});
}

TEST_F(MachineTest, StopsHaltedCpus) {
  MockVm vm({});
  auto machine = Machine::create(vm, clock, config(4));
  ASSERT_TRUE(machine);
  ASSERT_TRUE((*machine)->start());
  std::this_thread::sleep_for(5ms);
  EXPECT_FALSE((*machine)->outcome());
  EXPECT_TRUE((*machine)->stop(5s));
  EXPECT_EQ((*machine)->stats().size(), 4u);
}

TEST_F(MachineTest, LoadsAKernelAndSetsUpTheBootCpu) {
  MockVm vm({});
  MachineConfig c = config();
  c.memory = 4 * gib;
  auto machine = Machine::create(vm, clock, c);
  ASSERT_TRUE(machine);
  ASSERT_EQ(vm.regions.size(), 2u);
  EXPECT_EQ(vm.regions[0].memory_size, low_ram_limit);
  EXPECT_EQ(vm.regions[1].guest_phys_addr, high_ram_base);
  const test::Image kernel = test::bzimage();
  BootInput input;
  input.kernel = kernel;
  ASSERT_TRUE((*machine)->load(input));
  EXPECT_EQ(vm.cpus[0]->regs.rip, 0x1000200u);
  EXPECT_EQ(vm.cpus[0]->sregs.efer, 0x500u);
  EXPECT_EQ(vm.cpus[0]->sregs.cs.l, 1);
  const auto rsdp = (*machine)->ram().at(acpi_base, 8);
  EXPECT_EQ(std::memcmp(rsdp.data(), "RSD PTR ", 8), 0);
}

TEST_F(MachineTest, FailureToMakeACpuIsAnError) {
  MockVm vm({});
  vm.fail_at = 2;
  auto machine = Machine::create(vm, clock, config(4));
  ASSERT_FALSE(machine);
  EXPECT_NE(machine.error().message.find("CPU 2"), std::string::npos);
}

} // namespace
} // namespace ring3::vmm
