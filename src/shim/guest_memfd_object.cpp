// SPDX-License-Identifier: Apache-2.0
#include "shim/guest_memfd_object.h"

#include "shim/real_calls.h"

#include <cerrno>
#include <fcntl.h>
#include <sys/mman.h>

namespace ring3::shim {

GuestMemfdObject::GuestMemfdObject(std::shared_ptr<VmObject> vm, std::shared_ptr<kvm::GuestMemfd> memory)
    : vm_(std::move(vm)), memory_(std::move(memory)) {}

GuestMemfdObject::~GuestMemfdObject() {
  // A child of fork() has its own memory, and none of the threads to wait for.
  if (ours()) vm_->vm().close_guest_memfd(*memory_);
}

long GuestMemfdObject::create(std::shared_ptr<VmObject> vm, const kvm::CreateGuestMemfd& args) {
  const int fd = memfd_create("kvm-gmem", MFD_ALLOW_SEALING); // as KVM's, open across exec()
  if (fd < 0) return -errno;
  std::shared_ptr<kvm::GuestMemfd> memory;
  int result = vm->vm().create_guest_memfd(args, fd, memory);
  if (result == 0) result = fix_size(fd, 0); // which create_guest_memfd() has set
  if (result == 0)
    result = adopt_descriptor(fd, std::make_shared<GuestMemfdObject>(std::move(vm), std::move(memory)));
  if (result < 0) real::close(fd);
  return result;
}

long GuestMemfdObject::ioctl(unsigned long, unsigned long) { return -ENOTTY; }

int GuestMemfdObject::fallocate(int fd, int mode, s64 offset, s64 length) {
  return ours() ? vm_->vm().fallocate(*memory_, fd, mode, offset, length) : -EIO;
}

kvm::PrivateMemory find_guest_memfd(u32 fd) {
  const auto number = static_cast<int>(fd);
  const std::shared_ptr<Object> object = find_object(number);
  if (const auto* found = dynamic_cast<const GuestMemfdObject*>(object.get()))
    return {.memory = found->memory(), .error = 0};
  return {.memory = nullptr, .error = real::fcntl(number, F_GETFD) < 0 ? -EBADF : -EINVAL};
}

} // namespace ring3::shim
