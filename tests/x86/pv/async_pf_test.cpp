// SPDX-License-Identifier: Apache-2.0
#include "kvm/residency.h"
#include "pv_guest.h"

#include <chrono>
#include <functional>
#include <set>
#include <thread>

namespace ring3::x86::test {
namespace {

constexpr u64 enabled = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;
constexpr u64 always = enabled | KVM_ASYNC_PF_SEND_ALWAYS;
constexpr u64 interrupts_on = 0x202;

// The pages are such as a userfaultfd would serve, but the host itself brings them, at once. The guest has no
// IDT, so that an access which is put off, and nothing else here, is a shutdown, with the token in CR2.
class AsyncPfGuest : public PvGuest {
 protected:
  static constexpr u64 pages_at = 0x40000, pages = 80;
  static constexpr u64 reason_at = data_at, token_at = data_at + 4;
  static constexpr u8 vector = 0xf3;

  AsyncPfGuest() {
    madvise(memory_, memory_size, MADV_NOHUGEPAGE);
    kvm::Residency::of_process().registered(reinterpret_cast<u64>(memory_ + pages_at), pages << 12);
  }
  ~AsyncPfGuest() override {
    kvm::Residency::of_process().unregistered(reinterpret_cast<u64>(memory_), memory_size);
  }

  void begin(u64 control, u32 vcpus = 1) {
    start(vcpus, true);
    for (u32 i = 0; i < vcpus; ++i) {
      kvm_lapic_state apic{};
      ASSERT_EQ(vcpu_[i]->get_lapic(apic), 0);
      apic.regs[0xf1] |= 1; // software-enabled
      ASSERT_EQ(vcpu_[i]->set_lapic(apic), 0);
    }
    ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_INT, vector));
    ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | control));
    if ((control & enabled) == enabled) take_wake_all();
  }
  void take_wake_all() {
    idle();
    ASSERT_EQ(get<u32>(token_at), ~u32{0});
    ASSERT_TRUE(interrupt_requested());
    acknowledge();
  }
  void drop_interrupt() {
    kvm_lapic_state apic{};
    vcpu_[0]->get_lapic(apic);
    apic.regs[0x200 + vector / 32 * 16 + vector % 32 / 8] = 0;
    vcpu_[0]->set_lapic(apic);
  }
  // What the guest's interrupt handler does.
  void acknowledge() {
    drop_interrupt();
    put<u32>(token_at, 0);
    run(Code().wrmsr(MSR_KVM_ASYNC_PF_ACK, 1).exit());
  }
  // The guest comes in and out, without interrupts. (With the OUT alone it would go on behind the last one.)
  void idle() { ASSERT_EQ(run(Code().raw({0x90}).exit()), u32{KVM_EXIT_IO}); }
  bool interrupt_requested() {
    kvm_lapic_state apic{};
    vcpu_[0]->get_lapic(apic);
    return (static_cast<u8>(apic.regs[0x200 + vector / 32 * 16 + vector % 32 / 8]) >> vector % 8 & 1) != 0;
  }
  bool wait_until(const std::function<bool()>& done) {
    for (int i = 0; i < 5000 && !done(); ++i) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return done();
  }
  u32 wait_for_ready() {
    wait_until([&] {
      idle();
      return get<u32>(token_at) != 0;
    });
    return get<u32>(token_at);
  }
  bool resident(u64 n) {
    unsigned char there = 0;
    mincore(memory_ + page(n), page_size, &there);
    return (there & 1) != 0;
  }
  static u64 page(u64 n) { return pages_at + n * page_size; }
  static Code load(u64 n) { return Code().rbx(page(n)).raw({0x48, 0x8b, 0x03}).exit(); }

  // The token, or 0 if the access was made.
  u32 access(const Code& c, unsigned ring = 3, u64 rflags = interrupts_on) {
    code(c);
    enter(0, code_at, ring, rflags | (ring == 3 ? 0x3000 : 0)); // ring 3 may use ports
    kvm_sregs s{};
    vcpu_[0]->get_sregs(s);
    s.cr2 = 0;
    vcpu_[0]->set_sregs(s);
    if (run() != KVM_EXIT_SHUTDOWN) return 0;
    vcpu_[0]->get_sregs(s);
    return static_cast<u32>(s.cr2);
  }
};

TEST_F(AsyncPfGuest, AccessIsPutOffAndTheGuestHearsOfThePage) {
  begin(enabled);
  const u32 token = access(load(0));
  ASSERT_NE(token, 0u);
  EXPECT_EQ(get<u32>(reason_at), u32{KVM_PV_REASON_PAGE_NOT_PRESENT});
  EXPECT_EQ(wait_for_ready(), token);
  EXPECT_TRUE(interrupt_requested());
  EXPECT_TRUE(resident(0));
  acknowledge();
  put<u32>(reason_at, 0);
  EXPECT_EQ(access(load(0)), 0u) << "it is there now";
  EXPECT_EQ(get<u32>(reason_at), 0u);
  EXPECT_EQ(get<u32>(token_at), 0u);
}

TEST_F(AsyncPfGuest, StoresUpdatesAndFetchesAreAccessesToo) {
  begin(enabled);
  put<u32>(token_at, 5);                                                           // no word of any page
  EXPECT_NE(access(Code().rbx(page(0)).raw({0x48, 0x89, 0x03}).exit()), 0u);       // mov [rbx], rax
  EXPECT_NE(access(Code().rbx(page(1)).raw({0xf0, 0x48, 0xff, 0x03}).exit()), 0u); // lock inc qword [rbx]
  EXPECT_NE(access(Code().rbx(page(2)).raw({0xff, 0xe3})), 0u);                    // jmp rbx
  // The second of two pages: nothing has been written to the first.
  put<u64>(page(3), 0);
  EXPECT_NE(access(Code().rbx(page(4) - 4).rax(~u64{0}).raw({0x48, 0x89, 0x03}).exit()), 0u);
  EXPECT_EQ(get<u32>(page(4) - 4), 0u);
}

TEST_F(AsyncPfGuest, KernelWaitsUnlessItWantsTheEventAlways) {
  begin(enabled);
  EXPECT_EQ(access(load(0), 0), 0u);
  ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | always));
  take_wake_all();
  EXPECT_NE(access(load(1), 0), 0u);
}

TEST_F(AsyncPfGuest, GuestThatTakesNoInterruptsWaits) {
  begin(always);
  EXPECT_EQ(access(load(0), 3, 2), 0u);
  EXPECT_EQ(access(load(1), 0, 2), 0u);
  EXPECT_EQ(access(Code().rbx(page(2)).raw({0xfb, 0x48, 0x8b, 0x03}).exit(), 0, 2), 0u) << "behind STI";
  EXPECT_NE(access(Code().rbx(page(3)).raw({0xfb, 0x90, 0x48, 0x8b, 0x03}).exit(), 0, 2), 0u);
}

TEST_F(AsyncPfGuest, WithoutPagingOrInterruptDeliveryNothingIsPutOff) {
  begin(KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_SEND_ALWAYS);
  EXPECT_EQ(access(load(0)), 0u);
  ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | always));
  take_wake_all();
  kvm_sregs s{};
  code(Code().raw({0xa1, 0x00, 0x10, 0x04, 0x00, 0xe6, 0x10})); // mov eax, [0x41000]
  enter(0, code_at, 0, interrupts_on);
  vcpu_[0]->get_sregs(s);
  s.cr0 = 0x11;
  s.efer = 0;
  s.cs.l = 0;
  s.cs.db = 1;
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
}

TEST_F(AsyncPfGuest, EventsOnTheirWayInWait) {
  begin(always);
  // The stack of an interrupt that is delivered is missing; its handler is not, and nor is the IDT.
  constexpr u64 idt = 0x20000, gdt = 0x21000, handler = 0x3000;
  code(Code().exit(), handler);
  put<u64>(gdt + 8, 0x00af9b000000ffff);
  put<u64>(idt + 0x80 * 16, (u64{handler} & 0xffff) | u64{8} << 16 | u64{0x8e00} << 32);
  put<u64>(idt + 0x80 * 16 + 8, 0);
  code(Code().raw({0xcd, 0x80}));
  enter(0, code_at, 0, interrupts_on);
  kvm_sregs s{};
  vcpu_[0]->get_sregs(s);
  s.idt = {.base = idt, .limit = 0xfff, .padding = {}};
  s.gdt = {.base = gdt, .limit = 0xfff, .padding = {}};
  ASSERT_EQ(vcpu_[0]->set_sregs(s), 0);
  kvm_regs r{};
  vcpu_[0]->get_regs(r);
  r.rsp = page(1);
  ASSERT_EQ(vcpu_[0]->set_regs(r), 0);
  EXPECT_EQ(run(), u32{KVM_EXIT_IO});
  EXPECT_TRUE(resident(0));
}

TEST_F(AsyncPfGuest, OneReadyAtATime) {
  begin(enabled);
  const u32 first = access(load(0));
  ASSERT_EQ(wait_for_ready(), first);
  drop_interrupt();
  const u32 second = access(load(1));
  ASSERT_NE(second, 0u);
  EXPECT_NE(second, first);
  ASSERT_TRUE(wait_until([&] { return resident(1); }));
  for (int i = 0; i < 5; ++i) idle();
  EXPECT_EQ(get<u32>(token_at), first) << "the guest has not taken note yet";
  acknowledge();
  EXPECT_EQ(wait_for_ready(), second);
}

TEST_F(AsyncPfGuest, HaltedGuestIsWoken) {
  begin(enabled);
  const u32 token = access(load(0));
  ASSERT_NE(token, 0u);
  // HLT with interrupts: the vCPU comes out when it has one to deliver, which without an IDT is its end.
  code(Code().hlt());
  enter(0, code_at, 0, interrupts_on);
  EXPECT_EQ(run(), u32{KVM_EXIT_SHUTDOWN});
  EXPECT_EQ(get<u32>(token_at), token);
}

TEST_F(AsyncPfGuest, PageThatIsOnItsWayIsWaitedFor) {
  begin(enabled);
  put<u32>(token_at, 5); // no word of any page
  ASSERT_NE(access(load(0)), 0u);
  ASSERT_TRUE(wait_until([&] { return resident(0); }));
  madvise(memory_ + page(0), page_size, MADV_DONTNEED);
  put<u32>(reason_at, 0);
  EXPECT_EQ(access(load(0)), 0u);
  EXPECT_EQ(get<u32>(reason_at), 0u);
}

TEST_F(AsyncPfGuest, NoMoreThanSixtyFourAreOutstanding) {
  begin(enabled);
  put<u32>(token_at, 5);
  std::set<u32> tokens;
  u64 n = 0;
  for (; n < AsyncPf::max_outstanding; ++n) {
    const u32 token = access(load(n));
    ASSERT_NE(token, 0u) << n;
    EXPECT_EQ(token & 0xfff, 0u) << "vCPU 0";
    EXPECT_TRUE(tokens.insert(token).second);
    ASSERT_TRUE(wait_until([&] { return resident(n); })) << "no more than a few threads";
  }
  EXPECT_EQ(access(load(n)), 0u);
  put<u32>(token_at, 0);
  EXPECT_EQ(tokens.count(wait_for_ready()), 1u);
  drop_interrupt();
  EXPECT_NE(access(load(n + 1)), 0u);
}

TEST_F(AsyncPfGuest, EnablingWakesEverybody) {
  begin(enabled);
  ASSERT_NE(access(load(0)), 0u);
  ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at)); // forgets the page
  ASSERT_TRUE(wait_until([&] { return resident(0); }));
  idle();
  EXPECT_EQ(get<u32>(token_at), 0u);
  EXPECT_FALSE(interrupt_requested());
  ASSERT_TRUE(set_msr(MSR_KVM_ASYNC_PF_EN, data_at | enabled));
  take_wake_all();
  idle();
  EXPECT_EQ(get<u32>(token_at), 0u);
  EXPECT_FALSE(interrupt_requested());
  // Also from within the guest, and with the value that it has already.
  run(Code().wrmsr(MSR_KVM_ASYNC_PF_EN, data_at | enabled).exit());
  take_wake_all();
}

TEST_F(AsyncPfGuest, InitForgets) {
  begin(enabled);
  ASSERT_NE(access(load(0)), 0u);
  ASSERT_TRUE(wait_until([&] { return resident(0); }));
  vcpu_[0]->post_init();
  vcpu_[0]->kick();
  EXPECT_EQ(vcpu_[0]->run(), -EINTR);
  EXPECT_EQ(get_msr(MSR_KVM_ASYNC_PF_EN), 0u);
  EXPECT_EQ(get_msr(MSR_KVM_ASYNC_PF_INT), 0u);
}

TEST_F(AsyncPfGuest, NothingIsSaidThroughAnApicThatIsOff) {
  begin(enabled);
  ASSERT_NE(access(load(0)), 0u);
  kvm_lapic_state apic{};
  vcpu_[0]->get_lapic(apic);
  apic.regs[0xf1] &= ~1;
  vcpu_[0]->set_lapic(apic);
  ASSERT_TRUE(wait_until([&] { return resident(0); }));
  for (int i = 0; i < 20; ++i) {
    idle();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(get<u32>(token_at), 0u);
}

TEST_F(AsyncPfGuest, StructureThatIsGoneMeansWaiting) {
  begin(enabled);
  // The slot shrinks; the structure was in what is not there any more.
  kvm_userspace_memory_region slot{};
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  slot.memory_size = data_at;
  slot.userspace_addr = reinterpret_cast<u64>(memory_);
  ASSERT_EQ(vm_->set_user_memory_region(slot), 0);
  EXPECT_EQ(access(load(0)), 0u);
}

} // namespace
} // namespace ring3::x86::test
