// SPDX-License-Identifier: Apache-2.0
// The memory of a VM: its slots, which pages of them are private, and guest_memfd (api.rst 4.35, 4.140 to
// 4.142).
#include "x86/api/vcpu.h"
#include "x86/api/vm.h"

namespace ring3::x86 {

void Vm::wait_for_new_layout() {
  const u64 generation = slots_.generation();
  for (const auto& v : vcpus_) v->generic().post(kvm::request::slots);
  for (const auto& v : vcpus_) v->generic().wait_for_slots(generation);
}

int Vm::set_user_memory_region(const kvm_userspace_memory_region& region) {
  const std::scoped_lock guard(lock_);
  const int result = slots_.set(region);
  if (result == 0) wait_for_new_layout();
  return result;
}

int Vm::set_user_memory_region(const kvm::UserspaceMemoryRegion2& region, const kvm::PrivateMemory& memory) {
  const std::scoped_lock guard(lock_);
  const int result = slots_.set(region, memory);
  if (result == 0) wait_for_new_layout();
  return result;
}

int Vm::set_memory_attributes(const kvm::MemoryAttributes& args) {
  const std::scoped_lock guard(lock_);
  const int result = slots_.set_attributes(args);
  if (result == 0) wait_for_new_layout();
  return result;
}

int Vm::create_guest_memfd(const kvm::CreateGuestMemfd& args, int fd, std::shared_ptr<kvm::GuestMemfd>& out) {
  return kvm::GuestMemfd::create(fd, args.size, args.flags, &slots_, out);
}

int Vm::fallocate(kvm::GuestMemfd& memory, int fd, int mode, s64 offset, s64 length) {
  const int result = memory.fallocate(fd, mode, offset, length);
  if (result != 0) return result;
  // Translations stay true, since the file keeps its place in our memory; what was decoded from it does not.
  const std::scoped_lock guard(lock_);
  slots_.touch();
  wait_for_new_layout();
  return 0;
}

void Vm::close_guest_memfd(kvm::GuestMemfd& memory) {
  memory.close();
  const std::scoped_lock guard(lock_);
  slots_.touch();
  wait_for_new_layout();
}

} // namespace ring3::x86
