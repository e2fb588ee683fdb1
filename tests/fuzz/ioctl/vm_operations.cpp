// SPDX-License-Identifier: Apache-2.0
// A VM: its memory, its chips, its events.
#include "guests.h"
#include "numbers.h"
#include "operations.h"

#include <algorithm>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace fuzz {

namespace {

void enable(Thread& t, int vm, u32 cap, u64 argument) {
  kvm_enable_cap args{};
  args.cap = cap;
  args.args[0] = argument;
  call(t, "KVM_ENABLE_CAP", vm, KVM_ENABLE_CAP, &args);
}

struct Region2 {
  u32 slot = 0, flags = 0;
  u64 guest_address = 0, size = 0, address = 0, memfd_offset = 0;
  u32 memfd = 0, padding = 0;
  u64 more[14] = {};
};

// Guests reach what they are given, so an address is one of the arena, or one that no process can have.
u64 slot_memory(Random& r) {
  constexpr u64 impossible[] = {0x0000800000000000, 0xffff800000000000, ~u64{0}, 0xfffffffffffff000,
                                0x00007ffffffff000};
  if (r.one_in(24)) return r.among(impossible);
  if (r.one_in(24)) return Arena::base + r.below(Arena::size);
  return Arena::base + r.below(Arena::size / 4096) * 4096;
}
u64 slot_place(Random& r) {
  constexpr u64 places[] = {0,
                            0x1000,
                            0x10000,
                            0xa0000,
                            0x100000,
                            0x400000,
                            0xfec00000,
                            0xfee00000,
                            0xfffff000,
                            0x100000000,
                            0xffffffff000,
                            0x0000fffffffff000,
                            0x000ffffffffff000,
                            0xfffffffffffff000};
  if (r.one_in(16)) return r.odd_number();
  return r.one_in(2) ? r.among(places) : r.below(0x2000) * 4096;
}
u64 slot_size(Random& r) {
  if (r.one_in(32)) return r.odd_number();
  if (r.one_in(8)) return 0;
  return (1 + r.below(r.one_in(4) ? 4096 : 16)) * 4096;
}
u32 slot_number(Random& r) {
  if (r.one_in(32)) return static_cast<u32>(r.odd_number());
  return static_cast<u32>(1 + r.below(12) + (r.one_in(4) ? 0x10000 : 0));
}

void set_slot(Thread& t, int vm) {
  Random& r = t.random;
  Region2 region{slot_number(r), 0, slot_place(r), slot_size(r), slot_memory(r)};
  if (r.one_in(3)) region.flags |= KVM_MEM_LOG_DIRTY_PAGES;
  if (r.one_in(8)) region.flags |= KVM_MEM_READONLY;
  if (r.one_in(32)) region.flags = static_cast<u32>(r.odd_number());
  if (region.size > u64{1} << 28)
    region.flags &= ~u32{KVM_MEM_LOG_DIRTY_PAGES}; // its bitmap would be real memory
  // Now and then the slot that holds the page tables.
  if (r.one_in(24)) region = {0, region.flags & 1, 0, r.one_in(2) ? 0 : guest_bytes, Arena::base};
  if (r.one_in(3)) {
    if (r.one_in(2)) {
      region.flags |= request::mem_guest_memfd;
      region.memfd = static_cast<u32>(t.any());
      region.memfd_offset = r.one_in(3) ? r.odd_number() : r.below(16) * 4096;
    }
    call(t, "KVM_SET_USER_MEMORY_REGION2", vm, request::set_user_memory_region2, &region);
  } else {
    call(t, "KVM_SET_USER_MEMORY_REGION", vm, KVM_SET_USER_MEMORY_REGION, &region);
  }
}

void dirty_log(Thread& t, int vm) {
  Random& r = t.random;
  // The largest bitmap that set_slot() lets there be.
  static thread_local std::vector<u64> bitmap((u64{1} << 28) / 4096 / 64 + 1);
  const bool bad = r.one_in(16);
  if (r.one_in(2)) {
    kvm_dirty_log log{};
    log.slot = slot_number(r);
    if (r.one_in(3)) log.slot = 0;
    log.dirty_bitmap = bad ? reinterpret_cast<void*>(Arena::base - 4096) : bitmap.data();
    call(t, "KVM_GET_DIRTY_LOG", vm, KVM_GET_DIRTY_LOG, &log);
  } else {
    kvm_clear_dirty_log log{};
    log.slot = slot_number(r);
    if (r.one_in(3)) log.slot = 0;
    log.first_page = r.one_in(8) ? r.odd_number() : 64 * r.below(4);
    log.num_pages = r.one_in(8) ? static_cast<u32>(r.odd_number()) : 64 * static_cast<u32>(r.below(16));
    log.num_pages = std::min<u32>(log.num_pages, static_cast<u32>(bitmap.size() * 64));
    std::ranges::fill(std::span(bitmap).first(64), r.one_in(2) ? ~u64{0} : r.next());
    log.dirty_bitmap = bad ? reinterpret_cast<void*>(Arena::base - 4096) : bitmap.data();
    call(t, "KVM_CLEAR_DIRTY_LOG", vm, KVM_CLEAR_DIRTY_LOG, &log);
  }
}

void msr_filter(Thread& t, int vm) {
  Random& r = t.random;
  static thread_local std::array<u8, 0x600> bits;
  r.fill(std::as_writable_bytes(std::span(bits)));
  kvm_msr_filter filter{};
  filter.flags = r.one_in(2) ? 1 : 0;
  constexpr u32 bases[] = {0, 0x10, 0x174, 0x800, 0x40000000, 0x4b564d00, 0xc0000080, 0xc0010000, 0xfffffff0};
  for (auto& range : filter.ranges) {
    if (r.one_in(2)) continue;
    range.flags = r.one_in(32) ? static_cast<u32>(r.odd_number()) : static_cast<u32>(1 + r.below(3));
    range.nmsrs =
        r.one_in(32) ? static_cast<u32>(r.odd_number()) : static_cast<u32>(r.below(bits.size() * 8));
    range.base = r.one_in(8) ? static_cast<u32>(r.odd_number()) : r.among(bases);
    range.bitmap = bits.data();
    if (range.nmsrs > bits.size() * 8 && range.nmsrs < 0x100000) range.nmsrs = 64;
    if (r.one_in(32)) range.bitmap = reinterpret_cast<u8*>(Arena::base - 4096);
  }
  call(t, "KVM_X86_SET_MSR_FILTER", vm, KVM_X86_SET_MSR_FILTER, &filter);
}

void routing(Thread& t, int vm) {
  Random& r = t.random;
  struct {
    u32 count = 0, flags = 0;
    kvm_irq_routing_entry entry[64];
  } list{};
  list.count = static_cast<u32>(r.below(64));
  for (kvm_irq_routing_entry& e : std::span(list.entry, list.count)) {
    e.gsi = static_cast<u32>(r.below(r.one_in(8) ? 5000 : 32));
    e.type = static_cast<u32>(1 + r.below(r.one_in(8) ? 6 : 2));
    if (e.type == KVM_IRQ_ROUTING_IRQCHIP) {
      e.u.irqchip = {static_cast<u32>(r.below(3)), static_cast<u32>(r.below(r.one_in(8) ? 300 : 24))};
    } else {
      e.u.msi.address_lo = 0xfee00000 | static_cast<u32>(r.next() & 0xff00c);
      e.u.msi.data = static_cast<u32>(r.next() & 0xcfff);
    }
  }
  if (r.one_in(3)) r.damage(std::as_writable_bytes(std::span(list.entry, list.count)));
  if (r.one_in(16)) list.flags = 1;
  if (r.one_in(16)) list.count = 5000 + static_cast<u32>(r.below(~u32{0} - 5000));
  call(t, "KVM_SET_GSI_ROUTING", vm, request::set_gsi_routing, &list);
}

void events(Thread& t, int vm) {
  Random& r = t.random;
  const int fd = r.one_in(8) ? t.any() : r.among(t.world.event).get();
  switch (r.below(5)) {
  case 0: {
    kvm_irqfd args{};
    args.fd = static_cast<u32>(fd);
    args.gsi = static_cast<u32>(r.below(r.one_in(8) ? 5000 : 24));
    args.flags = static_cast<u32>(r.below(r.one_in(8) ? 8 : 4));
    args.resamplefd = static_cast<u32>(r.among(t.world.event).get());
    if (r.one_in(16)) r.damage_object(args);
    call(t, "KVM_IRQFD", vm, KVM_IRQFD, &args);
    return;
  }
  case 1: {
    kvm_ioeventfd args{};
    constexpr u64 ports[] = {0x10, 0x60, 0x7e, 0xfec00000, 0xfee00000, 0x500000};
    args.addr = r.one_in(8) ? r.odd_number() : r.among(ports);
    args.len = r.one_in(8) ? static_cast<u32>(r.odd_number()) : 1U << r.below(4);
    args.fd = fd;
    args.flags = static_cast<u32>(r.below(r.one_in(8) ? 32 : 8));
    args.datamatch = r.odd_number();
    call(t, "KVM_IOEVENTFD", vm, KVM_IOEVENTFD, &args);
    return;
  }
  case 2: {
    kvm_coalesced_mmio_zone zone{};
    zone.addr = r.one_in(4) ? r.odd_number() : r.one_in(2) ? 0x10 : 0x500000;
    zone.size = r.one_in(4) ? static_cast<u32>(r.odd_number()) : 4096;
    zone.pio = static_cast<u32>(r.below(r.one_in(8) ? 4 : 2));
    const bool add = r.one_in(2);
    call(t, add ? "KVM_REGISTER_COALESCED_MMIO" : "KVM_UNREGISTER_COALESCED_MMIO", vm,
         add ? KVM_REGISTER_COALESCED_MMIO : KVM_UNREGISTER_COALESCED_MMIO, &zone);
    return;
  }
  default: {
    const u64 value = r.one_in(4) ? ~u64{0} - 1 : 1;
    t.record.begin("write to an eventfd", static_cast<u64>(fd), value);
    // Where this is no eventfd, it is nothing that reads what is written.
    t.record.end(write(r.among(t.world.event).get(), &value, sizeof value));
    return;
  }
  }
}

void chips(Thread& t, int vm) {
  Random& r = t.random;
  switch (r.below(7)) {
  case 0: {
    kvm_irqchip chip{};
    chip.chip_id = static_cast<u32>(r.below(r.one_in(16) ? 5 : 3));
    call(t, "KVM_GET_IRQCHIP", vm, KVM_GET_IRQCHIP, &chip);
    r.damage(std::as_writable_bytes(std::span(&chip, 1)).subspan(r.one_in(16) ? 0 : 8));
    call(t, "KVM_SET_IRQCHIP", vm, KVM_SET_IRQCHIP, &chip);
    return;
  }
  case 1: {
    kvm_pit_state2 pit{};
    call(t, "KVM_GET_PIT2", vm, KVM_GET_PIT2, &pit);
    r.damage_object(pit);
    call(t, "KVM_SET_PIT2", vm, KVM_SET_PIT2, &pit);
    return;
  }
  case 2: {
    kvm_clock_data clock{};
    call(t, "KVM_GET_CLOCK", vm, KVM_GET_CLOCK, &clock);
    r.damage_object(clock);
    call(t, "KVM_SET_CLOCK", vm, KVM_SET_CLOCK, &clock);
    return;
  }
  case 3: {
    kvm_msi msi{};
    msi.address_lo = 0xfee00000 | static_cast<u32>(r.next() & 0xff00c);
    msi.data = static_cast<u32>(r.next() & 0xcfff);
    if (r.one_in(4)) r.damage_object(msi);
    call(t, "KVM_SIGNAL_MSI", vm, KVM_SIGNAL_MSI, &msi);
    return;
  }
  case 4: {
    kvm_reinject_control control{};
    control.pit_reinject = r.one_in(2);
    call(t, "KVM_REINJECT_CONTROL", vm, KVM_REINJECT_CONTROL, &control);
    return;
  }
  default: {
    kvm_irq_level level{};
    level.irq = r.one_in(8) ? static_cast<u32>(r.odd_number()) : static_cast<u32>(r.below(24));
    level.level = r.one_in(2);
    call(t, "KVM_IRQ_LINE_STATUS", vm, r.one_in(2) ? KVM_IRQ_LINE_STATUS : KVM_IRQ_LINE, &level);
    return;
  }
  }
}

void capability(Thread& t, int vm) {
  Random& r = t.random;
  constexpr u32 caps[] = {
      KVM_CAP_DISABLE_QUIRKS2,    KVM_CAP_X2APIC_API,        KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2,
      KVM_CAP_EXIT_HYPERCALL,     KVM_CAP_MSR_PLATFORM_INFO, KVM_CAP_EXIT_ON_EMULATION_FAILURE,
      KVM_CAP_X86_DISABLE_EXITS,  KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_X86_TRIPLE_FAULT_EVENT,
      KVM_CAP_X86_USER_SPACE_MSR, KVM_CAP_MAX_VCPU_ID,       KVM_CAP_DIRTY_LOG_RING,
      KVM_CAP_X86_NOTIFY_VMEXIT,  KVM_CAP_X86_BUS_LOCK_EXIT, KVM_CAP_ENFORCE_PV_FEATURE_CPUID};
  const u32 cap = r.one_in(8) ? static_cast<u32>(r.below(300)) : r.among(caps);
  enable(t, vm, cap, r.one_in(2) ? r.below(16) : r.odd_number());
}

} // namespace

void make_vm(Thread& t, Descriptor& place) {
  Random& r = t.random;
  const u64 type = r.one_in(32) ? r.odd_number() : r.one_in(3) ? 1 : 0;
  const long vm = call(t, "KVM_CREATE_VM", t.world.kvm.get(), KVM_CREATE_VM, type);
  if (vm < 0) return;
  const int fd = static_cast<int>(vm);
  if (r.one_in(3)) enable(t, fd, KVM_CAP_DIRTY_LOG_RING, r.one_in(4) ? r.odd_number() : 16384U << r.below(4));
  if (r.one_in(3)) enable(t, fd, KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, r.below(4));
  if (r.one_in(8)) call(t, "KVM_SET_TSC_KHZ", fd, KVM_SET_TSC_KHZ, r.odd_number());
  if (r.one_in(4)) {
    enable(t, fd, KVM_CAP_SPLIT_IRQCHIP, r.below(32));
  } else if (!r.one_in(3)) {
    call(t, "KVM_CREATE_IRQCHIP", fd, KVM_CREATE_IRQCHIP, u64{0});
    kvm_pit_config pit{};
    if (r.one_in(2)) call(t, "KVM_CREATE_PIT2", fd, KVM_CREATE_PIT2, &pit);
  }
  if (r.one_in(6)) call(t, "KVM_SET_BOOT_CPU_ID", fd, KVM_SET_BOOT_CPU_ID, r.below(4));
  while (r.one_in(2)) capability(t, fd);
  kvm_userspace_memory_region memory{};
  memory.memory_size = guest_bytes;
  memory.userspace_addr = Arena::base;
  if (r.one_in(3)) memory.flags = KVM_MEM_LOG_DIRTY_PAGES;
  call(t, "KVM_SET_USER_MEMORY_REGION", fd, KVM_SET_USER_MEMORY_REGION, &memory);
  if (r.one_in(4)) {
    // What SMM sees.
    memory.slot = 0x10000;
    call(t, "KVM_SET_USER_MEMORY_REGION", fd, KVM_SET_USER_MEMORY_REGION, &memory);
  }
  place.reset(fd);
}

void make_vcpu(Thread& t, Descriptor& place, int vm) {
  Random& r = t.random;
  const u64 id = r.one_in(64) ? r.odd_number() : r.below(12);
  const long fd = call(t, "KVM_CREATE_VCPU", vm, KVM_CREATE_VCPU, id);
  if (fd < 0) return;
  place.reset(static_cast<int>(fd));
  if (!r.one_in(8)) {
    // On AMD and Intel alike; guests without it know no features at all.
    static thread_local struct {
      u32 count, padding;
      kvm_cpuid_entry2 entry[256];
    } list;
    list.count = 256;
    call(t, "KVM_GET_SUPPORTED_CPUID", t.world.kvm.get(), request::get_supported_cpuid, &list);
    call(t, "KVM_SET_CPUID2", static_cast<int>(fd), request::set_cpuid2, &list);
  }
  boot(t, static_cast<int>(fd));
}

void vm_operation(Thread& t) {
  Random& r = t.random;
  const int vm = t.vm();
  const u64 kind = r.below(40);
  if (kind < 10) return chips(t, vm);
  if (kind < 20) return events(t, vm);
  if (kind < 22) return routing(t, vm);
  if (kind < 24) return msr_filter(t, vm);
  if (kind < 28) return capability(t, vm);
  if (kind < 34) return make_vcpu(t, t.world.vcpu[r.below(World::vcpus)], vm);
  if (kind < 36) return make_vm(t, t.world.vm[r.below(World::vms)]);
  switch (kind) {
  case 36: {
    const long fd = call(t, "KVM_GET_STATS_FD", r.one_in(2) ? vm : t.vcpu(), KVM_GET_STATS_FD, u64{0});
    if (fd >= 0) t.world.other[r.below(World::others)].reset(static_cast<int>(fd));
    return;
  }
  case 37:
    call(t, "KVM_CHECK_EXTENSION", r.one_in(2) ? vm : t.kvm(), KVM_CHECK_EXTENSION,
         r.one_in(4) ? r.odd_number() : r.below(260));
    return;
  case 38: call(t, "KVM_RESET_DIRTY_RINGS", vm, KVM_RESET_DIRTY_RINGS, u64{0}); return;
  default: {
    u64 address = r.odd_number();
    call(t, "KVM_SET_TSS_ADDR", vm, KVM_SET_TSS_ADDR, address);
    call(t, "KVM_SET_IDENTITY_MAP_ADDR", vm, KVM_SET_IDENTITY_MAP_ADDR, &address);
    call(t, "KVM_SET_NR_MMU_PAGES", vm, KVM_SET_NR_MMU_PAGES, address);
    return;
  }
  }
}

void memory_operation(Thread& t) {
  Random& r = t.random;
  const int vm = t.vm();
  switch (r.below(10)) {
  case 0:
  case 1:
  case 2: return set_slot(t, vm);
  case 3: return dirty_log(t, vm);
  case 4: {
    t.record.begin("disturb memory", 0, 0);
    t.record.end(t.world.arena.disturb(r));
    return;
  }
  case 5: {
    // Page tables, descriptors, data: in the file, so whether it is mapped or not.
    std::array<u64, 4> words;
    for (u64& w : words) w = r.one_in(2) ? r.odd_number() : (r.next() & 0x3ff000) | 7;
    const u64 at = r.one_in(2) ? 0x10000 + 8 * r.below(0xa00) : 8 * r.below(guest_bytes / 8 - 4);
    t.record.begin("write guest memory", at, 0);
    t.world.arena.put(at, words);
    if (r.one_in(4)) write_tables(t.world.arena);
    t.record.end(0);
    return;
  }
  case 6: {
    u64 args[4] = {r.one_in(8) ? r.odd_number() : r.below(1024) * 4096,
                   r.one_in(8) ? r.odd_number() : r.below(64) * 4096,
                   r.one_in(8) ? r.odd_number() : 8 * r.below(2), r.one_in(16)};
    call(t, "KVM_SET_MEMORY_ATTRIBUTES", vm, request::set_memory_attributes, args);
    return;
  }
  case 7: {
    u64 args[8] = {r.one_in(6) ? r.odd_number() : (1 + r.below(1024)) * 4096, r.one_in(16)};
    const long fd = call(t, "KVM_CREATE_GUEST_MEMFD", vm, request::create_guest_memfd, args);
    if (fd >= 0) t.world.other[r.below(World::others)].reset(static_cast<int>(fd));
    return;
  }
  case 8: call(t, "KVM_RESET_DIRTY_RINGS", vm, KVM_RESET_DIRTY_RINGS, u64{0}); return;
  default: {
    t.record.begin("map all memory", 0, 0);
    t.world.arena.map_all();
    t.record.end(0);
    return;
  }
  }
}

} // namespace fuzz
