// SPDX-License-Identifier: Apache-2.0
// What all threads of one run share: descriptors, some of which are closed at any moment, and memory for
// guests.
#pragma once

#include "random.h"
#include "record.h"

#include <array>
#include <atomic>
#include <csignal>
#include <linux/kvm.h>
#include <mutex>

namespace fuzz {

// A descriptor that any thread may use while another one closes it.
class Descriptor {
 public:
  ~Descriptor() { reset(); }
  int get() const { return fd_.load(std::memory_order_relaxed); }
  // Closes what was there.
  void reset(int fd = -1);

 private:
  std::atomic<int> fd_{-1};
};

// Memory for slots lies where no other mapping of the process ever goes: the guests of a client that unmaps
// what its slots refer to write to whatever is mapped there next. Half of it is a file, so that the fuzzer
// writes guests' code without touching the mapping.
class Arena {
 public:
  static constexpr u64 base = 0x2000'0000'0000, size = 16 << 20, file_bytes = 8 << 20;
  static constexpr u64 short_file_bytes = 1 << 20; // its last part is a file that is cut (SIGBUS)

  Arena();
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  void map_all();
  // Any thread: takes pages away or brings them back.
  long disturb(Random& random);
  // Writes guest memory, whether it is mapped or not.
  void write(u64 at, std::span<const std::byte> bytes);
  template <class T> void put(u64 at, const T& value) {
    write(at, std::as_bytes(std::span<const T, 1>(&value, 1)));
  }

 private:
  int file_ = -1;
  int short_file_ = -1;
};

struct World {
  explicit World(Record& r, u64 seed);

  static constexpr unsigned vms = 2, vcpus = 5, others = 8, events = 6;
  Record& record;
  Arena arena;
  Descriptor kvm;
  std::array<Descriptor, vms> vm;
  std::array<Descriptor, vcpus> vcpu;
  std::array<Descriptor, others> other; // copies, guest_memfds, statistics
  std::array<Descriptor, events> event;
  u64 run_size = 0;
};

// One thread's view. `random` is its own.
struct Thread {
  World& world;
  ThreadRecord& record;
  Random random;
  unsigned number;

  // Mostly a descriptor of the wanted kind, sometimes any.
  int kvm() { return odd_one(world.kvm.get()); }
  int vm() { return odd_one(random.among(world.vm).get()); }
  int vcpu() { return odd_one(random.among(world.vcpu).get()); }
  int any();

 private:
  int odd_one(int fd) { return random.one_in(64) ? any() : fd; }
};

} // namespace fuzz
