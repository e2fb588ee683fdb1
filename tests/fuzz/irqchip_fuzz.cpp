// SPDX-License-Identifier: Apache-2.0
// A guest and a VMM that do anything to the interrupt hardware: registers, ports, lines, messages, states,
// time.
#include "base/bits.h"
#include "x86/irqchip/irqchip.h"

#include <algorithm>
#include <deque>

namespace {

using namespace ring3;
using namespace ring3::x86;

class Input {
 public:
  Input(const u8* data, std::size_t size) : data_(data), size_(size) {}
  bool empty() const { return size_ == 0; }
  template <class T> T take() {
    T v{};
    const std::size_t n = std::min(size_, sizeof v);
    std::memcpy(&v, data_, n);
    data_ += n;
    size_ -= n;
    return v;
  }

 private:
  const u8* data_;
  std::size_t size_;
};

struct FuzzClock final : kvm::Clock {
  u64 now_ns() const override { return now; }
  u64 wall_ns() const override { return now; }
  u64 now = 1'000'000'000;
};
struct FuzzTsc final : GuestTsc {
  u64 clock_ns_at(u64 tsc) const override { return tsc; }
  u64 tsc_at(u64 host_tsc) const override { return host_tsc; }
};
struct FuzzEvents final : VcpuEvents {
  void event_pending() override {}
  void post_nmi() override {}
  void post_smi() override {}
  void post_init() override {}
  void post_startup(u8) override {}
  void post_unhalt() override {}
};

void step(Input& in, FuzzClock& clock, kvm::TimerQueue& timers, IrqChip& chip, Lapic& apic) {
  u8 buffer[64] = {};
  u64 value = 0;
  switch (in.take<u8>() % 16) {
  case 0: apic.mmio_read(in.take<u16>(), buffer, in.take<u8>() % 65); break;
  case 1: {
    const u32 word = in.take<u32>();
    apic.mmio_write(in.take<u8>() * 16u, &word, 4);
    break;
  }
  case 2: apic.read_x2apic_msr(0x800u + in.take<u8>(), value); break;
  case 3: apic.write_x2apic_msr(0x800u + in.take<u8>(), in.take<u64>()); break;
  case 4: apic.set_base_msr(in.take<u64>(), (in.take<u8>() & 1) != 0); break;
  case 5: apic.set_base_msr(0xfee00000u | (in.take<u8>() & 0xcu) << 8); break;
  case 6:
    if (const int vector = apic.highest_pending(); vector >= 0) apic.acknowledge(vector);
    break;
  case 7: {
    u32 word = 0;
    chip.pio_read(in.take<u16>() & 0x4ff, in.take<u8>() % 5, word);
    break;
  }
  case 8: chip.pio_write(in.take<u16>() & 0x4ff, in.take<u8>() % 5, in.take<u32>()); break;
  case 9: {
    const u32 number = in.take<u8>();
    const u32 word = in.take<u32>();
    chip.mmio_write(IoApic::default_base, &number, 4);
    chip.mmio_write(IoApic::default_base + 16, &word, 4);
    chip.mmio_read(IoApic::default_base + in.take<u8>(), buffer, in.take<u8>() % 65);
    break;
  }
  case 10: chip.set_irq_line(in.take<u8>() % 32, (in.take<u8>() & 1) != 0); break;
  case 11: chip.send_msi(in.take<kvm_msi>()); break;
  case 12:
    clock.now += in.take<u32>();
    timers.run_expired(clock.now);
    break;
  case 13: apic.set_tsc_deadline(in.take<u64>()); break;
  case 14: {
    auto state = in.take<kvm_lapic_state>();
    apic.set_state(state);
    apic.get_state(state);
    break;
  }
  default: {
    auto state = in.take<kvm_irqchip>();
    state.chip_id &= 3;
    chip.set_state(state);
    chip.get_state(state);
    auto pit = in.take<kvm_pit_state2>();
    chip.set_pit_state(pit);
    chip.pic_acknowledge();
  }
  }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  Input in(data, size);
  FuzzClock clock;
  FuzzTsc tsc;
  FuzzEvents events;
  kvm::TimerQueue timers;
  IrqChip chip(clock, timers);
  std::deque<Lapic> apics;
  for (u32 id = 0; id < 3; ++id)
    chip.attach(apics.emplace_back(id, id == 0, chip, clock, timers, events, tsc));
  chip.create_pit({.flags = KVM_PIT_SPEAKER_DUMMY, .pad = {}});
  while (!in.empty()) step(in, clock, timers, chip, apics[in.take<u8>() % 3]);
  return 0;
}
