// SPDX-License-Identifier: Apache-2.0
// Memory for translated code: the same pages are mapped twice, once to be written and once to be executed, so
// that no address is ever both.
#pragma once

#include "base/types.h"

#include <memory>
#include <span>

namespace ring3::x86::jit {

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
  std::span<u8> room() const { return {writable_ + used_, size_ - used_}; }
  void take(std::size_t bytes) { used_ += bytes; }
  // Everything after the first `bytes` is free again.
  void rewind(std::size_t bytes) { used_ = bytes; }
  std::size_t used() const { return used_; }

  const u8* executable(const u8* writable) const { return executable_ + (writable - writable_); }
  u8* writable(const u8* executable) const { return writable_ + (executable - executable_); }
  bool contains(const void* executable) const {
    const auto* p = static_cast<const u8*>(executable);
    return p >= executable_ && p < executable_ + size_;
  }

 private:
  CodeCache(u8* writable, const u8* executable, std::size_t size)
      : writable_(writable), executable_(executable), size_(size) {}

  u8* writable_;
  const u8* executable_;
  std::size_t size_;
  std::size_t used_ = 0;
};

} // namespace ring3::x86::jit
