// SPDX-License-Identifier: Apache-2.0
// What instructions have stored, so that it can be taken back and they can be executed again another way.
#pragma once

#include "base/types.h"
#include "x86/mmu/guest_access.h"

#include <array>
#include <cstddef>
#include <ranges>
#include <vector>

namespace ring3::x86 {

// The stores that took Cpu's slow path while a log was there. Page walks are not logged: setting accessed and
// dirty bits twice is as good as once.
class StoreLog {
 public:
  // Before a store of `size` bytes, at most 64, within a page.
  void before_store(std::byte* host, u64 size) {
    Entry e{.host = host, .size = static_cast<u8>(size)};
    read(e, e.before);
    entries_.push_back(e);
  }
  // Something happened that cannot be taken back: an access to a device, a store to code.
  void cannot_undo() { final_ = true; }
  bool final() const { return final_; }

  void clear() {
    entries_.clear();
    final_ = false;
  }
  // Memory is as it was before the first store; what was there until now is remembered.
  void undo() {
    for (Entry& e : entries_) read(e, e.after);
    restore();
  }
  // As it was before the first store, once more.
  void restore() const {
    for (const Entry& e : entries_ | std::views::reverse) {
      for (unsigned i = 0; i < e.size; ++i) guest_store<std::byte>(e.host + i, e.before[i]);
    }
  }
  // Does memory hold what it held before undo(), where there were stores?
  bool same_again() const {
    for (const Entry& e : entries_) {
      std::array<std::byte, 64> now;
      read(e, now);
      for (unsigned i = 0; i < e.size; ++i) {
        if (now[i] != e.after[i]) return false;
      }
    }
    return true;
  }

 private:
  struct Entry {
    std::byte* host;
    u8 size;
    std::array<std::byte, 64> before{}, after{};
  };
  static void read(const Entry& e, std::array<std::byte, 64>& out) {
    for (unsigned i = 0; i < e.size; ++i) out[i] = guest_load<std::byte>(e.host + i);
  }

  std::vector<Entry> entries_;
  bool final_ = false;
};

} // namespace ring3::x86
