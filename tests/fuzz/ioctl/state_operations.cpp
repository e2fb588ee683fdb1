// SPDX-License-Identifier: Apache-2.0
// The state of a vCPU: what is read is damaged and set again.
#include "guests.h"
#include "numbers.h"
#include "operations.h"

#include <algorithm>
#include <csignal>
#include <unistd.h>

namespace fuzz {

namespace {

struct State {
  const char* get_name;
  unsigned long get; // 0: there is none
  const char* set_name;
  unsigned long set;
  std::size_t size;
};
#define STATE(x, type)                                                                                       \
  { "KVM_GET_" #x, KVM_GET_##x, "KVM_SET_" #x, KVM_SET_##x, sizeof(type) }
constexpr State states[] = {
    STATE(REGS, kvm_regs),
    STATE(SREGS, kvm_sregs),
    STATE(SREGS2, kvm_sregs2),
    STATE(FPU, kvm_fpu),
    STATE(XCRS, kvm_xcrs),
    STATE(DEBUGREGS, kvm_debugregs),
    STATE(VCPU_EVENTS, kvm_vcpu_events),
    STATE(LAPIC, kvm_lapic_state),
    STATE(MP_STATE, kvm_mp_state),
    {"KVM_GET_XSAVE2", request::get_xsave2, "KVM_SET_XSAVE", request::set_xsave, 8192},
    {"KVM_GET_XSAVE", request::get_xsave, "KVM_SET_XSAVE", request::set_xsave, 4096},
    {nullptr, 0, "KVM_SET_GUEST_DEBUG", KVM_SET_GUEST_DEBUG, sizeof(kvm_guest_debug)},
    {nullptr, 0, "KVM_X86_SETUP_MCE", KVM_X86_SETUP_MCE, sizeof(u64)},
    {nullptr, 0, "KVM_X86_SET_MCE", KVM_X86_SET_MCE, sizeof(kvm_x86_mce)},
    {nullptr, 0, "KVM_INTERRUPT", KVM_INTERRUPT, sizeof(kvm_interrupt)},
    {nullptr, 0, "KVM_TRANSLATE", KVM_TRANSLATE, sizeof(kvm_translation)},
    {nullptr, 0, "KVM_PRE_FAULT_MEMORY", request::pre_fault_memory, 64},
    {nullptr, 0, "KVM_TPR_ACCESS_REPORTING", KVM_TPR_ACCESS_REPORTING, sizeof(kvm_tpr_access_ctl)},
    {nullptr, 0, "KVM_SET_VAPIC_ADDR", KVM_SET_VAPIC_ADDR, sizeof(kvm_vapic_addr)},
    {nullptr, 0, "KVM_ENABLE_CAP (vCPU)", KVM_ENABLE_CAP, sizeof(kvm_enable_cap)},
    {nullptr, 0, "KVM_GET_ONE_REG", KVM_GET_ONE_REG, sizeof(kvm_one_reg)},
    {nullptr, 0, "KVM_SET_ONE_REG", KVM_SET_ONE_REG, sizeof(kvm_one_reg)},
};
#undef STATE

constexpr std::size_t largest = 16384;
alignas(64) thread_local std::byte buffer[largest];

// Two pages of which the second is not there: structures that end in it.
u64 bad_address(Random& r, std::size_t size) {
  constexpr u64 odd[] = {0, 1, ~u64{0}, 0x0000800000000000, 0xffff888000000000, Arena::base - 4096};
  // The arena's end borders on nothing.
  return r.one_in(2) ? r.among(odd) : Arena::base + Arena::size - r.below(size + 1);
}

u32 some_msr(Random& r) {
  constexpr u32 firsts[] = {0x10,       0x17,       0x1b,       0x34,       0x3a,       0x3b,
                            0x8b,       0xce,       0xfe,       0x10a,      0x122,      0x174,
                            0x179,      0x186,      0x1a0,      0x1d9,      0x200,      0x250,
                            0x277,      0x2ff,      0x345,      0x38d,      0x400,      0x480,
                            0x4d0,      0x6a0,      0x6e0,      0x800,      0x808,      0x830,
                            0xda0,      0x11,       0x12,       0x4b564d00, 0x40000000, 0xc0000080,
                            0xc0000100, 0xc0010000, 0xc0010015, 0xc0010055, 0xc0011020, 0xc001029f};
  return r.one_in(16) ? static_cast<u32>(r.odd_number()) : r.among(firsts) + static_cast<u32>(r.below(9));
}

void msr_lists(Thread& t, int fd) {
  Random& r = t.random;
  struct {
    u32 count = 0, padding = 0;
    kvm_msr_entry entry[280];
  } list;
  const u64 n = r.one_in(16) ? r.below(280) : 1 + r.below(6);
  list.count = r.one_in(32) ? static_cast<u32>(r.odd_number()) : static_cast<u32>(n);
  for (u64 i = 0; i < std::size(list.entry); ++i) {
    list.entry[i] = {some_msr(r), 0, 0};
    if (i < n)
      list.entry[i].data = r.one_in(3) ? Arena::base % 4096 + guest_data + r.below(8192) : r.odd_number();
  }
  // Asynchronous page faults are on with few values only.
  constexpr u32 async_pf = 0x4b564d02;
  if (r.one_in(4)) list.entry[0] = {async_pf, 0, ((guest_data + r.below(8192)) & ~u64{0x3f}) | 0xb};
  if (list.count > 280 && list.count < 0x10000) list.count = 280; // would read on behind the list
  if (r.one_in(2)) call(t, "KVM_GET_MSRS", fd, request::get_msrs, &list);
  if (!r.one_in(4)) {
    if (r.one_in(2)) r.damage(std::as_writable_bytes(std::span(list.entry, n)));
    call(t, "KVM_SET_MSRS", fd, request::set_msrs, &list);
  }
}

void cpuid_lists(Thread& t, int fd) {
  Random& r = t.random;
  struct {
    u32 count = 256, padding = 0;
    kvm_cpuid_entry2 entry[256];
  } list{};
  if (r.one_in(2)) {
    call(t, "KVM_GET_CPUID2", fd, request::get_cpuid2, &list);
  } else {
    call(t, "KVM_GET_SUPPORTED_CPUID", t.kvm(), request::get_supported_cpuid, &list);
  }
  if (list.count > 256) list.count = 256;
  const std::size_t n = std::min<std::size_t>(list.count, 256);
  if (r.one_in(2)) r.damage(std::as_writable_bytes(std::span(list.entry, n)));
  if (r.one_in(4)) {
    // The sizes of addresses, and the first leaf of the extended state, are what others are computed from.
    for (kvm_cpuid_entry2& e : std::span(list.entry, n)) {
      if (e.function == 0x80000008 || e.function == 0xd || (e.function == 7 && r.one_in(2)))
        r.damage_object(e.eax);
    }
  }
  if (r.one_in(16)) list.count = static_cast<u32>(r.below(257));
  call(t, "KVM_SET_CPUID2", fd, request::set_cpuid2, &list);
}

// What KVM_RUN blocks. Never the signals by which the fuzzer itself ends it.
void signal_mask(Thread& t, int fd) {
  Random& r = t.random;
  struct {
    u32 size = 8;
    u32 set[2];
  } mask;
  const u64 ours = u64{1} << (SIGUSR1 - 1) | u64{1} << (SIGALRM - 1);
  const u64 blocked = (r.one_in(2) ? 0 : r.next()) & ~ours;
  std::memcpy(mask.set, &blocked, sizeof blocked);
  if (r.one_in(8)) mask.size = static_cast<u32>(r.odd_number());
  if (r.one_in(8)) {
    call(t, "KVM_SET_SIGNAL_MASK", fd, request::set_signal_mask, bad_address(r, sizeof mask));
  } else {
    call(t, "KVM_SET_SIGNAL_MASK", fd, request::set_signal_mask, &mask);
  }
}

void device_attribute(Thread& t, int fd) {
  Random& r = t.random;
  u64 value = r.odd_number();
  kvm_device_attr attr{};
  attr.addr = reinterpret_cast<u64>(&value);
  if (r.one_in(3)) attr.group = static_cast<u32>(r.below(4));
  if (r.one_in(3)) attr.attr = r.odd_number();
  if (r.one_in(6)) attr.addr = bad_address(r, 8);
  call(t, "KVM_HAS_DEVICE_ATTR", fd, KVM_HAS_DEVICE_ATTR, &attr);
  call(t, "KVM_GET_DEVICE_ATTR", fd, KVM_GET_DEVICE_ATTR, &attr);
  if (r.one_in(2)) value = r.odd_number();
  call(t, "KVM_SET_DEVICE_ATTR", fd, KVM_SET_DEVICE_ATTR, &attr);
}

} // namespace

void state_operation(Thread& t) {
  Random& r = t.random;
  const int fd = t.vcpu();
  const u64 kind = r.below(24);
  if (kind == 0) return device_attribute(t, r.one_in(3) ? t.kvm() : fd);
  if (kind <= 4) return msr_lists(t, fd);
  if (kind == 5) return cpuid_lists(t, fd);
  if (kind == 6) {
    constexpr struct {
      const char* name;
      unsigned long request;
    } plain[] = {{"KVM_NMI", KVM_NMI},
                 {"KVM_SMI", KVM_SMI},
                 {"KVM_KVMCLOCK_CTRL", KVM_KVMCLOCK_CTRL},
                 {"KVM_SET_TSC_KHZ", KVM_SET_TSC_KHZ},
                 {"KVM_GET_TSC_KHZ", KVM_GET_TSC_KHZ}};
    const auto& p = r.among(plain);
    call(t, p.name, fd, p.request, r.one_in(2) ? r.odd_number() : 0);
    return;
  }
  if (kind == 8) return signal_mask(t, fd);
  if (kind == 7) { // any number, any argument that does not point to what is ours
    const auto request =
        static_cast<unsigned long>(_IOC(r.below(4), KVMIO, r.below(256), r.one_in(2) ? 0 : 8 * r.below(64)));
    const long result = call(t, "any request", r.one_in(2) ? fd : t.any(), request, bad_address(r, 64));
    const bool makes_descriptor =
        request == KVM_CREATE_VM || request == KVM_CREATE_VCPU || request == KVM_GET_STATS_FD;
    if (makes_descriptor && result >= 0) close(static_cast<int>(result));
    return;
  }
  const State& s = r.among(states);
  std::ranges::fill(std::span(buffer, s.size), std::byte{0});
  if (s.get != 0 && call(t, s.get_name, fd, s.get, buffer) == 0 && r.one_in(6)) return;
  if (r.one_in(48)) {
    call(t, s.set_name, fd, s.set, bad_address(r, s.size));
    return;
  }
  if (!(s.get != 0 && r.one_in(8))) r.damage(std::span(buffer, s.size));
  call(t, s.set_name, fd, s.set, buffer);
}

} // namespace fuzz
