// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/code_cache.h"

#include <sys/mman.h>
#include <unistd.h>

namespace ring3::x86::jit {

std::unique_ptr<CodeCache> CodeCache::make(std::size_t bytes) {
  const int fd = ::memfd_create("ring3-code", MFD_CLOEXEC);
  if (fd < 0) return nullptr;
  void* writable = MAP_FAILED;
  void* executable = MAP_FAILED;
  if (::ftruncate(fd, static_cast<off_t>(bytes)) == 0) {
    writable = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    executable = ::mmap(nullptr, bytes, PROT_READ | PROT_EXEC, MAP_SHARED | MAP_NORESERVE, fd, 0);
  }
  ::close(fd);
  if (writable == MAP_FAILED || executable == MAP_FAILED) {
    if (writable != MAP_FAILED) ::munmap(writable, bytes);
    if (executable != MAP_FAILED) ::munmap(executable, bytes);
    return nullptr;
  }
  // A child of fork() has no vCPU to run it.
  ::madvise(writable, bytes, MADV_DONTFORK);
  ::madvise(executable, bytes, MADV_DONTFORK);
  return std::unique_ptr<CodeCache>(
      new CodeCache(static_cast<u8*>(writable), static_cast<const u8*>(executable), bytes));
}

void CodeCache::rewind(std::size_t bytes) {
  const std::size_t hot = size_ / 8, warm = size_ / 2;
  part_ = {Part{bytes, hot}, Part{hot, warm}, Part{warm, size_}};
}

CodeCache::~CodeCache() {
  ::munmap(writable_, size_);
  ::munmap(const_cast<u8*>(executable_), size_);
}

} // namespace ring3::x86::jit
