// SPDX-License-Identifier: Apache-2.0
// Whole VMs with what surrounds KVM_RUN: eventfds, coalesced writes, dirty pages, statistics.
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"
#include "x86/cpu/cpuid_model.h"
#include "x86/jit/statistics.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <gtest/gtest.h>
#include <initializer_list>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <thread>
#include <unistd.h>
#include <vector>

namespace ring3::x86 {
namespace {

constexpr u64 code_at = 0x1000;
constexpr u64 low_size = 0x10000;
constexpr u64 logged_at = 0x100000;
constexpr u64 logged_pages = 1024;
constexpr u64 logged_size = logged_pages * page_size;

class VmEvents : public testing::Test {
 protected:
  VmEvents() {
    memory_ = static_cast<u8*>(
        mmap(nullptr, low_size + logged_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    vm_ = std::make_unique<Vm>(std::make_unique<kvm::HostClock>());
  }
  ~VmEvents() override {
    vm_.reset();
    munmap(memory_, low_size + logged_size);
  }

  u8* logged() const { return memory_ + low_size; }
  void map_logged(u32 flags) {
    kvm_userspace_memory_region slot{};
    slot.slot = 1;
    slot.flags = flags;
    slot.guest_phys_addr = logged_at;
    slot.memory_size = logged_size;
    slot.userspace_addr = reinterpret_cast<u64>(logged());
    ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  }
  // vCPUs at code_at in real mode, but with segments that reach everything.
  void start(u32 vcpus = 1) {
    kvm_userspace_memory_region slot{};
    slot.memory_size = low_size;
    slot.userspace_addr = reinterpret_cast<u64>(memory_);
    ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
    const auto model = select_cpu_model("max");
    ASSERT_TRUE(model.has_value());
    for (u32 i = 0; i < vcpus; ++i) {
      Vcpu* v = nullptr;
      ASSERT_EQ(vm_->create_vcpu(i, -1, v), 0);
      ASSERT_EQ(v->set_cpuid(cpuid_entries(*model, i, vcpus)), 0);
      vcpu_.push_back(v);
      enter(i, code_at);
    }
  }
  void enter(u32 i, u64 rip) {
    kvm_sregs s{};
    ASSERT_EQ(vcpu_[i]->get_sregs(s), 0);
    for (kvm_segment* seg : {&s.cs, &s.ds, &s.es, &s.ss}) {
      seg->base = 0;
      seg->selector = 0;
      seg->limit = 0xffff'ffff;
      seg->g = 1;
    }
    ASSERT_EQ(vcpu_[i]->set_sregs(s), 0);
    kvm_regs r{};
    r.rip = rip;
    r.rsp = 0x8000;
    r.rflags = 2;
    ASSERT_EQ(vcpu_[i]->set_regs(r), 0);
  }
  void code(std::initializer_list<int> bytes) {
    u64 at = code_at;
    for (const int b : bytes) memory_[at++] = static_cast<u8>(b);
  }
  // Writes to every page of the logged memory, over and over, 11 pages apart; by an update and by a store.
  void code_that_dirties() {
    code({
        0x66, 0xbb, 0x00, 0x00, 0x10, 0x00,       //      mov ebx, 0x100000
        0x67, 0x66, 0xff, 0x03,                   // top: inc dword [ebx]
        0x66, 0x41,                               //      inc ecx
        0x67, 0x66, 0x89, 0x4b, 0x04,             //      mov [ebx + 4], ecx
        0x66, 0x81, 0xc3, 0x00, 0xb0, 0x00, 0x00, //      add ebx, 0xb000
        0x66, 0x81, 0xfb, 0x00, 0x00, 0x50, 0x00, //      cmp ebx, 0x500000
        0x72, 0xe5,                               //      jb top
        0x66, 0x81, 0xeb, 0x00, 0x00, 0x40, 0x00, //      sub ebx, 0x400000
        0xeb, 0xdc,                               //      jmp top
    });
  }
  kvm_run& run(u32 i = 0) {
    EXPECT_EQ(vcpu_[i]->run(), 0);
    return vcpu_[i]->run_page();
  }
  kvm_coalesced_mmio coalesced(u32 i) const {
    kvm_coalesced_mmio e;
    std::memcpy(&e, reinterpret_cast<const u8*>(vcpu_[0]->generic().pages().coalesced()) + 8 + i * 24, 24);
    return e;
  }

  // Every vCPU in a thread of its own until stop(); a full ring makes it wait until there is room.
  void run_all() {
    stop_ = false;
    for (Vcpu* v : vcpu_)
      threads_.emplace_back([this, v] {
        while (!stop_.load()) {
          const int result = v->run();
          const bool full = result == 0 && v->run_page().exit_reason == KVM_EXIT_DIRTY_RING_FULL;
          ASSERT_TRUE(full || result == -EINTR) << v->run_page().exit_reason;
          if (full) {
            ++full_;
            std::this_thread::yield();
          }
        }
      });
  }
  void stop() {
    stop_ = true;
    for (Vcpu* v : vcpu_) v->kick();
    for (std::thread& t : threads_) t.join();
    threads_.clear();
    // A kick that came after the end of the last run() is for nobody.
    for (Vcpu* v : vcpu_) {
      v->run_page().immediate_exit = 1;
      EXPECT_EQ(v->run(), -EINTR);
      v->run_page().immediate_exit = 0;
    }
  }

  // A migration: copies what the log reports while the guest runs on. In the end the copy must be the memory.
  template <class Collect> void migrate(Collect collect) {
    std::vector<u8> copy(logged(), logged() + logged_size);
    u64 copied = 0;
    const auto round = [&] {
      for (const u64 page : collect()) {
        ASSERT_LT(page, logged_pages);
        std::memcpy(&copy[page * page_size], logged() + page * page_size, page_size);
        ++copied;
      }
    };
    for (int phase = 0; phase < 25; ++phase) {
      run_all();
      for (int i = 0; i < 20; ++i) {
        round();
        if (i % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(300));
      }
      stop();
      for (u64 before = ~u64{0}; before != copied;) { // what a ring holds may not fit at once
        before = copied;
        round();
      }
      for (u64 page = 0; page < logged_pages; ++page)
        ASSERT_EQ(std::memcmp(&copy[page * page_size], logged() + page * page_size, page_size), 0)
            << "page " << page << " was written and not reported, phase " << phase;
    }
    EXPECT_GT(copied, logged_pages);
  }
  static std::vector<u64> pages_of(const std::vector<u64>& bitmap) {
    std::vector<u64> pages;
    for (u64 page = 0; page < bitmap.size() * 64; ++page)
      if ((bitmap[page / 64] >> (page % 64) & 1) != 0) pages.push_back(page);
    return pages;
  }

  u8* memory_;
  std::unique_ptr<Vm> vm_;
  std::vector<Vcpu*> vcpu_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stop_{false};
  std::atomic<u64> full_{0};
};

TEST_F(VmEvents, WritesToEventFdsDoNotLeaveTheGuest) {
  // out 0x10, al; mov [0x600000], eax (32-bit address); out 0x11, al; hlt
  code({0xe6, 0x10, 0x67, 0x66, 0xa3, 0x00, 0x00, 0x60, 0x00, 0xe6, 0x11, 0xf4});
  start();
  const int port = eventfd(0, EFD_NONBLOCK);
  const int memory = eventfd(0, EFD_NONBLOCK);
  kvm_ioeventfd r{};
  r.fd = port;
  r.addr = 0x10;
  r.len = 1;
  r.flags = KVM_IOEVENTFD_FLAG_PIO;
  ASSERT_EQ(vm_->ioeventfd(r), 0);
  r.fd = memory;
  r.addr = 0x600000;
  r.len = 4;
  r.flags = 0;
  ASSERT_EQ(vm_->ioeventfd(r), 0);
  kvm_run& exit = run();
  ASSERT_EQ(exit.exit_reason, KVM_EXIT_IO);
  EXPECT_EQ(exit.io.port, 0x11);
  u64 n = 0;
  EXPECT_EQ(read(port, &n, sizeof n), 8);
  EXPECT_EQ(n, 1u);
  EXPECT_EQ(read(memory, &n, sizeof n), 8);
  EXPECT_EQ(n, 1u);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  close(port);
  close(memory);
}

TEST_F(VmEvents, CoalescedWritesUntilTheRingIsFull) {
  // mov ecx, 2000; top: out 0x80, eax; mov [0x600000], ecx; loop top; hlt
  code({0x66, 0xb9, 0xd0, 0x07, 0x00, 0x00, 0x66, 0xe7, 0x80, 0x67, 0x66,
        0x89, 0x0d, 0x00, 0x00, 0x60, 0x00, 0x67, 0xe2, 0xf2, 0xf4});
  start();
  kvm_coalesced_mmio_zone zone{};
  zone.addr = 0x600000;
  zone.size = 8;
  ASSERT_EQ(vm_->coalesced_zone(zone, true), 0);
  zone.addr = 0x80;
  zone.pio = 1;
  ASSERT_EQ(vm_->coalesced_zone(zone, true), 0);
  kvm_coalesced_mmio_ring& ring = *vcpu_[0]->generic().pages().coalesced();
  // Every write is seen once and in order, from the ring or from the exit after it.
  u64 ports = 0;
  u64 stores = 0;
  const auto wrote = [&](bool pio, u64 value) {
    if (pio) {
      EXPECT_EQ(ports, stores);
      ++ports;
    } else {
      EXPECT_EQ(value, 2000 - stores);
      ++stores;
    }
  };
  for (;;) {
    kvm_run& exit = run();
    for (; ring.first != ring.last; ring.first = (ring.first + 1) % kvm::CoalescedRing::entries) {
      const kvm_coalesced_mmio e = coalesced(ring.first);
      EXPECT_EQ(e.len, 4u);
      u32 value;
      std::memcpy(&value, e.data, sizeof value);
      wrote(e.pio != 0, value);
    }
    if (exit.exit_reason == KVM_EXIT_HLT) break;
    ASSERT_TRUE(exit.exit_reason == KVM_EXIT_IO || exit.exit_reason == KVM_EXIT_MMIO) << exit.exit_reason;
    u32 value;
    std::memcpy(&value, exit.mmio.data, sizeof value);
    wrote(exit.exit_reason == KVM_EXIT_IO, value);
  }
  EXPECT_EQ(ports, 2000u);
  EXPECT_EQ(stores, 2000u);
  ASSERT_EQ(vm_->coalesced_zone(zone, false), 0);
  enter(0, code_at);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_IO);
}

TEST_F(VmEvents, AnIrqFdInterruptsAHaltedGuest) {
  ASSERT_EQ(vm_->create_irqchip(), 0);
  // sti; hlt; mov al, 0x5a; out 0x10, al — vector 0x28 at 0x1800: iret
  code({0xfb, 0xf4, 0xb0, 0x5a, 0xe6, 0x10});
  const u32 vector_entry = 0x1800;
  std::memcpy(memory_ + 0x28 * 4, &vector_entry, 4);
  memory_[0x1800] = 0xcf;
  start();
  const int event = eventfd(0, EFD_NONBLOCK);
  kvm_irqfd r{};
  r.fd = static_cast<u32>(event);
  r.gsi = 4;
  kvm_irq_routing_entry route{};
  route.gsi = 4;
  route.type = KVM_IRQ_ROUTING_MSI;
  route.u.msi.address_lo = 0xfee00000;
  route.u.msi.data = 0x28;
  ASSERT_EQ(vm_->set_gsi_routing({&route, 1}), 0);
  ASSERT_EQ(vm_->irqfd(r), 0);
  kvm_lapic_state apic{};
  ASSERT_EQ(vcpu_[0]->get_lapic(apic), 0);
  const u32 enabled = 0x1ff;
  std::memcpy(&apic.regs[0xf0], &enabled, 4);
  ASSERT_EQ(vcpu_[0]->set_lapic(apic), 0);
  std::thread device([event] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    const u64 one = 1;
    EXPECT_EQ(write(event, &one, sizeof one), 8);
  });
  EXPECT_EQ(run().exit_reason, KVM_EXIT_IO);
  device.join();
  const kvm::VcpuStats& stats = vcpu_[0]->generic().stats();
  EXPECT_EQ(stats.halt_exits.value(), 1u);
  EXPECT_GE(stats.halt_wait_ns.value(), 1'000'000u);
  EXPECT_GE(stats.halt_wakeup.value(), 1u);
  r.flags = 8;
  EXPECT_EQ(vm_->irqfd(r), -EINVAL);
  r.flags = 0;
  EXPECT_EQ(vm_->irqfd(r), -EBUSY);
  close(event);
}

TEST_F(VmEvents, IrqFdsNeedTheIrqChip) {
  kvm_irqfd r{};
  r.fd = ~0u;
  EXPECT_EQ(vm_->irqfd(r), -EINVAL) << "before the descriptor is looked at";
  r.flags = KVM_IRQFD_FLAG_DEASSIGN;
  EXPECT_EQ(vm_->irqfd(r), -EBADF);
}

TEST_F(VmEvents, TheDirtyLogMissesNoStore) {
  code_that_dirties();
  start(2);
  map_logged(KVM_MEM_LOG_DIRTY_PAGES);
  migrate([this] {
    std::vector<u64> bitmap(logged_pages / 64);
    EXPECT_EQ(vm_->get_dirty_log(1, bitmap), 0);
    return pages_of(bitmap);
  });
}

TEST_F(VmEvents, ClearingByTheVmmMissesNoStore) {
  code_that_dirties();
  ASSERT_EQ(vm_->set_manual_dirty_protect(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET),
            0);
  start(2);
  map_logged(KVM_MEM_LOG_DIRTY_PAGES);
  migrate([this] {
    std::vector<u64> bitmap(logged_pages / 64);
    EXPECT_EQ(vm_->get_dirty_log(1, bitmap), 0);
    kvm_clear_dirty_log clear{};
    clear.slot = 1;
    clear.num_pages = logged_pages / 2;
    EXPECT_EQ(vm_->clear_dirty_log(clear, bitmap), 0);
    clear.first_page = logged_pages / 2;
    EXPECT_EQ(vm_->clear_dirty_log(clear, std::span(bitmap).subspan(bitmap.size() / 2)), 0);
    return pages_of(bitmap);
  });
}

TEST_F(VmEvents, DirtyRingsMissNoStore) {
  code_that_dirties();
  constexpr u32 entries = 1024;
  ASSERT_EQ(vm_->enable_dirty_ring(entries * sizeof(kvm_dirty_gfn)), 0);
  start(2);
  map_logged(KVM_MEM_LOG_DIRTY_PAGES);
  std::array<u32, 2> next{};
  migrate([&] {
    std::vector<u64> pages;
    for (u32 i = 0; i < 2; ++i) {
      const std::span<kvm_dirty_gfn> ring = vcpu_[i]->generic().pages().dirty_ring();
      for (;; ++next[i]) {
        kvm_dirty_gfn& e = ring[next[i] % entries];
        const std::atomic_ref<u32> flags(e.flags);
        if (flags.load(std::memory_order_acquire) != KVM_DIRTY_GFN_F_DIRTY) break;
        EXPECT_EQ(e.slot, 1u);
        pages.push_back(e.offset);
        flags.store(KVM_DIRTY_GFN_F_RESET, std::memory_order_release);
      }
    }
    EXPECT_EQ(vm_->reset_dirty_rings(), static_cast<int>(pages.size()));
    return pages;
  });
}

TEST_F(VmEvents, AFullDirtyRingStopsTheVcpu) {
  code_that_dirties();
  EXPECT_EQ(vm_->reset_dirty_rings(), -EINVAL);
  constexpr u32 entries = 1024;
  ASSERT_EQ(vm_->enable_dirty_ring(entries * sizeof(kvm_dirty_gfn)), 0);
  start();
  EXPECT_EQ(vm_->enable_dirty_ring(entries * sizeof(kvm_dirty_gfn)), -EINVAL);
  map_logged(KVM_MEM_LOG_DIRTY_PAGES);
  std::vector<u64> bitmap(logged_pages / 64);
  EXPECT_EQ(vm_->get_dirty_log(1, bitmap), -ENXIO);
  const std::span<kvm_dirty_gfn> ring = vcpu_[0]->generic().pages().dirty_ring();
  ASSERT_EQ(ring.size(), entries);
  ASSERT_EQ(run().exit_reason, KVM_EXIT_DIRTY_RING_FULL);
  const u64 instructions = vcpu_[0]->instructions();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_DIRTY_RING_FULL);
  EXPECT_EQ(vcpu_[0]->instructions(), instructions) << "it does not run until there is room";
  const auto dirty = std::ranges::count(ring, static_cast<u32>(KVM_DIRTY_GFN_F_DIRTY), &kvm_dirty_gfn::flags);
  EXPECT_GE(dirty, entries - kvm::DirtyRing::reserved);
  EXPECT_LE(dirty, entries - kvm::DirtyRing::reserved + 48) << "it stops soon";
  std::vector<bool> seen(logged_pages);
  for (kvm_dirty_gfn& e : ring) {
    if (e.flags == 0) break;
    ASSERT_LT(e.offset, logged_pages);
    EXPECT_FALSE(seen[e.offset]) << "once each";
    seen[e.offset] = true;
    e.flags = KVM_DIRTY_GFN_F_RESET;
  }
  EXPECT_EQ(vm_->reset_dirty_rings(), dirty);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_DIRTY_RING_FULL);
  EXPECT_GT(vcpu_[0]->instructions(), instructions);
}

// What the guest reaches, by loads, stores and fetches, counts as mapped; on how large pages, see
// kvm/mapping_sizes_test.cpp.
TEST_F(VmEvents, PagesThatTheGuestReachesAreMapped) {
  madvise(memory_, low_size + logged_size, MADV_NOHUGEPAGE);
  const auto mapped = [this] { return vm_->slots().mapping_sizes().pages_4k; };
  code({
      0x66, 0xbb, 0x00, 0x00, 0x10, 0x00,             // mov ebx, 0x100000
      0x67, 0x66, 0x89, 0x03,                         // mov [ebx], eax
      0x67, 0x66, 0x8b, 0x83, 0x00, 0x10, 0x00, 0x00, // mov eax, [ebx + 0x1000]
      0x67, 0x66, 0x89, 0x83, 0xff, 0x2f, 0x00, 0x00, // mov [ebx + 0x2fff], eax
      0xf4,
  });
  start();
  map_logged(0);
  EXPECT_EQ(mapped(), 0u);
  EXPECT_EQ(run().exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(mapped(), 5u) << "code, a store, a load, and a store to two pages";
  enter(0, code_at);
  EXPECT_EQ(run().exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(mapped(), 5u);
  EXPECT_NE(vm_->stats_json().find("\"pages_4k\":5,\"pages_2m\":0,\"pages_1g\":0"), std::string::npos)
      << vm_->stats_json();

  // Memory of another slot begins anew, even if the guest knows its translation well.
  kvm_userspace_memory_region slot{};
  slot.slot = 1;
  slot.guest_phys_addr = logged_at;
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  EXPECT_EQ(mapped(), 1u);
  map_logged(0);
  EXPECT_EQ(mapped(), 1u);
  enter(0, code_at);
  EXPECT_EQ(run().exit_reason, static_cast<u32>(KVM_EXIT_HLT));
  EXPECT_EQ(mapped(), 5u);

  kvm::PreFaultMemory range{};
  range.gpa = logged_at + 0x8000;
  range.size = 3 * page_size;
  EXPECT_EQ(vcpu_[0]->pre_fault_memory(range), 0);
  EXPECT_EQ(mapped(), 8u);
}

TEST_F(VmEvents, StatisticsOfVmAndVcpu) {
  code({0xe6, 0x10, 0xf4});
  start();
  EXPECT_EQ(run().exit_reason, KVM_EXIT_IO);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_HLT);
  vcpu_[0]->kick();
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  const kvm::VcpuStats& stats = vcpu_[0]->generic().stats();
  EXPECT_EQ(stats.exits.value(), 2u);
  EXPECT_EQ(stats.io_exits.value(), 1u);
  EXPECT_EQ(stats.halt_exits.value(), 1u);
  EXPECT_EQ(stats.signal_exits.value(), 1u);
  const int vm = vm_->open_stats();
  const int vcpu = vcpu_[0]->generic().open_stats();
  EXPECT_GE(vm, 0);
  EXPECT_GE(vcpu, 0);
  close(vm);
  close(vcpu);
}

// What other processes see (`ring3 stat`), also when the VMM has a file of its own.
TEST_F(VmEvents, RecordOfAVcpuIsUpToDate) {
  code({0xe6, 0x10, 0xeb, 0xfc});
  start();
  kvm::Vcpu& v = vcpu_[0]->generic();
  const auto check = [&](u64 exits) {
    EXPECT_EQ(v.record().instructions().value(), vcpu_[0]->instructions());
    EXPECT_EQ(v.record().stats().exits.value(), exits);
    EXPECT_EQ(v.record().stats().io_exits.value(), exits);
    EXPECT_EQ(v.stats().exits.value(), exits);
  };
  for (int i = 0; i < 3; ++i) EXPECT_EQ(run().exit_reason, KVM_EXIT_IO);
  check(3);
  const jit::Statistics& executor = jit::Statistics::in(v.record().executor(jit::Statistics::layout()));
  EXPECT_GT(executor.interpreted.value(), 0u) << "16-bit code";
  const int file = v.open_stats();
  ASSERT_GE(file, 0);
  check(3);
  EXPECT_EQ(run().exit_reason, KVM_EXIT_IO);
  check(4);
  u64 counted = 0;
  const u64 at = kvm::StatsLayout::vcpu().data_offset() + offsetof(kvm::VcpuStats, exits);
  EXPECT_EQ(pread(file, &counted, sizeof counted, static_cast<off_t>(at)), 8);
  EXPECT_EQ(counted, 4u);
  close(file);
}

} // namespace
} // namespace ring3::x86
