// SPDX-License-Identifier: Apache-2.0
// Memory for translated code: the same pages are mapped twice, once to be written and once to be executed, so
// that no address is ever both.
#pragma once

#include "base/types.h"

#include <array>
#include <memory>
#include <span>

namespace ring3::x86::jit {

// What is executed one after another lies together, so that the processor need not fetch the rest.
enum class CodeArea : u8 {
  hot,  // thunks, and blocks of the higher tiers
  warm, // blocks of Tier::first
  cold, // what seldom happens in a block
};

class CodeCache {
 public:
  // Of address space; memory is taken as it is used.
  static constexpr std::size_t usual_bytes = std::size_t{128} << 20;

  // Null: the host grants no such memory (a seccomp filter, SELinux's execmem, RLIMIT_AS).
  static std::unique_ptr<CodeCache> make(std::size_t bytes);
  ~CodeCache();
  CodeCache(const CodeCache&) = delete;
  CodeCache& operator=(const CodeCache&) = delete;

  // What is free. Memory is taken from the host as it is written.
  std::span<u8> room(CodeArea area) const {
    const Part& p = part_[static_cast<unsigned>(area)];
    return {writable_ + p.at, p.end - p.at};
  }
  void take(CodeArea area, std::size_t bytes) { part_[static_cast<unsigned>(area)].at += bytes; }
  // Everything is free again, but for the first `bytes` of the hot area.
  void rewind(std::size_t bytes);

  const u8* executable(const u8* writable) const { return executable_ + (writable - writable_); }
  u8* writable(const u8* executable) const { return writable_ + (executable - executable_); }
  bool contains(const void* executable) const {
    const auto* p = static_cast<const u8*>(executable);
    return p >= executable_ && p < executable_ + size_;
  }

 private:
  CodeCache(u8* writable, const u8* executable, std::size_t size)
      : writable_(writable), executable_(executable), size_(size) {
    rewind(0);
  }

  u8* writable_;
  const u8* executable_;
  std::size_t size_;
  struct Part {
    std::size_t at, end; // from the mapping's beginning: free
  };
  std::array<Part, 3> part_{};
};

} // namespace ring3::x86::jit
