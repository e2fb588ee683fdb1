// SPDX-License-Identifier: Apache-2.0
// The functions of the C library that this library stands in front of (ld.so(8), LD_PRELOAD). Each does the
// real thing unless /dev/kvm, one of its descriptors or a signal of a thread in KVM_RUN is concerned.
//
// fcntl.h and friends are not included: they give these names attributes and inline versions of their own.
#include "shim/cpuid_patch.h"
#include "shim/descriptors.h"
#include "shim/fork.h"
#include "shim/real_calls.h"
#include "shim/served_paths.h"
#include "shim/signals.h"
#include "shim/userfaultfd.h"

#include <cerrno>
#include <cstdarg>
#include <linux/fcntl.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <optional>
#include <unistd.h>

// NOLINTBEGIN(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name): the C
// library's names, and parameters that it gives reserved ones.
#define RING3_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace ring3;
using namespace ring3::shim;

// Before the program's own constructors, some of which ask the processor what it is.
__attribute__((constructor)) void start() {
  watch_forks();
  patch_cpuid();
}

int answer(long result) {
  if (result >= 0) return static_cast<int>(result);
  errno = static_cast<int>(-result);
  return -1;
}

constexpr int map_anonymous = 0x20;

bool makes_file(int flags) { return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE; }

int open_path(const char* path, int flags, mode_t mode) {
  if (path != nullptr) {
    const LikeASystemCall held;
    if (const auto served = open_served(path, flags)) return answer(*served);
  }
  return real::open(path, flags, mode);
}
int open_path_at(int folder, const char* path, int flags, mode_t mode) {
  if (path != nullptr && *path == '/') {
    const LikeASystemCall held;
    if (const auto served = open_served(path, flags)) return answer(*served);
  }
  return real::openat(folder, path, flags, mode);
}

mode_t mode_argument(int flags, va_list list) { return makes_file(flags) ? va_arg(list, mode_t) : 0; }

FILE* open_stream(const char* path, const char* mode) {
  if (path != nullptr && mode != nullptr && *mode == 'r') {
    const LikeASystemCall held;
    if (const auto served = open_served(path, O_RDONLY | O_CLOEXEC)) {
      const int fd = answer(*served);
      return fd < 0 ? nullptr : fdopen(fd, "r");
    }
  }
  return real::fopen(path, mode);
}

// The exported functions promise the compiler that a path is never null, which no caller has to keep.
bool is_absolute(const char* path) { return path != nullptr && *path == '/'; }

bool served_stat(const char* path, struct stat* out) {
  return path != nullptr && out != nullptr && stat_served(path, *out);
}

int check_access(const char* path, int mode) {
  struct stat st;
  if (!served_stat(path, &st)) return 1;
  const bool device = S_ISCHR(st.st_mode);
  return (mode & X_OK) != 0 || ((mode & W_OK) != 0 && !device) ? answer(-EACCES) : 0;
}

// A copy of a descriptor of ours is known from the start.
int copied(bool ours, int result) {
  if (ours && result >= 0) {
    const LikeASystemCall held;
    find_object(result);
  }
  return result;
}

// dup2() and dup3(): what `to` stood for ends first.
template <class F> int replace(int from, int to, F&& call) {
  if (from == to || to < 0 || real::fcntl(from, F_GETFD) < 0) return call();
  int result;
  bool ours;
  {
    const LikeASystemCall held;
    const auto kept = find_object(from); // which may be the object that `to` stands for as well
    ours = kept != nullptr;
    const Closing closing(static_cast<unsigned>(to), static_cast<unsigned>(to));
    result = call();
  }
  return copied(ours, result);
}

void* map(void* address, size_t size, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 && (flags & map_anonymous) == 0) {
    const LikeASystemCall held;
    if (const auto object = find_object(fd)) {
      if (const int result = object->check_map(static_cast<u64>(offset), size, protection, flags);
          result < 0) {
        errno = -result;
        return reinterpret_cast<void*>(-1);
      }
    }
  }
  return real::mmap(address, size, protection, flags, fd, offset);
}

__sighandler_t set_handler(int number, __sighandler_t handler, int flags) {
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  return set_program_action(number, &action, &old) == 0 ? old.sa_handler : SIG_ERR;
}

} // namespace

// --- files ---

RING3_EXPORT int open(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_argument(flags, list);
  va_end(list);
  return open_path(path, flags, mode);
}
RING3_EXPORT int open64(const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_argument(flags, list);
  va_end(list);
  return open_path(path, flags, mode);
}
RING3_EXPORT int __open_2(const char* path, int flags) { return open_path(path, flags, 0); }
RING3_EXPORT int __open64_2(const char* path, int flags) { return open_path(path, flags, 0); }
RING3_EXPORT int openat(int folder, const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_argument(flags, list);
  va_end(list);
  return open_path_at(folder, path, flags, mode);
}
RING3_EXPORT int openat64(int folder, const char* path, int flags, ...) {
  va_list list;
  va_start(list, flags);
  const mode_t mode = mode_argument(flags, list);
  va_end(list);
  return open_path_at(folder, path, flags, mode);
}
RING3_EXPORT int __openat_2(int folder, const char* path, int flags) {
  return open_path_at(folder, path, flags, 0);
}
RING3_EXPORT int __openat64_2(int folder, const char* path, int flags) {
  return open_path_at(folder, path, flags, 0);
}
RING3_EXPORT FILE* fopen(const char* path, const char* mode) { return open_stream(path, mode); }
RING3_EXPORT FILE* fopen64(const char* path, const char* mode) { return open_stream(path, mode); }

RING3_EXPORT int access(const char* path, int mode) noexcept {
  const int served = check_access(path, mode);
  return served <= 0 ? served : real::access(path, mode);
}
RING3_EXPORT int faccessat(int folder, const char* path, int mode, int flags) noexcept {
  const int served = is_absolute(path) ? check_access(path, mode) : 1;
  return served <= 0 ? served : real::faccessat(folder, path, mode, flags);
}
RING3_EXPORT int stat(const char* path, struct stat* out) noexcept {
  return served_stat(path, out) ? 0 : real::stat(path, out);
}
RING3_EXPORT int lstat(const char* path, struct stat* out) noexcept {
  return served_stat(path, out) ? 0 : real::lstat(path, out);
}
RING3_EXPORT int fstatat(int folder, const char* path, struct stat* out, int flags) noexcept {
  return is_absolute(path) && served_stat(path, out) ? 0 : real::fstatat(folder, path, out, flags);
}
// On x86-64 struct stat64 is struct stat.
RING3_EXPORT int stat64(const char* path, struct stat64* out) noexcept {
  return stat(path, reinterpret_cast<struct stat*>(out));
}
RING3_EXPORT int lstat64(const char* path, struct stat64* out) noexcept {
  return lstat(path, reinterpret_cast<struct stat*>(out));
}
RING3_EXPORT int fstatat64(int folder, const char* path, struct stat64* out, int flags) noexcept {
  return fstatat(folder, path, reinterpret_cast<struct stat*>(out), flags);
}

// --- descriptors ---

RING3_EXPORT int close(int fd) {
  if (fd < 0) return real::close(fd);
  std::optional<Closing> closing;
  {
    const LikeASystemCall held;
    closing.emplace(static_cast<unsigned>(fd), static_cast<unsigned>(fd));
  }
  return real::close(fd);
}
RING3_EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  constexpr int only_mark = 4; // CLOSE_RANGE_CLOEXEC
  if ((flags & only_mark) != 0 || first > last) return real::close_range(first, last, flags);
  const LikeASystemCall held;
  const Closing closing(first, last);
  return real::close_range(first, last, flags);
}
RING3_EXPORT int dup(int fd) noexcept { return copied(is_sealed(fd), real::dup(fd)); }
RING3_EXPORT int dup2(int fd, int to) noexcept {
  return replace(fd, to, [&] { return real::dup2(fd, to); });
}
RING3_EXPORT int dup3(int fd, int to, int flags) noexcept {
  if ((flags & ~O_CLOEXEC) != 0) return real::dup3(fd, to, flags);
  return replace(fd, to, [&] { return real::dup3(fd, to, flags); });
}

namespace {
int control_descriptor(int fd, int command, void* argument) {
  const bool copies = command == F_DUPFD || command == F_DUPFD_CLOEXEC;
  const bool ours = copies && is_sealed(fd);
  return copied(ours, real::fcntl(fd, command, argument));
}
} // namespace
RING3_EXPORT int fcntl(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return control_descriptor(fd, command, argument);
}
RING3_EXPORT int fcntl64(int fd, int command, ...) {
  va_list list;
  va_start(list, command);
  void* argument = va_arg(list, void*);
  va_end(list);
  return control_descriptor(fd, command, argument);
}

RING3_EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list list;
  va_start(list, request);
  const unsigned long argument = va_arg(list, unsigned long);
  va_end(list);
  // A call that is not for us may sleep, so it is made without.
  if (_IOC_TYPE(request) == KVMIO) {
    if (request == KVM_RUN) {
      const CancellationHeld cancellation;
      const LikeASystemCall held;
      if (const auto object = find_object(fd)) return answer(object->ioctl(request, argument));
    } else {
      const LikeASystemCall held;
      if (const auto object = find_object(fd)) return answer(object->ioctl(request & 0xffffffff, argument));
    }
  }
  const int result = real::ioctl(fd, request, argument);
  if (_IOC_TYPE(request) == UFFDIO && result == 0) note_userfaultfd(request, argument);
  return result;
}

RING3_EXPORT void* mmap(void* address, size_t size, int protection, int flags, int fd,
                        off_t offset) noexcept {
  return map(address, size, protection, flags, fd, offset);
}
RING3_EXPORT void* mmap64(void* address, size_t size, int protection, int flags, int fd,
                          off64_t offset) noexcept {
  return map(address, size, protection, flags, fd, offset);
}

// --- the contents of the files behind KVM's descriptors, which are not the VMM's but for statistics ---
// The errors are those of files without these operations.

namespace {
// Signal handlers use these, and must not be the first to look them up.
[[gnu::constructor]] void look_up_calls() {
  real::read.get();
  real::write.get();
  real::pread.get();
  real::pwrite.get();
  real::readv.get();
  real::writev.get();
  real::lseek.get();
  real::ftruncate.get();
  real::pthread_sigmask.get();
}
off_t seek(int fd, off_t offset, int whence) {
  if (is_sealed(fd)) {
    const LikeASystemCall held;
    if (const auto object = find_object(fd)) return answer(object->seek(fd));
  }
  return real::lseek(fd, offset, whence);
}

constexpr off_t at_position = -1;

// A read of a descriptor that stands for something; 0: it is to be made. `offset`: or at_position.
int before_read(int fd, off_t offset, size_t size) {
  const LikeASystemCall held;
  const auto object = find_object(fd);
  if (!object) return 0;
  const off_t from = offset == at_position ? real::lseek(fd, 0, SEEK_CUR) : offset;
  return from < 0 ? 0 : object->before_read(static_cast<u64>(from), size);
}
ssize_t read_at(int fd, void* data, size_t size, off_t offset) {
  const int refused = is_sealed(fd) ? before_read(fd, offset < 0 ? 0 : offset, size) : 0;
  return refused != 0 ? answer(refused) : real::pread(fd, data, size, offset);
}
// A write to a descriptor that stands for something; the kernel looks at the descriptor's mode first.
int refuse_write(int fd) {
  const int mode = real::fcntl(fd, F_GETFL);
  return answer(mode >= 0 && (mode & O_ACCMODE) == O_RDONLY ? -EBADF : -EINVAL);
}
} // namespace

RING3_EXPORT ssize_t read(int fd, void* data, size_t size) {
  const int refused = is_sealed(fd) ? before_read(fd, at_position, size) : 0;
  return refused != 0 ? answer(refused) : real::read(fd, data, size);
}
RING3_EXPORT ssize_t write(int fd, const void* data, size_t size) {
  return is_sealed(fd) ? refuse_write(fd) : real::write(fd, data, size);
}
RING3_EXPORT ssize_t pread(int fd, void* data, size_t size, off_t offset) {
  return read_at(fd, data, size, offset);
}
RING3_EXPORT ssize_t pread64(int fd, void* data, size_t size, off64_t offset) {
  return read_at(fd, data, size, offset);
}
RING3_EXPORT ssize_t pwrite(int fd, const void* data, size_t size, off_t offset) {
  return is_sealed(fd) ? refuse_write(fd) : real::pwrite(fd, data, size, offset);
}
RING3_EXPORT ssize_t pwrite64(int fd, const void* data, size_t size, off64_t offset) {
  return is_sealed(fd) ? refuse_write(fd) : real::pwrite(fd, data, size, offset);
}
RING3_EXPORT ssize_t readv(int fd, const struct iovec* parts, int count) {
  const int refused = is_sealed(fd) ? before_read(fd, at_position, ~size_t{0}) : 0;
  return refused != 0 ? answer(refused) : real::readv(fd, parts, count);
}
RING3_EXPORT ssize_t writev(int fd, const struct iovec* parts, int count) {
  return is_sealed(fd) ? refuse_write(fd) : real::writev(fd, parts, count);
}
RING3_EXPORT int ftruncate(int fd, off_t size) noexcept {
  return is_sealed(fd) ? answer(-EINVAL) : real::ftruncate(fd, size);
}
RING3_EXPORT int ftruncate64(int fd, off64_t size) noexcept {
  return is_sealed(fd) ? answer(-EINVAL) : real::ftruncate(fd, size);
}
RING3_EXPORT off_t lseek(int fd, off_t offset, int whence) noexcept { return seek(fd, offset, whence); }
RING3_EXPORT off64_t lseek64(int fd, off64_t offset, int whence) noexcept { return seek(fd, offset, whence); }

namespace {
int allocate(int fd, int mode, off_t offset, off_t length) {
  const LikeASystemCall held;
  if (const auto object = find_object(fd)) return answer(object->fallocate(fd, mode, offset, length));
  return real::fallocate(fd, mode, offset, length);
}
} // namespace
RING3_EXPORT int fallocate(int fd, int mode, off_t offset, off_t length) {
  return allocate(fd, mode, offset, length);
}
RING3_EXPORT int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
  return allocate(fd, mode, offset, length);
}

// --- signals ---

RING3_EXPORT int sigaction(int number, const struct sigaction* action, struct sigaction* old) noexcept {
  return set_program_action(number, action, old);
}
RING3_EXPORT __sighandler_t signal(int number, __sighandler_t handler) noexcept {
  return set_handler(number, handler, SA_RESTART);
}
RING3_EXPORT __sighandler_t bsd_signal(int number, __sighandler_t handler) noexcept {
  return set_handler(number, handler, SA_RESTART);
}
RING3_EXPORT __sighandler_t sysv_signal(int number, __sighandler_t handler) noexcept {
  return set_handler(number, handler, static_cast<int>(SA_RESETHAND | SA_NODEFER));
}
RING3_EXPORT __sighandler_t __sysv_signal(int number, __sighandler_t handler) noexcept {
  return set_handler(number, handler, static_cast<int>(SA_RESETHAND | SA_NODEFER));
}
RING3_EXPORT int pthread_sigmask(int how, const sigset_t* set, sigset_t* old) noexcept {
  return set_program_mask(how, set, old);
}
RING3_EXPORT int sigprocmask(int how, const sigset_t* set, sigset_t* old) noexcept {
  const int error = set_program_mask(how, set, old);
  return error == 0 ? 0 : answer(-error);
}
RING3_EXPORT int pthread_cancel(pthread_t thread) { return cancel_thread(thread); }
// NOLINTEND(bugprone-reserved-identifier,readability-inconsistent-declaration-parameter-name)
