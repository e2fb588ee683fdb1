// SPDX-License-Identifier: Apache-2.0
// The client of bench/exits: nanoseconds of one KVM_RUN that comes back at once, for each reason.
//
// "loop N" is the bare loop: the same guest instructions, out and jmp, whose writes the hypervisor takes
// itself (a zone of KVM_REGISTER_COALESCED_MMIO). Its KVM_RUN comes back when the ring is full: what that
// takes, less one exit, by the number of writes. What an exit costs is "pio" less this.
#include "kvm_client.h"

namespace {

using namespace bench;

constexpr std::uint16_t port = 0x10;
constexpr std::uint64_t mmio_at = 0x10000;

struct Guest : Vm {
  static constexpr std::size_t size = 65536;
  std::uint8_t* ram = memory(size);

  Guest() {
    kvm_userspace_memory_region r{};
    r.memory_size = size;
    r.userspace_addr = reinterpret_cast<std::uint64_t>(ram);
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &r), "KVM_SET_USER_MEMORY_REGION");
    kvm_sregs s;
    check(ioctl(vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
    s.cs.base = s.cs.selector = 0;
    s.ds.base = mmio_at;
    s.ds.selector = mmio_at >> 4;
    check(ioctl(vcpu, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
  }
  ~Guest() { munmap(ram, size); }

  template <std::size_t n> void start(const std::uint8_t (&code)[n]) {
    std::memcpy(ram + 0x1000, code, n);
    kvm_regs g{};
    g.rip = 0x1000;
    g.rflags = 2;
    g.rdx = port;
    check(ioctl(vcpu, KVM_SET_REGS, &g), "KVM_SET_REGS");
  }
  void enter(std::uint32_t reason) const {
    check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
    if (run->exit_reason != reason) {
      std::fprintf(stderr, "KVM_RUN gave exit reason %u, not %u\n", run->exit_reason, reason);
      std::exit(3);
    }
  }
};

constexpr std::uint8_t out_loop[] = {0xee, 0xeb, 0xfd};               // out dx, al; jmp to it
constexpr std::uint8_t store_loop[] = {0xa2, 0x00, 0x00, 0xeb, 0xfb}; // mov [0], al; jmp to it

template <class F> double measure(unsigned calls, F&& f) {
  for (unsigned i = 0; i < calls / 10; ++i) f();
  const std::uint64_t start = now_ns();
  for (unsigned i = 0; i < calls; ++i) f();
  return static_cast<double>(now_ns() - start) / calls;
}

} // namespace

int main() {
  constexpr unsigned calls = 50'000;
  Guest g;
  g.start(out_loop);
  const double pio = measure(calls, [&] { g.enter(KVM_EXIT_IO); });
  std::printf("pio %.1f\n", pio);
  g.start(store_loop);
  std::printf("mmio %.1f\n", measure(calls, [&] { g.enter(KVM_EXIT_MMIO); }));
  g.run->immediate_exit = 1;
  ioctl(g.vcpu, KVM_RUN, 0); // finishes the store
  std::printf("immediate_exit %.1f\n", measure(calls, [&] {
                if (ioctl(g.vcpu, KVM_RUN, 0) != -1 || errno != EINTR) std::exit(3);
              }));
  g.run->immediate_exit = 0;

  kvm_coalesced_mmio_zone zone{};
  zone.addr = port;
  zone.size = 1;
  zone.pio = 1;
  const int offset = ioctl(g.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO);
  if (offset <= 0 || ioctl(g.kvm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_PIO) <= 0) return 0;
  check(ioctl(g.vm, KVM_REGISTER_COALESCED_MMIO, &zone), "KVM_REGISTER_COALESCED_MMIO");
  auto* const ring =
      reinterpret_cast<kvm_coalesced_mmio_ring*>(reinterpret_cast<std::uint8_t*>(g.run) + offset * 4096);
  g.start(out_loop);
  g.enter(KVM_EXIT_IO);
  const std::uint32_t before = ring->last;
  ring->first = before;
  g.enter(KVM_EXIT_IO);
  constexpr std::uint32_t entries = (4096 - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio);
  const std::uint32_t taken = (ring->last + entries - before) % entries;
  if (taken == 0) return 0;
  const double filled = measure(2000, [&] {
    ring->first = ring->last;
    g.enter(KVM_EXIT_IO);
  });
  std::printf("loop %.1f\n", (filled - pio) / taken);
  return 0;
}
