// SPDX-License-Identifier: Apache-2.0
// Code that a VMM writes as a device would: while the guest executes it, and then an exit or an interrupt
// says so. What the guest executes from then on is the new code. In 64-bit mode, which may be translated.
#include "guest.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <csignal>
#include <functional>
#include <mutex>
#include <pthread.h>
#include <sys/eventfd.h>
#include <thread>
#include <vector>

namespace client {
namespace {

// RBP: a function. RBX: counters, see Shared. R12: where the end of an interrupt is told.
asm(R"(
  .pushsection .rodata
dma_loop:                     # calls all the time
  call *%rbp
  movq %rax, 8(%rbx)
  incq (%rbx)
  jmp dma_loop
dma_loop_end:

dma_batch:                    # 100 calls, and their sum to a port
  movl $100, %ecx
  xorl %edx, %edx
1:
  call *%rbp
  addl %eax, %edx
  decl %ecx
  jnz 1b
  movl %edx, %eax
  outl %eax, $0x10
  jmp dma_batch
dma_batch_end:

dma_handler:                  # of the interrupt
  pushq %rax
  call *%rbp
  movq %rax, 24(%rbx)
  incq 16(%rbx)
  movl $0, (%r12)
  popq %rax
  iretq
dma_handler_end:

dma_sum:                      # calls the function each 1024 bytes from 0x40000 to 0x50000
  pushq %rsi
  pushq %rdx
  movl $0x40000, %esi
  xorl %edx, %edx
1:
  call *%rsi
  addq %rax, %rdx
  addl $1024, %esi
  cmpl $0x50000, %esi
  jne 1b
  movq %rdx, %rax
  popq %rdx
  popq %rsi
  ret
dma_sum_end:
  .popsection
)");
extern "C" const std::uint8_t dma_loop[], dma_loop_end[], dma_batch[], dma_batch_end[], dma_handler[],
    dma_handler_end[], dma_sum[], dma_sum_end[];

constexpr unsigned vector = 0x50;
// What signal handlers are to stop.
std::atomic<kvm_run*> running = nullptr;

class CodeByDma : public Guest {
 protected:
  static constexpr std::uint64_t stack_at = 0x8000, shared_at = 0x9000, pml4_at = 0x10000, pdpt_at = 0x11000,
                                 low_at = 0x12000, high_at = 0x13000, idt_at = 0x14000, gdt_at = 0x15000,
                                 handler_at = 0x16000, no_apic_at = 0x17000, sum_at = 0x18000,
                                 function_at = 0x40000, functions_end = 0x50000;
  static constexpr std::uint64_t apic_at = 0xfee00000;
  static constexpr std::size_t functions = 64, function_stride = (functions_end - function_at) / functions;

  struct Shared {
    std::uint64_t calls, last, interrupts, at_interrupt;
  };

  void SetUp() override {
    Guest::SetUp();
    if (HasFatalFailure()) return;
    CpuidList list;
    ASSERT_EQ(ioctl(kvm_, get_supported_cpuid, &list), 0);
    ASSERT_EQ(ioctl(vcpu_, set_cpuid2, &list), 0);
    go_to_64_bit_mode();
    put(handler_at, dma_handler, dma_handler_end);
    put(sum_at, dma_sum, dma_sum_end);
    for (std::size_t i = 0; i < functions; ++i) {
      std::uint8_t* const f = memory_ + function_at + i * function_stride;
      f[constant_at - 1] = 0xb8; // mov eax, constant
      f[constant_at + 4] = 0xc3; // ret
    }
  }

  void put(std::uint64_t at, const std::uint8_t* first, const std::uint8_t* end) {
    std::copy(first, end, memory_ + at);
  }
  void put_number(std::uint64_t at, std::uint64_t value) { std::memcpy(memory_ + at, &value, sizeof value); }

  // All of the memory, and the page with the local APIC, where they are; one interrupt.
  void go_to_64_bit_mode() {
    constexpr std::uint64_t table = 3, large = 0x83, uncached = 0x10;
    put_number(pml4_at, pdpt_at | table);
    put_number(pdpt_at, low_at | table);
    put_number(pdpt_at + 3 * 8, high_at | table);
    put_number(low_at, large);
    put_number(high_at + (apic_at >> 21) % 512 * 8, apic_at | large | uncached);
    put_number(gdt_at + 8, 0x00af9b000000ffff);
    put_number(gdt_at + 16, 0x00cf93000000ffff);
    put_number(idt_at + vector * 16,
               (handler_at & 0xffff) | 8 << 16 | std::uint64_t{0x8e00} << 32 | handler_at >> 16 << 48);
    kvm_sregs s;
    ASSERT_EQ(ioctl(vcpu_, KVM_GET_SREGS, &s), 0);
    s.cr0 = 0x80000011;
    s.cr3 = pml4_at;
    s.cr4 = 0x20;
    s.efer = 0x500;
    kvm_segment data{};
    data.limit = 0xffffffff;
    data.selector = 16;
    data.type = 3;
    data.present = data.s = data.db = data.g = 1;
    s.ds = s.es = s.fs = s.gs = s.ss = data;
    s.cs = data;
    s.cs.selector = 8;
    s.cs.type = 11;
    s.cs.db = 0;
    s.cs.l = 1;
    s.tr.type = 11;
    s.gdt = {gdt_at, 23, {}};
    s.idt = {idt_at, 0xfff, {}};
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_SREGS, &s), 0);
  }

  // The code that is put to code_at calls `function`.
  void start(std::uint64_t function, std::uint64_t end_of_interrupt = no_apic_at) {
    kvm_regs r{};
    r.rip = code_at;
    r.rsp = stack_at;
    r.rflags = 0x202;
    r.rbp = function;
    r.rbx = shared_at;
    r.r12 = end_of_interrupt;
    set_regs(r);
  }

  // Aligned, so that it is written at once.
  static constexpr std::size_t constant_at = 8;
  static constexpr std::uint64_t first_function = function_at + constant_at - 1;
  void write_constant(std::uint32_t value) {
    __atomic_store_n(reinterpret_cast<std::uint32_t*>(memory_ + function_at + constant_at), value,
                     __ATOMIC_RELEASE);
  }
  static std::uint32_t constant(unsigned round) { return (round + 1) * 0x9e3779b1; }

  std::uint64_t shared(std::uint64_t Shared::*member) {
    return __atomic_load_n(&(reinterpret_cast<Shared*>(memory_ + shared_at)->*member), __ATOMIC_ACQUIRE);
  }
  bool wait_until_at_least(std::uint64_t Shared::*member, std::uint64_t value) {
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (shared(member) < value) {
      if (std::chrono::steady_clock::now() > end) return false;
      std::this_thread::yield();
    }
    return true;
  }

  // Runs the vCPU in this thread; `device` in another one, which ends both when it returns. What interrupts
  // KVM_RUN comes to `interrupted`.
  void run_with_device(
      const std::function<void()>& device, const std::function<void()>& interrupted = [] {}) {
    running = run_;
    struct sigaction action {};
    struct sigaction before {};
    action.sa_handler = [](int) {
      if (kvm_run* const r = running) r->immediate_exit = 1;
    };
    sigaction(SIGUSR1, &action, &before);
    vcpu_thread_ = pthread_self();
    std::atomic<bool> done = false;
    std::thread thread([&] {
      device();
      done = true;
      kick();
    });
    while (!done) {
      const int result = enter();
      if (result == 0 && run_->exit_reason == KVM_EXIT_IRQ_WINDOW_OPEN) {
        interrupted();
      } else if (result == -1 && errno == EINTR) {
        run_->immediate_exit = 0;
        interrupted();
      } else {
        ADD_FAILURE() << "result " << result << ", errno " << errno << ", exit " << run_->exit_reason;
        break;
      }
    }
    thread.join();
    run_->immediate_exit = 0;
    sigaction(SIGUSR1, &before, nullptr);
    running = nullptr;
  }
  void kick() { pthread_kill(vcpu_thread_, SIGUSR1); }

  // A round of a device: `write` changes the code, `interrupt` says so. True if the guest then executes what
  // makes `result`, in the handler and where it was interrupted.
  bool round(const std::function<void()>& write, const std::function<void()>& interrupt,
             std::uint64_t result) {
    // Often enough that it is translated.
    if (!wait_until_at_least(&Shared::calls, shared(&Shared::calls) + 40)) return false;
    const std::uint64_t interrupts = shared(&Shared::interrupts);
    write();
    interrupt();
    if (!wait_until_at_least(&Shared::interrupts, interrupts + 1)) return false;
    EXPECT_EQ(shared(&Shared::at_interrupt), result);
    // The call that was interrupted may end with what was there.
    if (!wait_until_at_least(&Shared::calls, shared(&Shared::calls) + 2)) return false;
    EXPECT_EQ(shared(&Shared::last), result);
    return !HasFailure();
  }

  pthread_t vcpu_thread_{};
};

// The interrupt comes from a device's eventfd.
class CodeByDmaWithIrqfd : public CodeByDma {
 protected:
  static constexpr unsigned gsi = 24;
  static constexpr unsigned long set_gsi_routing =
      _IOC(_IOC_WRITE, KVMIO, 0x6a, 8); // see get_supported_cpuid
  struct Routing {
    std::uint32_t count = 1, flags = 0;
    kvm_irq_routing_entry entry{};
  };

  void prepare_vm() override {
    ASSERT_EQ(ioctl(vm_, KVM_CREATE_IRQCHIP, 0), 0) << strerror(errno);
    Routing routing;
    routing.entry.gsi = gsi;
    routing.entry.type = KVM_IRQ_ROUTING_MSI;
    routing.entry.u.msi.address_lo = apic_at;
    routing.entry.u.msi.data = vector;
    ASSERT_EQ(ioctl(vm_, set_gsi_routing, &routing), 0) << strerror(errno);
    event_ = eventfd(0, EFD_CLOEXEC);
    kvm_irqfd irqfd{};
    irqfd.fd = static_cast<std::uint32_t>(event_);
    irqfd.gsi = gsi;
    ASSERT_EQ(ioctl(vm_, KVM_IRQFD, &irqfd), 0) << strerror(errno);
  }
  void SetUp() override {
    CodeByDma::SetUp();
    if (HasFatalFailure()) return;
    kvm_lapic_state apic;
    ASSERT_EQ(ioctl(vcpu_, KVM_GET_LAPIC, &apic), 0);
    apic.regs[0xf1] |= 1; // spurious vector register: enabled
    ASSERT_EQ(ioctl(vcpu_, KVM_SET_LAPIC, &apic), 0);
  }
  void TearDown() override {
    close(event_);
    CodeByDma::TearDown();
  }
  void interrupt() {
    const std::uint64_t one = 1;
    ASSERT_EQ(write(event_, &one, sizeof one), static_cast<ssize_t>(sizeof one));
  }

  int event_ = -1;
};

TEST_F(CodeByDma, BetweenTwoExits) {
  put(code_at, dma_batch, dma_batch_end);
  start(first_function);
  std::mutex lock;
  std::condition_variable changed;
  unsigned wanted = 0;
  unsigned done = 0;
  constexpr unsigned rounds = 2000;
  std::thread device([&] {
    std::unique_lock guard(lock);
    for (unsigned i = 1; i <= rounds; ++i) {
      changed.wait(guard, [&] { return wanted == i; });
      write_constant(constant(i));
      done = i;
      changed.notify_one();
    }
  });
  for (unsigned i = 1; i <= rounds; ++i) {
    {
      std::unique_lock guard(lock);
      wanted = i;
      changed.notify_one();
      changed.wait(guard, [&] { return done == i; });
    }
    if (HasFailure()) continue; // the other thread goes on to the end
    EXPECT_EQ(enter(), 0);
    EXPECT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_IO));
    std::uint32_t sum = 0;
    std::memcpy(&sum, io_data(), sizeof sum);
    EXPECT_EQ(sum, 100 * constant(i)) << "round " << i;
  }
  device.join();
}

TEST_F(CodeByDma, ThenKvmInterrupt) {
  put(code_at, dma_loop, dma_loop_end);
  start(first_function);
  std::atomic<bool> raised = false;
  run_with_device(
      [&] {
        for (unsigned i = 0; i < 300; ++i) {
          const bool good = round([&] { write_constant(constant(i)); },
                                  [&] {
                                    raised = true;
                                    kick();
                                  },
                                  constant(i));
          EXPECT_TRUE(good) << "round " << i;
          if (!good) break;
        }
      },
      [&] {
        if (!raised) return;
        run_->request_interrupt_window = run_->ready_for_interrupt_injection == 0;
        if (run_->ready_for_interrupt_injection == 0) return;
        raised = false;
        kvm_interrupt interrupt{vector};
        EXPECT_EQ(ioctl(vcpu_, KVM_INTERRUPT, &interrupt), 0) << strerror(errno);
      });
}

TEST_F(CodeByDmaWithIrqfd, ThenInterrupt) {
  put(code_at, dma_loop, dma_loop_end);
  start(first_function, apic_at + 0xb0);
  run_with_device([&] {
    for (unsigned i = 0; i < 1000; ++i) {
      const bool good = round([&] { write_constant(constant(i)); }, [&] { interrupt(); }, constant(i));
      EXPECT_TRUE(good) << "round " << i;
      if (!good) break;
    }
  });
}

// As QEMU reads from a disk: the kernel writes to the guest's memory, sixteen pages of functions at once.
TEST_F(CodeByDmaWithIrqfd, ReadFromAFile) {
  put(code_at, dma_loop, dma_loop_end);
  start(sum_at, apic_at + 0xb0);
  for (std::size_t i = 0; i < functions; ++i) { // each begins where its call goes
    const std::uint8_t jump[] = {0xeb, constant_at - 3};
    std::copy(std::begin(jump), std::end(jump), memory_ + function_at + i * function_stride);
  }
  const int file = memfd_create("disk", MFD_CLOEXEC);
  ASSERT_GE(file, 0);
  std::vector<std::uint8_t> block(memory_ + function_at, memory_ + functions_end);
  run_with_device([&] {
    for (unsigned i = 0; i < 300; ++i) {
      std::uint64_t sum = 0;
      for (std::size_t f = 0; f < functions; ++f) {
        const std::uint32_t value =
            constant(i) + static_cast<std::uint32_t>(f * (i % 3)); // sometimes all the same
        std::memcpy(&block[f * function_stride + constant_at], &value, sizeof value);
        sum += value;
      }
      const bool good = round(
          [&] {
            EXPECT_EQ(pwrite(file, block.data(), block.size(), 0), static_cast<ssize_t>(block.size()));
            EXPECT_EQ(pread(file, memory_ + function_at, block.size(), 0),
                      static_cast<ssize_t>(block.size()));
          },
          [&] { interrupt(); }, sum);
      EXPECT_TRUE(good) << "round " << i;
      if (!good) break;
    }
  });
  close(file);
}

} // namespace
} // namespace client
