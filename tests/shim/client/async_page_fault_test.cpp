// SPDX-License-Identifier: Apache-2.0
// Asynchronous page faults from both sides: a guest in protected mode that goes on counting while a page is
// away, and a VMM that brings pages by userfaultfd when it sees that.
#include "guest.h"

#include <asm/kvm_para.h>
#include <atomic>
#include <chrono>
#include <dirent.h>
#include <functional>
#include <linux/userfaultfd.h>
#include <optional>
#include <poll.h>
#include <sys/syscall.h>
#include <thread>

// The guest: 32 bits, paging. Its data, at the addresses of the struct GuestData below.
asm(R"(
    .pushsection .rodata
    .code32
    .globl async_guest, async_guest_fault, async_guest_ready, async_guest_end
async_guest:
    movl $0x1ff, 0xfee000f0
    xorl %edx, %edx
    movl $0x4b564d06, %ecx
    movl $0x40, %eax
    wrmsr
    movl $0x4b564d02, %ecx
    movl 0x6000, %eax
    wrmsr
    sti
    nop # the access behind STI would wait
    movl 0x200000, %eax
    movl %eax, 0x6040
    cmpl $2, 0x6004
    jne 1f
    movl 0x201000, %eax
    movl %eax, 0x6044
1:  outb %al, $0x10

async_guest_fault:
    pushal
    cmpl $1, 0x5000
    je 1f
    outb %al, $0x11
1:  movl $0, 0x5000
    movl 0x6008, %ebx
    movl %cr2, %eax
    movl %eax, 0x6020(,%ebx,4)
    incl 0x6008
    sti
    cmpl $3, 0x6004
    jne 2f
    outb %al, $0x12
2:  cmpl $2, 0x6004
    jne 3f
    testl %ebx, %ebx
    jnz 3f
    movl 0x201000, %eax
3:  incl 0x6010
    movl 0x600c, %eax
    cmpl 0x6008, %eax
    jb 3b
    cli
    popal
    addl $4, %esp
    iretl

async_guest_ready:
    pushal
    movl 0x5004, %eax
    cmpl $-1, %eax
    jne 1f
    incl 0x6014
    jmp 2f
1:  movl 0x600c, %ecx
    movl %eax, 0x6030(,%ecx,4)
    incl 0x600c
2:  movl $0, 0x5004
    movl $0x4b564d07, %ecx
    movl $1, %eax
    xorl %edx, %edx
    wrmsr
    movl $0, 0xfee000b0
    popal
    iretl
async_guest_end:
    .code64
    .popsection
)");

extern "C" {
extern const std::uint8_t async_guest[], async_guest_fault[], async_guest_ready[], async_guest_end[];
}

namespace client {
namespace {

struct GuestData {
  std::uint32_t control, mode; // mode: pages to read; 3: to user space from the handler
  std::uint32_t faults, readies, work, wake_alls, unused[2];
  std::uint32_t fault_token[4], ready_token[4], result[2];
};
static_assert(offsetof(GuestData, fault_token) == 0x20 && offsetof(GuestData, result) == 0x40);

constexpr std::uint32_t on = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_SEND_ALWAYS | KVM_ASYNC_PF_DELIVERY_AS_INT;
constexpr std::uint64_t structure_at = 0x5000, data_at = 0x6000, directory_at = 0x7000, gdt_at = 0x8000,
                        idt_at = 0x9000, away_at = 0x200000;
constexpr std::size_t page = 4096, away_size = 4 * page, low_size = 1 << 20;

std::size_t threads() {
  std::size_t n = 0;
  DIR* const tasks = opendir("/proc/self/task");
  while (tasks != nullptr && readdir(tasks) != nullptr) ++n;
  if (tasks != nullptr) closedir(tasks);
  return n;
}

class AsyncPageFault : public testing::Test {
 protected:
  void SetUp() override {
    low_ = map(low_size);
    away_ = map(away_size);
    userfaultfd_ = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY));
    if (userfaultfd_ < 0) GTEST_SKIP() << "no userfaultfd: " << strerror(errno);
    uffdio_api api{};
    api.api = UFFD_API;
    ASSERT_EQ(ioctl(userfaultfd_, UFFDIO_API, &api), 0) << strerror(errno);
    uffdio_register range{};
    range.range = {reinterpret_cast<std::uint64_t>(away_), away_size};
    range.mode = UFFDIO_REGISTER_MODE_MISSING;
    ASSERT_EQ(ioctl(userfaultfd_, UFFDIO_REGISTER, &range), 0) << strerror(errno);
    make_vm();
  }
  void TearDown() override {
    close_vm();
    if (userfaultfd_ >= 0) close(userfaultfd_);
    if (away_ != nullptr) munmap(away_, away_size);
    munmap(low_, low_size);
  }
  static std::uint8_t* map(std::size_t size) {
    return static_cast<std::uint8_t*>(
        mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  }
  void make_vm() {
    kvm_ = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    ASSERT_GE(kvm_, 0) << strerror(errno);
    ASSERT_EQ(ioctl(kvm_, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF), 1);
    ASSERT_EQ(ioctl(kvm_, KVM_CHECK_EXTENSION, KVM_CAP_ASYNC_PF_INT), 1);
    vm_ = ioctl(kvm_, KVM_CREATE_VM, 0);
    ASSERT_GE(vm_, 0) << strerror(errno);
    ASSERT_EQ(ioctl(vm_, KVM_SET_TSS_ADDR, 0xfffbd000), 0);
    ASSERT_EQ(ioctl(vm_, KVM_CREATE_IRQCHIP, 0), 0);
    kvm_userspace_memory_region slot{};
    slot.memory_size = low_size;
    slot.userspace_addr = reinterpret_cast<std::uint64_t>(low_);
    ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    slot.slot = 1;
    slot.guest_phys_addr = away_at;
    slot.memory_size = away_size;
    slot.userspace_addr = reinterpret_cast<std::uint64_t>(away_);
    ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
    vcpu_ = ioctl(vm_, KVM_CREATE_VCPU, 0);
    ASSERT_GE(vcpu_, 0) << strerror(errno);
    run_size_ = static_cast<std::size_t>(ioctl(kvm_, KVM_GET_VCPU_MMAP_SIZE, 0));
    run_ = static_cast<kvm_run*>(mmap(nullptr, run_size_, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu_, 0));
    ASSERT_NE(run_, MAP_FAILED);
    CpuidList cpuid;
    ASSERT_EQ(ioctl(kvm_, get_supported_cpuid, &cpuid), 0);
    ASSERT_EQ(ioctl(vcpu_, set_cpuid2, &cpuid), 0);
    write_guest();
  }
  void close_vm() {
    if (run_ != nullptr) munmap(run_, run_size_);
    run_ = nullptr;
    for (int* const fd : {&vcpu_, &vm_, &kvm_}) {
      if (*fd >= 0) close(*fd);
      *fd = -1;
    }
  }
  template <class T> void put(std::uint64_t at, T value) { std::memcpy(low_ + at, &value, sizeof value); }
  void gate(unsigned vector, const std::uint8_t* handler) {
    const auto at = static_cast<std::uint64_t>(0x1000 + (handler - async_guest));
    put<std::uint64_t>(idt_at + std::uint64_t{vector} * 8,
                       at | std::uint64_t{8} << 16 | std::uint64_t{0x8e00} << 32);
  }
  void write_guest() {
    std::memcpy(low_ + 0x1000, async_guest, static_cast<std::size_t>(async_guest_end - async_guest));
    put<std::uint32_t>(directory_at, 0x83);                   // pages of 4 MiB: memory
    put<std::uint32_t>(directory_at + 0x3fb * 4, 0xfec00093); // and the local APIC
    put<std::uint64_t>(gdt_at + 8, 0x00cf9b000000ffff);
    put<std::uint64_t>(gdt_at + 16, 0x00cf93000000ffff);
    gate(14, async_guest_fault);
    gate(0x40, async_guest_ready);
    kvm_sregs s{};
    ASSERT_EQ(ioctl(vcpu_, KVM_GET_SREGS, &s), 0);
    s.cs = {};
    s.cs.limit = 0xffffffff;
    s.cs.selector = 8;
    s.cs.type = 11;
    s.cs.present = s.cs.s = s.cs.g = s.cs.db = 1;
    s.ds = s.cs;
    s.ds.selector = 16;
    s.ds.type = 3;
    s.es = s.fs = s.gs = s.ss = s.ds;
    s.gdt.base = gdt_at;
    s.gdt.limit = 23;
    s.idt.base = idt_at;
    s.idt.limit = 0x7ff;
    s.cr0 = 0x80000011;
    s.cr3 = directory_at;
    s.cr4 = 0x10; // PSE
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_SREGS, &s), 0) << strerror(errno);
    kvm_regs r{};
    r.rip = 0x1000;
    r.rsp = 0x4000;
    r.rflags = 2;
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_REGS, &r), 0);
  }
  // What the guest writes while it runs.
  std::uint32_t seen(std::uint32_t GuestData::*field) {
    return std::atomic_ref(data()->*field).load(std::memory_order_acquire);
  }
  GuestData* data() { return reinterpret_cast<GuestData*>(low_ + data_at); }
  static bool wait_until(const std::function<bool()>& done) {
    for (int i = 0; i < 10000 && !done(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return done();
  }
  bool guest_goes_on() {
    const std::uint32_t work = seen(&GuestData::work);
    return wait_until([&] { return seen(&GuestData::work) != work; });
  }
  // The page that somebody waits for; nothing comes for ten seconds: none.
  std::optional<std::uint64_t> missing_page() {
    pollfd p{.fd = userfaultfd_, .events = POLLIN, .revents = 0};
    uffd_msg message{};
    if (poll(&p, 1, 10000) != 1 || read(userfaultfd_, &message, sizeof message) != sizeof message)
      return std::nullopt;
    return (message.arg.pagefault.address - reinterpret_cast<std::uint64_t>(away_)) / page;
  }
  void bring(std::uint64_t n, std::uint32_t value) {
    alignas(4096) static thread_local std::uint8_t source[page];
    std::memcpy(source, &value, sizeof value);
    uffdio_copy copy{};
    copy.dst = reinterpret_cast<std::uint64_t>(away_) + n * page;
    copy.src = reinterpret_cast<std::uint64_t>(source);
    copy.len = page;
    EXPECT_EQ(ioctl(userfaultfd_, UFFDIO_COPY, &copy), 0) << strerror(errno);
  }
  // Runs the guest, with somebody who brings pages.
  void run_with(std::uint32_t control, std::uint32_t mode, const std::function<void()>& pager) {
    data()->control = control;
    data()->mode = mode;
    std::thread other(pager);
    const int result = ioctl(vcpu_, KVM_RUN, 0);
    const int error = errno;
    other.join();
    ASSERT_EQ(result, 0) << strerror(error);
    ASSERT_EQ(run_->exit_reason, unsigned{KVM_EXIT_IO});
  }

  std::uint8_t *low_ = nullptr, *away_ = nullptr;
  int userfaultfd_ = -1, kvm_ = -1, vm_ = -1, vcpu_ = -1;
  kvm_run* run_ = nullptr;
  std::size_t run_size_ = 0;
};

TEST_F(AsyncPageFault, GuestGoesOnWhileAPageIsAway) {
  run_with(structure_at | on, 1, [this] {
    const auto n = missing_page();
    EXPECT_EQ(n, 0u);
    EXPECT_TRUE(wait_until([this] { return seen(&GuestData::faults) == 1; }));
    EXPECT_TRUE(guest_goes_on());
    EXPECT_EQ(seen(&GuestData::readies), 0u);
    bring(0, 0x12345678);
  });
  EXPECT_EQ(run_->io.port, 0x10);
  EXPECT_EQ(data()->result[0], 0x12345678u);
  EXPECT_EQ(data()->faults, 1u);
  EXPECT_EQ(data()->readies, 1u);
  EXPECT_EQ(data()->ready_token[0], data()->fault_token[0]);
  EXPECT_NE(data()->ready_token[0], 0u);
  EXPECT_EQ(data()->wake_alls, 1u) << "the answer to the MSR";
}

TEST_F(AsyncPageFault, TwoPagesAreAwayAtOnce) {
  run_with(structure_at | on, 2, [this] {
    const auto one = missing_page(); // by threads, so in any order
    const auto another = missing_page();
    EXPECT_EQ(one.value_or(9) + another.value_or(9), 1u);
    EXPECT_TRUE(wait_until([this] { return seen(&GuestData::faults) == 2; }));
    EXPECT_TRUE(guest_goes_on());
    bring(1, 0x22222222);
    EXPECT_TRUE(wait_until([this] { return seen(&GuestData::readies) == 1; }));
    EXPECT_TRUE(guest_goes_on());
    bring(0, 0x11111111);
  });
  EXPECT_EQ(run_->io.port, 0x10);
  EXPECT_EQ(data()->result[0], 0x11111111u);
  EXPECT_EQ(data()->result[1], 0x22222222u);
  EXPECT_EQ(data()->readies, 2u);
  EXPECT_EQ(data()->ready_token[0], data()->fault_token[1]);
  EXPECT_EQ(data()->ready_token[1], data()->fault_token[0]);
  EXPECT_NE(data()->ready_token[0], data()->ready_token[1]);
}

TEST_F(AsyncPageFault, GuestThatDoesNotAskForItWaits) {
  for (const std::uint32_t control : {0u, std::uint32_t{structure_at} | KVM_ASYNC_PF_ENABLED}) {
    ASSERT_NO_FATAL_FAILURE(close_vm());
    std::memset(low_, 0, low_size);
    madvise(away_, away_size, MADV_DONTNEED);
    ASSERT_NO_FATAL_FAILURE(make_vm());
    run_with(control, 1, [this] {
      EXPECT_EQ(missing_page(), 0u);
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_EQ(seen(&GuestData::faults), 0u);
      EXPECT_EQ(seen(&GuestData::work), 0u);
      bring(0, 0x87654321);
    });
    EXPECT_EQ(run_->io.port, 0x10);
    EXPECT_EQ(data()->result[0], 0x87654321u);
    EXPECT_EQ(data()->faults, 0u);
  }
}

TEST_F(AsyncPageFault, PageComesWhileTheVcpuIsOutside) {
  run_with(structure_at | on, 3, [] {});
  ASSERT_EQ(run_->io.port, 0x12);
  EXPECT_EQ(missing_page(), 0u);
  bring(0, 7);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(seen(&GuestData::readies), 0u) << "it does not run";
  run_with(structure_at | on, 1, [] {});
  EXPECT_EQ(run_->io.port, 0x10);
  EXPECT_EQ(data()->result[0], 7u);
  EXPECT_EQ(data()->readies, 1u);
}

TEST_F(AsyncPageFault, VmEndsWhileAPageIsAway) {
  const std::size_t before = threads();
  run_with(structure_at | on, 3, [] {});
  ASSERT_EQ(run_->io.port, 0x12);
  EXPECT_EQ(missing_page(), 0u);
  close_vm(); // does not wait for a page that never comes
  // Another VM is not disturbed.
  std::memset(low_, 0, low_size);
  ASSERT_NO_FATAL_FAILURE(make_vm());
  run_with(structure_at | on, 1, [this] { bring(0, 9); });
  EXPECT_EQ(data()->result[0], 9u);
  EXPECT_TRUE(wait_until([&] { return threads() <= before + 1; })) << "of the second VM";
  close_vm();
  EXPECT_TRUE(wait_until([&] { return threads() <= before; }));
}

TEST_F(AsyncPageFault, MemoryGoesWhileAPageIsAway) {
  const std::size_t before = threads();
  run_with(structure_at | on, 3, [] {});
  ASSERT_EQ(run_->io.port, 0x12);
  EXPECT_EQ(missing_page(), 0u);
  munmap(away_, away_size);
  away_ = nullptr;
  close(userfaultfd_); // whoever waited tries again, where nothing is
  userfaultfd_ = -1;
  // The guest hears of it, tries again, and that is the end.
  data()->mode = 1;
  EXPECT_EQ(ioctl(vcpu_, KVM_RUN, 0), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(data()->readies, 1u);
  EXPECT_EQ(data()->faults, 1u);
  close_vm();
  EXPECT_TRUE(wait_until([&] { return threads() <= before; }));
}

} // namespace
} // namespace client
