// SPDX-License-Identifier: Apache-2.0
#include "kvm/irqfd.h"

#include "kvm/signals_blocked.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>
#include <utility>

namespace ring3::kvm {
namespace {

constexpr u32 known_flags = KVM_IRQFD_FLAG_DEASSIGN | KVM_IRQFD_FLAG_RESAMPLE;
constexpr u64 stop_binding = 0;

int watch(int epoll, int fd, u32 events, u64 binding) {
  epoll_event event{};
  event.events = events;
  event.data.u64 = binding;
  return ::epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0 ? 0 : -errno;
}

} // namespace

IrqFds::IrqFds(SetLine set_line, WatchesChanged watches_changed)
    : set_line_(std::move(set_line)), watches_changed_(std::move(watches_changed)), owner_(::getpid()) {}

IrqFds::~IrqFds() {
  if (started_ && ::getpid() == owner_) {
    const u64 one = 1;
    while (::write(stop_, &one, sizeof one) < 0 && errno == EINTR) {
    }
    ::pthread_join(thread_, nullptr);
  }
  // In a child process this closes its descriptors; the parent's thread and epoll set are not touched.
  if (epoll_ >= 0) ::close(epoll_);
  if (stop_ >= 0) ::close(stop_);
}

int IrqFds::start() {
  if (started_) return 0;
  if (epoll_ < 0) epoll_ = ::epoll_create1(EPOLL_CLOEXEC);
  if (stop_ < 0) stop_ = ::eventfd(0, EFD_CLOEXEC);
  if (epoll_ < 0 || stop_ < 0) return -ENOMEM;
  if (const int error = watch(epoll_, stop_, EPOLLIN, stop_binding); error != 0 && error != -EEXIST)
    return -ENOMEM;
  const SignalsBlocked blocked;
  const auto body = [](void* self) -> void* {
    static_cast<IrqFds*>(self)->serve();
    return nullptr;
  };
  if (::pthread_create(&thread_, nullptr, body, this) != 0) return -ENOMEM;
  ::pthread_setname_np(thread_, "ring3-irqfd");
  started_ = true;
  return 0;
}

void IrqFds::serve() {
  for (;;) {
    std::array<epoll_event, 64> events;
    const int n = ::epoll_wait(epoll_, events.data(), static_cast<int>(events.size()), -1);
    for (int i = 0; i < n; ++i) {
      const u64 binding = events[static_cast<unsigned>(i)].data.u64;
      if (binding == stop_binding) return;
      take_signal(binding);
    }
    if (n < 0 && errno != EINTR) return;
  }
}

void IrqFds::take_signal(u64 number) {
  const std::scoped_lock guard(lock_);
  const auto found = bindings_.find(number);
  if (found == bindings_.end()) return; // deassigned since
  const Binding& b = found->second;
  if (!b.event.take()) return;
  if (b.resampled) {
    set_line_(b.gsi, true, Source::resampled);
  } else {
    set_line_(b.gsi, true, Source::edge);
    set_line_(b.gsi, false, Source::edge);
  }
}

int IrqFds::control(const kvm_irqfd& args) {
  if ((args.flags & ~known_flags) != 0) return -EINVAL;
  if (::getpid() != owner_) return -EIO;
  return (args.flags & KVM_IRQFD_FLAG_DEASSIGN) != 0 ? deassign(args) : assign(args);
}

int IrqFds::assign(const kvm_irqfd& args) {
  Binding binding{.gsi = args.gsi, .resampled = (args.flags & KVM_IRQFD_FLAG_RESAMPLE) != 0, .event = {}};
  if (const int error = EventFd::open(static_cast<int>(args.fd), binding.event); error != 0) return error;
  auto resample = std::make_shared<EventFd>();
  if (binding.resampled) {
    if (const int error = EventFd::open(static_cast<int>(args.resamplefd), *resample); error != 0)
      return error;
  }

  const std::scoped_lock guard(lock_);
  const u64 identity = binding.event.identity();
  const auto same = [identity](const auto& b) { return b.second.event.identity() == identity; };
  if (std::ranges::any_of(bindings_, same)) return -EBUSY;
  if (const int error = start(); error != 0) return error;

  const u64 number = next_binding_++;
  const auto placed = bindings_.emplace(number, std::move(binding)).first;
  const bool resampled = placed->second.resampled;
  if (resampled) {
    const Resamplers* const now = resamplers_.latest();
    auto next = now == nullptr ? std::make_unique<Resamplers>() : std::make_unique<Resamplers>(*now);
    const auto at = std::ranges::upper_bound(*next, args.gsi, {}, &Resampler::gsi);
    next->insert(at, Resampler{.gsi = args.gsi, .binding = number, .event = std::move(resample)});
    resamplers_.publish(std::move(next));
    watches_changed_();
  }
  // Last, because from now on it may fire: at once, if it has a count. Edge-triggered, so that each signal is
  // answered once, also of an eventfd that is a semaphore.
  if (const int error = watch(epoll_, placed->second.event.fd(), EPOLLIN | EPOLLET, number); error != 0) {
    bindings_.erase(placed);
    if (resampled) remove_resampler(number, args.gsi);
    return error;
  }
  return 0;
}

int IrqFds::deassign(const kvm_irqfd& args) {
  u64 identity = 0;
  if (const int error = EventFd::identify(static_cast<int>(args.fd), identity); error != 0) return error;
  const std::scoped_lock guard(lock_);
  const auto found = std::ranges::find_if(bindings_, [&](const auto& b) {
    return b.second.event.identity() == identity && b.second.gsi == args.gsi;
  });
  if (found == bindings_.end()) return 0;
  // Closing our duplicate would not end the registration: the VMM still has the file open.
  ::epoll_ctl(epoll_, EPOLL_CTL_DEL, found->second.event.fd(), nullptr);
  const u64 number = found->first;
  const bool resampled = found->second.resampled;
  bindings_.erase(found);
  if (resampled) remove_resampler(number, args.gsi);
  return 0;
}

void IrqFds::remove_resampler(u64 binding, u32 gsi) {
  auto next = std::make_unique<Resamplers>(*resamplers_.latest());
  std::erase_if(*next, [binding](const Resampler& r) { return r.binding == binding; });
  if (next->empty()) next.reset();
  resamplers_.publish(std::move(next));
  watches_changed_();
  // Nobody would let the line go any more.
  if (!watches(gsi)) set_line_(gsi, false, Source::resampled);
}

bool IrqFds::watches(u32 gsi) const {
  if (resamplers_.empty()) return false;
  const auto table = resamplers_.read();
  return table.get() != nullptr && std::ranges::binary_search(*table.get(), gsi, {}, &Resampler::gsi);
}

void IrqFds::acknowledged(u32 gsi) const {
  const auto table = resamplers_.read();
  if (table.get() == nullptr) return;
  for (const Resampler& r : std::ranges::equal_range(*table.get(), gsi, {}, &Resampler::gsi))
    r.event->signal();
}

} // namespace ring3::kvm
