// SPDX-License-Identifier: Apache-2.0
// Private memory as guests see it (api.rst 4.141 to 4.143, 7.34 KVM_CAP_MEMORY_FAULT_INFO).
#include "../pv/pv_guest.h"

#include "x86/api/capabilities.h"

#include <cerrno>
#include <linux/falloc.h>
#include <thread>
#include <unistd.h>

namespace ring3::x86::test {
namespace {

constexpr u64 hidden_at = 0x8000'0000; // guest-physical, in a slot of its own
constexpr u64 hidden_size = 0x4000;
constexpr u64 window = 0x180000; // linear: the first page of it
constexpr int punch = FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE;

class PrivateMemoryTest : public PvGuest {
 protected:
  PrivateMemoryTest() : fd_(memfd_create("test", MFD_CLOEXEC)) {
    auto clock = std::make_unique<MovableClock>();
    clock_ = clock.get();
    vm_ = std::make_unique<Vm>(std::move(clock), kvm::vm_type_sw_protected);
    shared_ = static_cast<u8*>(
        mmap(nullptr, hidden_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  ~PrivateMemoryTest() override {
    vm_.reset();
    munmap(shared_, hidden_size);
    close(fd_);
  }
  void start_with_slot(bool with_private = true) {
    start();
    kvm::UserspaceMemoryRegion2 r{};
    r.slot = 5;
    r.guest_phys_addr = hidden_at;
    r.memory_size = hidden_size;
    r.userspace_addr = reinterpret_cast<u64>(shared_);
    if (with_private) {
      ASSERT_EQ(vm_->create_guest_memfd({.size = hidden_size, .flags = 0, .reserved = {}}, fd_, hidden_), 0);
      r.flags = kvm::mem_guest_memfd;
    }
    ASSERT_EQ(vm_->set_user_memory_region(r, {hidden_, 0}), 0);
    for (u64 i = 0; i < hidden_size; i += page_size)
      put<u64>(tables_at + 0x3000 + 8 * ((window + i) >> 12), (hidden_at + i) | 7);
  }
  int make_private(bool on, u64 at = hidden_at, u64 size = hidden_size) {
    return vm_->set_memory_attributes({at, size, on ? kvm::memory_attribute_private : 0, 0});
  }
  static Code store_byte(int v) { // mov byte [window], v
    return Code().rax(window).raw({0xc6, 0x00, v}).hlt();
  }
  static Code load_byte() { return Code().rax(window).raw({0x0f, 0xb6, 0x00}).hlt(); }
  void expect_fault(u64 gpa) {
    EXPECT_EQ(vcpu_[0]->run(), -EFAULT);
    EXPECT_EQ(vcpu_[0]->run_page().exit_reason, kvm::exit_memory_fault);
    kvm::MemoryFault f{};
    std::memcpy(&f, vcpu_[0]->run_page().padding, sizeof f);
    EXPECT_EQ(f.gpa, gpa);
    EXPECT_EQ(f.size, page_size);
    EXPECT_EQ(f.flags, kvm::memory_exit_flag_private);
  }

  const int fd_;
  u8* shared_;
  std::shared_ptr<kvm::GuestMemfd> hidden_;
};

TEST_F(PrivateMemoryTest, TwoMemoriesAtOneAddress) {
  start_with_slot();
  ASSERT_EQ(run(store_byte(0x11)), u32{KVM_EXIT_HLT});
  EXPECT_EQ(shared_[0], 0x11);
  ASSERT_EQ(make_private(true), 0);
  ASSERT_EQ(run(load_byte()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u) << "never written";
  ASSERT_EQ(run(store_byte(0x22)), u32{KVM_EXIT_HLT});
  EXPECT_EQ(shared_[0], 0x11);
  ASSERT_EQ(make_private(false), 0);
  ASSERT_EQ(run(load_byte()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0x11u);
  ASSERT_EQ(make_private(true), 0);
  ASSERT_EQ(run(load_byte()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0x22u) << "converting frees nothing";
  ASSERT_EQ(vm_->fallocate(*hidden_, fd_, punch, 0, page_size), 0);
  ASSERT_EQ(run(load_byte()), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
}

TEST_F(PrivateMemoryTest, ConversionIsByPage) {
  start_with_slot();
  ASSERT_EQ(make_private(true, hidden_at + page_size, page_size), 0);
  const Code c =
      Code().rax(window + 0xfff).raw({0x66, 0xc7, 0x00, 0xaa, 0xbb}).hlt(); // mov word [rax], 0xbbaa
  ASSERT_EQ(run(c), u32{KVM_EXIT_HLT});
  EXPECT_EQ(shared_[0xfff], 0xaa);
  EXPECT_EQ(shared_[0x1000], 0);
  EXPECT_EQ(hidden_->host()[0x1000], std::byte{0xbb});
}

TEST_F(PrivateMemoryTest, APageWithoutPrivateMemoryIsForTheVmm) {
  start_with_slot(false);
  ASSERT_EQ(make_private(true), 0);
  code(store_byte(0x33));
  expect_fault(hidden_at);
  expect_fault(hidden_at); // and again, the same instruction
  ASSERT_EQ(make_private(false), 0);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(shared_[0], 0x33);
  // Nor is there MMIO in a private place.
  put<u64>(tables_at + 0x3000 + 8 * (window >> 12), u64{0x9000'0000} | 7);
  ASSERT_EQ(make_private(true, 0x9000'0000, page_size), 0);
  enter(0, code_at);
  expect_fault(0x9000'0000);
  ASSERT_EQ(make_private(false, 0x9000'0000, page_size), 0);
  EXPECT_EQ(run(), u32{KVM_EXIT_MMIO});
}

TEST_F(PrivateMemoryTest, PagingStructuresAndCodeFaultLikeData) {
  start_with_slot();
  code(store_byte(0x44));
  // The page directory's page becomes private, in a slot that cannot have private memory.
  ASSERT_EQ(make_private(true, tables_at + 0x2000, page_size), 0);
  expect_fault(tables_at + 0x2000);
  ASSERT_EQ(make_private(false, tables_at + 0x2000, page_size), 0);
  ASSERT_EQ(make_private(true, code_at, page_size), 0);
  expect_fault(code_at);
  ASSERT_EQ(make_private(false, code_at, page_size), 0);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(shared_[0], 0x44);
}

TEST_F(PrivateMemoryTest, CodeThatWasFreedIsNotExecuted) {
  start_with_slot();
  ASSERT_EQ(make_private(true), 0);
  const Code c = Code().rax(1).hlt();
  std::memcpy(hidden_->host(), c.bytes().data(), c.bytes().size());
  enter(0, window);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  ASSERT_EQ(vm_->fallocate(*hidden_, fd_, punch, 0, page_size), 0);
  enter(0, window);
  // add byte [rax], al, over and over, with RAX at 1: to the end of the window, where the code is another.
  const Code end = Code().rax(2).hlt();
  std::memcpy(hidden_->host() + page_size, end.bytes().data(), end.bytes().size());
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 2u);
}

TEST_F(PrivateMemoryTest, ClosingTheDescriptorTakesTheMemoryAway) {
  start_with_slot();
  ASSERT_EQ(make_private(true), 0);
  ASSERT_EQ(run(store_byte(1)), u32{KVM_EXIT_HLT});
  vm_->close_guest_memfd(*hidden_);
  enter(0, code_at);
  expect_fault(hidden_at);
}

TEST_F(PrivateMemoryTest, AnInterruptThatFindsNoStackIsNotLost) {
  start_with_slot();
  // An IDT with one gate, vector 0x20, and a GDT with its code segment.
  const u64 idt = data_at, gdt = data_at + 0x1000, handler_at = 0x2000;
  put<u64>(gdt + 8, 0x00af9b000000ffff);
  put<u64>(idt + 0x200, u64{handler_at & 0xffff} | u64{8} << 16 | u64{0x8e00} << 32);
  code(Code().rax(0x77).hlt(), handler_at);
  code(Code().raw({0xeb, 0xfe}));
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  s.idt = {idt, 0xfff, {}};
  s.gdt = {gdt, 0xf, {}};
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  r.rsp = window + 0x800;
  r.rflags = 0x202;
  ASSERT_EQ(vcpu_[0]->set_regs(r), 0);
  ASSERT_EQ(make_private(true), 0);
  vm_->close_guest_memfd(*hidden_);
  ASSERT_EQ(vcpu_[0]->interrupt(0x20), 0);
  expect_fault(hidden_at);
  kvm_vcpu_events e{};
  vcpu_[0]->get_vcpu_events(e);
  EXPECT_EQ(e.interrupt.injected, 1);
  EXPECT_EQ(e.interrupt.nr, 0x20);
  ASSERT_EQ(make_private(false), 0);
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0x77u);
}

TEST_F(PrivateMemoryTest, AConversionReachesARunningVcpu) {
  start_with_slot();
  code(Code().rax(window).raw({0xfe, 0x00, 0xeb, 0xfc})); // inc byte [rax]; jmp back
  std::jthread vmm([this] {
    while (__atomic_load_n(shared_, __ATOMIC_RELAXED) == 0) std::this_thread::yield();
    EXPECT_EQ(make_private(true), 0);
    const u8 left = __atomic_load_n(shared_, __ATOMIC_RELAXED);
    while (load_raw<u8>(hidden_->host()) == 0) std::this_thread::yield();
    EXPECT_EQ(__atomic_load_n(shared_, __ATOMIC_RELAXED), left);
    vcpu_[0]->kick();
  });
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
}

TEST_F(PrivateMemoryTest, TheHypervisorWritesSharedMemoryOnly) {
  start_with_slot();
  ASSERT_EQ(make_private(true), 0);
  ASSERT_TRUE(set_msr(MSR_KVM_SYSTEM_TIME_NEW, hidden_at | 1));
  ASSERT_EQ(run(Code().hlt()), u32{KVM_EXIT_HLT});
  EXPECT_NE(load_raw<u32>(shared_), 0u);
  EXPECT_EQ(load_raw<u32>(hidden_->host()), 0u);
}

TEST_F(PrivateMemoryTest, PreFault) {
  start_with_slot();
  const auto pre_fault = [this](u64 gpa, u64 size, u64 flags, u64& left) {
    kvm::PreFaultMemory range{};
    range.gpa = gpa;
    range.size = size;
    range.flags = flags;
    const int result = vcpu_[0]->pre_fault_memory(range);
    left = range.size;
    return result;
  };
  u64 left = 0;
  EXPECT_EQ(pre_fault(hidden_at, page_size, 1, left), -EINVAL);
  EXPECT_EQ(pre_fault(hidden_at, 0, 0, left), -EINVAL);
  EXPECT_EQ(pre_fault(hidden_at + 1, page_size, 0, left), -EINVAL);
  EXPECT_EQ(pre_fault(~u64{0xfff}, page_size, 0, left), -EINVAL);
  EXPECT_EQ(pre_fault(hidden_at, hidden_size, 0, left), 0);
  EXPECT_EQ(left, 0u);
  unsigned char resident[4] = {};
  ASSERT_EQ(mincore(shared_, hidden_size, resident), 0);
  EXPECT_EQ(resident[3] & 1, 1);
  EXPECT_EQ(pre_fault(hidden_at + 0x3000, 0x3000, 0, left), 0) << "a part is enough";
  EXPECT_EQ(left, 0x2000u);
  EXPECT_EQ(pre_fault(hidden_at + hidden_size, page_size, 0, left), -ENOENT);
  EXPECT_EQ(left, page_size);
  ASSERT_EQ(make_private(true), 0);
  ASSERT_EQ(mincore(hidden_->host(), hidden_size, resident), 0);
  EXPECT_EQ(resident[0] & 1, 0);
  EXPECT_EQ(pre_fault(hidden_at, hidden_size, 0, left), 0);
  ASSERT_EQ(mincore(hidden_->host(), hidden_size, resident), 0);
  EXPECT_EQ(resident[0] & 1, 1);
  ASSERT_EQ(make_private(true, 0x10000, page_size), 0);
  EXPECT_EQ(pre_fault(0x10000, page_size, 0, left), -EFAULT);
  ASSERT_EQ(munmap(shared_, page_size), 0);
  ASSERT_EQ(make_private(false), 0);
  EXPECT_EQ(pre_fault(hidden_at, page_size, 0, left), -EFAULT);
}

TEST_F(PrivateMemoryTest, MapGpaRangeIsTheVmms) {
  start();
  kvm_enable_cap cap{};
  cap.cap = KVM_CAP_EXIT_HYPERCALL;
  cap.args[0] = 1 << KVM_HC_KICK_CPU;
  EXPECT_EQ(vm_->enable_capability(cap), -EINVAL);
  const Code c = Code().call(KVM_HC_MAP_GPA_RANGE, 0x3000, 2, 1).hlt();
  ASSERT_EQ(run(c), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), static_cast<u64>(-KVM_ENOSYS));
  cap.args[0] = 1 << KVM_HC_MAP_GPA_RANGE;
  ASSERT_EQ(vm_->enable_capability(cap), 0);
  ASSERT_EQ(run(c), u32{KVM_EXIT_HYPERCALL});
  EXPECT_EQ(vcpu_[0]->run_page().hypercall.args[0], 0x3000u);
  EXPECT_EQ(vcpu_[0]->run_page().hypercall.args[1], 2u);
  vcpu_[0]->run_page().hypercall.ret = 0;
  ASSERT_EQ(run(), u32{KVM_EXIT_HLT});
  EXPECT_EQ(reg_rax(), 0u);
}

TEST_F(PrivateMemoryTest, CapabilitiesDependOnTheVm) {
  const Vm ordinary(std::make_unique<MovableClock>());
  EXPECT_EQ(check_extension(kvm::cap_vm_types, nullptr), 3);
  EXPECT_EQ(check_extension(kvm::cap_guest_memfd, nullptr), 1);
  EXPECT_EQ(check_extension(kvm::cap_guest_memfd, vm_.get()), 1);
  EXPECT_EQ(check_extension(kvm::cap_guest_memfd, &ordinary), 0);
  EXPECT_EQ(check_extension(kvm::cap_memory_attributes, vm_.get()), 8);
  EXPECT_EQ(check_extension(kvm::cap_memory_attributes, &ordinary), 0);
  EXPECT_EQ(check_extension(KVM_CAP_MULTI_ADDRESS_SPACE, vm_.get()), 1);
  EXPECT_EQ(check_extension(KVM_CAP_MULTI_ADDRESS_SPACE, &ordinary), 2);
  EXPECT_EQ(check_extension(KVM_CAP_MULTI_ADDRESS_SPACE, nullptr), 2);
}

} // namespace
} // namespace ring3::x86::test
