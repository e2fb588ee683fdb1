// SPDX-License-Identifier: Apache-2.0
// The client of bench/memslots: what one call of KVM_SET_USER_MEMORY_REGION takes, in nanoseconds, where
// SLOTS slots are made, moved, changed and deleted in the order of their addresses or in a random one:
// "create N", "move N", "flags N", "delete N".
#include "kvm_client.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <string_view>
#include <vector>

namespace {

constexpr std::uint64_t page = 4096;

struct Slots {
  bench::Vm& vm;
  std::uint64_t host;

  void set(std::uint32_t id, std::uint64_t place, std::uint64_t size, std::uint32_t flags) const {
    kvm_userspace_memory_region r{};
    r.slot = id;
    r.flags = flags;
    r.guest_phys_addr = place;
    r.memory_size = size;
    r.userspace_addr = host;
    bench::check(ioctl(vm.vm, KVM_SET_USER_MEMORY_REGION, &r), "KVM_SET_USER_MEMORY_REGION");
  }
};

template <class F> std::uint64_t timed(const std::vector<std::uint32_t>& order, F&& each) {
  const std::uint64_t start = bench::now_ns();
  for (const std::uint32_t id : order) each(id);
  return bench::now_ns() - start;
}

} // namespace

int main(int argc, char** argv) {
  const unsigned long count = argc == 3 ? std::strtoul(argv[1], nullptr, 0) : 0;
  const std::string_view how = argc == 3 ? argv[2] : "";
  if (count == 0 || count > 32764 || (how != "address" && how != "random")) {
    std::fputs("Usage: bench-memslots SLOTS (1 to 32764) address|random\n", stderr);
    return 2;
  }
  bench::Vm vm;
  // All slots show the same page of ours: what a slot's memory is makes no difference to these calls.
  const Slots slots{vm, reinterpret_cast<std::uint64_t>(bench::memory(page))};
  std::vector<std::uint32_t> order(count);
  std::iota(order.begin(), order.end(), 0U);
  std::mt19937 random(1);
  const auto arrange = [&] {
    if (how == "random") std::ranges::shuffle(order, random);
  };
  // Every second page, so that there is a free one to move to.
  const auto place = [](std::uint32_t id) { return 2 * page * (id + 1ULL); };
  // Few slots: many times, since the clock takes as long as a call.
  const unsigned long rounds = std::max(1UL, 4096 / count);
  std::uint64_t create = 0;
  std::uint64_t move = 0;
  std::uint64_t flags = 0;
  std::uint64_t remove = 0;
  for (unsigned long i = 0; i < rounds; ++i) {
    arrange();
    create += timed(order, [&](std::uint32_t id) { slots.set(id, place(id), page, 0); });
    arrange();
    move += timed(order, [&](std::uint32_t id) { slots.set(id, place(id) + page, page, 0); });
    arrange();
    flags += timed(order,
                   [&](std::uint32_t id) { slots.set(id, place(id) + page, page, KVM_MEM_LOG_DIRTY_PAGES); });
    arrange();
    remove += timed(order, [&](std::uint32_t id) { slots.set(id, 0, 0, 0); });
  }
  const double calls = static_cast<double>(rounds) * static_cast<double>(count);
  const auto print = [&](const char* name, std::uint64_t ns) {
    std::printf("%s %.1f\n", name, static_cast<double>(ns) / calls);
  };
  print("create", create);
  print("move", move);
  print("flags", flags);
  print("delete", remove);
  return 0;
}
