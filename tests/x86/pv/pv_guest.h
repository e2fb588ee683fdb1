// SPDX-License-Identifier: Apache-2.0
// A VM whose time the test moves, with vCPUs in 64-bit mode: memory is mapped where it is, for all rings.
#pragma once

#include "x86/api/guest_tsc.h"
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/cpuid_model.h"
#include "x86/pv/pv_features.h"

#include <asm/kvm_para.h>
#include <atomic>
#include <cstring>
#include <gtest/gtest.h>
#include <initializer_list>
#include <linux/kvm_para.h>
#include <sys/mman.h>
#include <vector>

namespace ring3::x86::test {

class MovableClock final : public kvm::Clock {
 public:
  u64 now_ns() const override { return now; }
  u64 wall_ns() const override { return wall; }
  u64 tsc() const override { return scale_ticks(now, khz, 1'000'000); }
  u64 tsc_khz() const override { return khz; }
  std::atomic<u64> khz{1'000'000};
  std::atomic<u64> now{5'000'000'000};
  std::atomic<u64> wall{1'700'000'000'000'000'000};
};

// A few instructions.
class Code {
 public:
  Code& raw(std::initializer_list<int> bytes) {
    for (const int b : bytes) bytes_.push_back(static_cast<u8>(b));
    return *this;
  }
  Code& rax(u64 v) { return move(0xb8, v); }
  Code& rcx(u64 v) { return move(0xb9, v); }
  Code& rdx(u64 v) { return move(0xba, v); }
  Code& rbx(u64 v) { return move(0xbb, v); }
  Code& rsi(u64 v) { return move(0xbe, v); }
  Code& wrmsr(u32 index, u64 value) {
    return rcx(index).rax(value & 0xffffffff).rdx(value >> 32).raw({0x0f, 0x30});
  }
  Code& rdmsr(u32 index) { return rcx(index).raw({0x0f, 0x32}); }
  Code& call(u64 number, u64 a0 = 0, u64 a1 = 0, u64 a2 = 0, u64 a3 = 0) {
    return rax(number).rbx(a0).rcx(a1).rdx(a2).rsi(a3).raw({0x0f, 0x01, 0xc1});
  }
  Code& hlt() { return raw({0xf4}); }
  Code& exit() { return raw({0xe6, 0x10}); } // out 0x10, al
  const std::vector<u8>& bytes() const { return bytes_; }

 private:
  Code& move(int opcode, u64 v) {
    raw({0x48, opcode});
    for (unsigned i = 0; i < 8; ++i) bytes_.push_back(static_cast<u8>(v >> (8 * i)));
    return *this;
  }
  std::vector<u8> bytes_;
};

class PvGuest : public testing::Test {
 protected:
  static constexpr u64 memory_size = 2 << 20;
  static constexpr u64 code_at = 0x1000;
  static constexpr u64 tables_at = 0x100000;
  static constexpr u64 data_at = 0x200000 - 0x10000; // for structures

  PvGuest() {
    memory_ = static_cast<u8*>(
        mmap(nullptr, memory_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    auto clock = std::make_unique<MovableClock>();
    clock_ = clock.get();
    vm_ = std::make_unique<Vm>(std::move(clock));
    // One table of each level; 2 MiB in pages of 4 KiB.
    put<u64>(tables_at, (tables_at + 0x1000) | 7);
    put<u64>(tables_at + 0x1000, (tables_at + 0x2000) | 7);
    put<u64>(tables_at + 0x2000, (tables_at + 0x3000) | 7);
    for (u64 i = 0; i < 512; ++i) put<u64>(tables_at + 0x3000 + 8 * i, i << 12 | 7);
  }
  ~PvGuest() override {
    vm_.reset();
    munmap(memory_, memory_size);
  }

  void start(u32 vcpus = 1, bool irqchip = false, const char* model_name = "max") {
    kvm_userspace_memory_region slot{};
    slot.memory_size = memory_size;
    slot.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
    if (irqchip) {
      ASSERT_EQ(vm_->create_irqchip(), 0);
    }
    const auto model = select_cpu_model(model_name);
    ASSERT_TRUE(model.has_value());
    for (u32 i = 0; i < vcpus; ++i) {
      kvm::VcpuApi* v = nullptr;
      ASSERT_EQ(vm_->create_vcpu(i, v), 0);
      vcpu_.push_back(static_cast<Vcpu*>(v));
      cpuid_ = cpuid_entries(*model, i, vcpus);
      ASSERT_EQ(v->set_cpuid(cpuid_), 0);
      enter(i, code_at);
    }
  }
  void enter(u32 i, u64 rip, unsigned ring = 0, u64 rflags = 2) {
    const kvm_mp_state runnable{KVM_MP_STATE_RUNNABLE};
    ASSERT_EQ(vcpu_[i]->set_mp_state(runnable), 0);
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[i]->get_sregs(s), 0);
    s.cs = {};
    s.cs.selector = static_cast<u16>(0x8 | ring);
    s.cs.type = 0xb;
    s.cs.present = s.cs.s = s.cs.l = s.cs.g = 1;
    s.cs.limit = 0xffffffff;
    s.cs.dpl = static_cast<u8>(ring);
    s.ss = s.cs;
    s.ss.selector = static_cast<u16>(0x10 | ring);
    s.ss.type = 3;
    s.ss.l = 0;
    s.ds = s.es = s.ss;
    s.cr3 = tables_at;
    s.cr4 = 1 << 5;
    s.cr0 = 0x80010001; // PG, WP, PE
    s.efer = 0x500;
    s.idt.limit = 0; // every fault is a shutdown
    ASSERT_EQ(vcpu_[i]->set_sregs(s), 0);
    kvm_regs r{};
    r.rip = rip;
    r.rsp = 0x8000;
    r.rflags = rflags;
    ASSERT_EQ(vcpu_[i]->set_regs(r), 0);
  }
  // vCPU 0 executes 32-bit code: compatibility mode.
  void without_long_mode(u64 code_base = 0) {
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[0]->get_sregs(s), 0);
    s.cs.l = 0;
    s.cs.db = 1;
    s.cs.base = code_base;
    ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  }
  void code(const Code& c, u64 at = code_at) {
    std::memcpy(memory_ + at, c.bytes().data(), c.bytes().size());
  }
  u32 run(u32 i = 0) {
    EXPECT_EQ(vcpu_[i]->run(), 0);
    return vcpu_[i]->run_page().exit_reason;
  }
  // Runs a program of its own from its start.
  u32 run(const Code& c, unsigned ring = 0) {
    code(c);
    enter(0, code_at, ring);
    return run();
  }
  u64 reg_rax(u32 i = 0) {
    kvm_regs r{};
    vcpu_[i]->get_regs(r);
    return r.rax;
  }
  bool set_msr(u32 index, u64 value, u32 i = 0) {
    kvm_msr_entry e{};
    e.index = index;
    e.data = value;
    return vcpu_[i]->set_msrs({&e, 1}) == 1;
  }
  u64 get_msr(u32 index, u32 i = 0) {
    kvm_msr_entry e{};
    e.index = index;
    EXPECT_EQ(vcpu_[i]->get_msrs({&e, 1}), 1);
    return e.data;
  }
  template <class T> T get(u64 at) const { return load_raw<T>(memory_ + at); }
  template <class T> void put(u64 at, T v) { store_raw(memory_ + at, v); }

  u8* memory_;
  MovableClock* clock_;
  std::unique_ptr<Vm> vm_;
  std::vector<Vcpu*> vcpu_;
  std::vector<kvm_cpuid_entry2> cpuid_; // of the last vCPU
};

} // namespace ring3::x86::test
