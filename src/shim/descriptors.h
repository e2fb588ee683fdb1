// SPDX-License-Identifier: Apache-2.0
// The file descriptors that stand for KVM's objects in this process.
//
// Each is a memory file of its own, so that mmap(), read(), dup() and passing it to a thread are the kernel's
// work; what it stands for is kept here by descriptor number. Copies are recognised by the file's identity.
#pragma once

#include "base/types.h"

#include <memory>
#include <utility>

namespace ring3::shim {

// What a descriptor stands for. Calls come from any thread.
class Object {
 public:
  Object();
  virtual ~Object() = default;
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  // The ioctl's result, 0 or more, or -errno.
  virtual long ioctl(unsigned long request, unsigned long argument) = 0;

  // May the file be mapped like this (mmap's arguments)? 0 or -errno. By default yes.
  virtual int check_map(u64 offset, u64 size, int protection, int flags) const;

  // fallocate(): 0 or -errno. `fd`: the descriptor it was called with.
  virtual int fallocate(int fd, int mode, s64 offset, s64 length);

  // May the file neither be read nor written nor sized, although it is a memory file? By default it may.
  virtual bool sealed() const { return false; }

  // Was it made by this process, and not by the parent before a fork? KVM's objects belong to the memory
  // they were made in.
  bool ours() const;

 private:
  unsigned process_;
};

// Makes a memory file of `size` bytes called `name` that stands for `object`. The descriptor, close-on-exec
// as KVM's are, or -errno.
int add_descriptor(const char* name, u64 size, std::shared_ptr<Object> object);
// Lets an open memory file of ours stand for `object`.
int adopt_descriptor(int fd, std::shared_ptr<Object> object);

// Null: not one of ours.
std::shared_ptr<Object> find_object(int fd);

// Does this descriptor stand for something sealed()? Async-signal-safe, no locks, no system calls; does not
// know copies that came by a way we do not watch.
bool is_sealed(int fd);

// After close(fd), and before dup2() and the like replace it.
void forget_descriptor(int fd);
void forget_descriptors(unsigned first, unsigned last);
// `copy` is a duplicate of `fd`.
void copy_descriptor(int fd, int copy);

} // namespace ring3::shim
