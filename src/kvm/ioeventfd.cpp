// SPDX-License-Identifier: Apache-2.0
#include "kvm/ioeventfd.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <utility>

namespace ring3::kvm {
namespace {

constexpr u32 known_flags =
    KVM_IOEVENTFD_FLAG_DATAMATCH | KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DEASSIGN;
constexpr u32 widest = 8;

bool valid_length(u32 length) { return length <= widest && (length == 0 || std::has_single_bit(length)); }

} // namespace

auto IoEventFds::at(const Table& table, u64 address) {
  return std::ranges::equal_range(table, address, {}, &Entry::address);
}

bool IoEventFds::Entry::collides(const Entry& other) const {
  if (length == 0 || other.length == 0) return true;
  return length == other.length && (any || other.any || data == other.data);
}

bool IoEventFds::Entry::matches(std::span<const std::byte> written) const {
  if (length == 0) return true;
  if (length != written.size()) return false;
  if (any) return true;
  u64 value = 0;
  std::memcpy(&value, written.data(), written.size());
  return value == data;
}

bool IoEventFds::write(IoSpace space, u64 address, std::span<const std::byte> written) const {
  const Published<Table>& published = tables_[std::to_underlying(space)];
  if (published.empty()) return false;
  const auto table = published.read();
  if (table.get() == nullptr) return false;
  for (const Entry& e : at(*table.get(), address)) {
    if (!e.matches(written)) continue;
    e.event->signal();
    return true;
  }
  return false;
}

int IoEventFds::control(const kvm_ioeventfd& args) {
  const IoSpace space = (args.flags & KVM_IOEVENTFD_FLAG_PIO) != 0 ? IoSpace::pio : IoSpace::mmio;
  return (args.flags & KVM_IOEVENTFD_FLAG_DEASSIGN) != 0 ? deassign(space, args) : assign(space, args);
}

int IoEventFds::assign(IoSpace space, const kvm_ioeventfd& args) {
  const bool any = (args.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0;
  if (!valid_length(args.len) || args.addr + args.len < args.addr) return -EINVAL;
  if ((args.flags & ~known_flags) != 0 || (args.len == 0 && !any)) return -EINVAL;
  auto event = std::make_shared<EventFd>();
  if (const int error = EventFd::open(args.fd, *event); error != 0) return error;
  Entry entry{.address = args.addr,
              .length = args.len,
              .any = any,
              .data = any ? 0 : args.datamatch,
              .event = std::move(event)};

  const std::scoped_lock guard(lock_);
  const Table* const now = tables_[std::to_underlying(space)].latest();
  Table next = now == nullptr ? Table{} : *now;
  const auto same_address = at(next, args.addr);
  if (std::ranges::any_of(same_address, [&entry](const Entry& e) { return e.collides(entry); }))
    return -EEXIST;
  next.insert(same_address.end(), std::move(entry));
  publish(space, std::move(next));
  return 0;
}

int IoEventFds::deassign(IoSpace space, const kvm_ioeventfd& args) {
  u64 identity = 0;
  if (const int error = EventFd::identify(args.fd, identity); error != 0) return error;
  const bool any = (args.flags & KVM_IOEVENTFD_FLAG_DATAMATCH) == 0;

  const std::scoped_lock guard(lock_);
  const Table* const now = tables_[std::to_underlying(space)].latest();
  if (now == nullptr) return -ENOENT;
  Table next = *now;
  const auto found = std::ranges::find_if(next, [&](const Entry& e) {
    return e.address == args.addr && e.length == args.len && e.any == any &&
           (any || e.data == args.datamatch) && e.event->identity() == identity;
  });
  if (found == next.end()) return -ENOENT;
  next.erase(found);
  publish(space, std::move(next));
  return 0;
}

void IoEventFds::publish(IoSpace space, Table table) {
  auto next = table.empty() ? nullptr : std::make_unique<const Table>(std::move(table));
  tables_[std::to_underlying(space)].publish(std::move(next));
}

} // namespace ring3::kvm
