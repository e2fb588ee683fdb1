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

  // May the file be mapped like this (mmap's arguments)? 0 or -errno. By default there is nothing to map.
  virtual int check_map(u64 offset, u64 size, int protection, int flags) const;

  // fallocate(): 0 or -errno. `fd`: the descriptor it was called with. By default this is no regular file.
  virtual int fallocate(int fd, int mode, s64 offset, s64 length);

  // lseek(): where it says that it is, or -errno. By default a place that never moves.
  virtual s64 seek(int) const { return 0; }

  // May the bytes of the file in [offset, offset + size) be read, once this has returned? 0 or -errno. By
  // default they are not the client's to read.
  virtual int before_read(u64 offset, u64 size);

  // Was it made by this process, and not by the parent before a fork? KVM's objects belong to the memory
  // they were made in.
  bool ours() const;

 private:
  unsigned process_;
};

// Makes a memory file of `size` bytes called `name` that stands for `object`. The descriptor, close-on-exec
// as KVM's are, or -errno.
int add_descriptor(const char* name, u64 size, std::shared_ptr<Object> object);
// Gives a new memory file (MFD_ALLOW_SEALING) its size for ever: whoever came by a descriptor could otherwise
// cut memory off that we use. 0 or -errno.
int fix_size(int fd, u64 size);
// Lets an open memory file of ours stand for `object`.
int adopt_descriptor(int fd, std::shared_ptr<Object> object);

// Null: not one of ours.
std::shared_ptr<Object> find_object(int fd);

// Does this descriptor stand for an object, which is to be asked before its memory file is read, and whose
// file can be neither written nor sized? Async-signal-safe, no locks, no system calls; does not know copies
// that came by a way we do not watch.
bool is_sealed(int fd);

// Around close(), close_range() and dup2(): these numbers stand for nothing any more. It begins before the
// numbers are free, since another thread may get them at once, and ends afterwards. Objects may end in the
// constructor.
class Closing {
 public:
  Closing(unsigned first, unsigned last);
  ~Closing();
  Closing(const Closing&) = delete;
  Closing& operator=(const Closing&) = delete;

 private:
  const unsigned first_, last_;
};

// No entry is half changed between these two (fork.h).
void lock_descriptors_for_fork();
void unlock_descriptors_after_fork(bool in_child);

} // namespace ring3::shim
