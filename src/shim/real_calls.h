// SPDX-License-Identifier: Apache-2.0
// The C library's own functions, behind the ones that this library puts in front of them.
#pragma once

#include <csignal>
#include <cstdio>
#include <dlfcn.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

namespace ring3::shim {

// One function of the C library, looked up at first use: another library's constructor may call us before
// ours ran. Null if the C library has none of that name.
template <class F> class RealCall {
 public:
  constexpr explicit RealCall(const char* name) : name_(name) {}
  F* get() {
    F* f = function_;
    if (f == nullptr) function_ = f = reinterpret_cast<F*>(dlsym(RTLD_NEXT, name_));
    return f;
  }
  template <class... Args> auto operator()(Args... args) { return get()(args...); }

 private:
  const char* name_;
  F* function_ = nullptr;
};

namespace real {
inline constinit RealCall<int(const char*, int, ...)> open{"open"};
inline constinit RealCall<int(int, const char*, int, ...)> openat{"openat"};
inline constinit RealCall<FILE*(const char*, const char*)> fopen{"fopen"};
inline constinit RealCall<int(int)> close{"close"};
inline constinit RealCall<int(unsigned, unsigned, int)> close_range{"close_range"};
inline constinit RealCall<int(int)> dup{"dup"};
inline constinit RealCall<int(int, int)> dup2{"dup2"};
inline constinit RealCall<int(int, int, int)> dup3{"dup3"};
inline constinit RealCall<int(int, int, ...)> fcntl{"fcntl"};
inline constinit RealCall<int(int, unsigned long, ...)> ioctl{"ioctl"};
inline constinit RealCall<void*(void*, size_t, int, int, int, off_t)> mmap{"mmap"};
inline constinit RealCall<int(int, int, off_t, off_t)> fallocate{"fallocate"};
inline constinit RealCall<int(int, off_t)> ftruncate{"ftruncate"};
inline constinit RealCall<off_t(int, off_t, int)> lseek{"lseek"};
inline constinit RealCall<ssize_t(int, void*, size_t)> read{"read"};
inline constinit RealCall<ssize_t(int, const void*, size_t)> write{"write"};
inline constinit RealCall<ssize_t(int, void*, size_t, off_t)> pread{"pread"};
inline constinit RealCall<ssize_t(int, const void*, size_t, off_t)> pwrite{"pwrite"};
inline constinit RealCall<ssize_t(int, const struct iovec*, int)> readv{"readv"};
inline constinit RealCall<ssize_t(int, const struct iovec*, int)> writev{"writev"};
inline constinit RealCall<int(const char*, int)> access{"access"};
inline constinit RealCall<int(int, const char*, int, int)> faccessat{"faccessat"};
inline constinit RealCall<int(const char*, struct stat*)> stat{"stat"};
inline constinit RealCall<int(const char*, struct stat*)> lstat{"lstat"};
inline constinit RealCall<int(int, const char*, struct stat*, int)> fstatat{"fstatat"};
inline constinit RealCall<int(int, const struct sigaction*, struct sigaction*)> sigaction{"sigaction"};
inline constinit RealCall<int(int, const sigset_t*, sigset_t*)> pthread_sigmask{"pthread_sigmask"};
inline constinit RealCall<int(pthread_t)> pthread_cancel{"pthread_cancel"};
} // namespace real

} // namespace ring3::shim
