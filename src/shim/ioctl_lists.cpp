// SPDX-License-Identifier: Apache-2.0
#include "shim/ioctl_lists.h"

#include "kvm/irq_routing.h"
#include "shim/user_memory.h"

#include <cerrno>

namespace ring3::shim {

namespace {

constexpr u64 entries_at = 8;          // behind the count and 4 bytes of padding or flags
constexpr u32 max_cpuid_entries = 256; // KVM_MAX_CPUID_ENTRIES
constexpr u32 max_msr_entries = 256;   // MAX_IO_MSRS: one more is E2BIG

template <class T> int get_entries(u64 from, u32 count, std::vector<T>& out) {
  out.resize(count);
  return count == 0 || copy_from_user(out.data(), from, count * sizeof(T)) ? 0 : -EFAULT;
}

} // namespace

long put_cpuid_list(u64 argument, std::span<const kvm_cpuid_entry2> entries) {
  u32 room = 0;
  if (!get_user(room, argument)) return -EFAULT;
  const auto count = static_cast<u32>(entries.size());
  if (room < count) return -E2BIG; // without telling how many there are, unlike the lists of MSRs
  if (!copy_to_user(argument + entries_at, entries.data(), entries.size_bytes())) return -EFAULT;
  return put_user(argument, count) ? 0 : -EFAULT;
}

int get_cpuid_list(u64 argument, std::vector<kvm_cpuid_entry2>& out) {
  u32 count = 0;
  if (!get_user(count, argument)) return -EFAULT;
  if (count > max_cpuid_entries) return -E2BIG;
  return get_entries(argument + entries_at, count, out);
}

long put_index_list(u64 argument, std::span<const u32> indices) {
  u32 room = 0;
  if (!get_user(room, argument)) return -EFAULT;
  const auto count = static_cast<u32>(indices.size());
  if (!put_user(argument, count)) return -EFAULT;
  if (room < count) return -E2BIG;
  return copy_to_user(argument + sizeof count, indices.data(), indices.size_bytes()) ? 0 : -EFAULT;
}

int get_msr_list(u64 argument, std::vector<kvm_msr_entry>& out) {
  u32 count = 0;
  if (!get_user(count, argument)) return -EFAULT;
  if (count >= max_msr_entries) return -E2BIG;
  return get_entries(argument + entries_at, count, out);
}

long put_msr_list(u64 argument, std::span<const kvm_msr_entry> entries, long done) {
  return copy_to_user(argument + entries_at, entries.data(), entries.size_bytes()) ? done : -EFAULT;
}

int get_routing_list(u64 argument, std::vector<kvm_irq_routing_entry>& out) {
  u32 header[2]; // count, flags
  if (!copy_from_user(header, argument, sizeof header)) return -EFAULT;
  if (header[0] > kvm::max_irq_routes || header[1] != 0) return -EINVAL;
  return get_entries(argument + entries_at, header[0], out);
}

} // namespace ring3::shim
