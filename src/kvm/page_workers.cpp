// SPDX-License-Identifier: Apache-2.0
#include "kvm/page_workers.h"

#include "kvm/recoverable_copy.h"
#include "kvm/signals_blocked.h"

#include <condition_variable>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>
#include <utility>

namespace ring3::kvm {
namespace {

// As the program itself would, since a userfaultfd may serve faults of user mode only. Where nobody catches
// the fault of memory that has gone meanwhile (`ring3 run`, which has no userfaultfd either) the kernel
// reads.
bool touch(const std::byte* page) {
  std::byte value;
  if (copy_faults_are_caught()) return copy_recoverably(&value, page, sizeof value);
  const iovec to{&value, sizeof value};
  const iovec from{const_cast<std::byte*>(page), sizeof value};
  return ::process_vm_readv(::getpid(), &to, 1, &from, 1, 0) == ssize_t{sizeof value};
}

} // namespace

// --- FetchedPages ---

FetchedPages::FetchedPages(std::function<void()> arrived) : owner_(::getpid()), arrived_(std::move(arrived)) {
  pages_.reserve(max_expected);
}

void FetchedPages::arrive(FetchedPage page) {
  const std::scoped_lock guard(lock_);
  if (!arrived_) return;
  pages_.push_back(page);
  count_.store(pages_.size(), std::memory_order_release);
  arrived_();
}

std::optional<FetchedPage> FetchedPages::first() const {
  if (empty()) return std::nullopt;
  const std::scoped_lock guard(lock_);
  return pages_.front();
}

void FetchedPages::drop_first() {
  const std::scoped_lock guard(lock_);
  pages_.erase(pages_.begin());
  count_.store(pages_.size(), std::memory_order_release);
}

void FetchedPages::forget() {
  if (::getpid() != owner_) return; // the lock may be that of a thread which is not here
  const std::scoped_lock guard(lock_);
  arrived_ = nullptr;
}

// --- PageWorkers ---

struct PageWorkers::Shared {
  struct Job {
    const std::byte* page;
    u32 token;
    std::shared_ptr<FetchedPages> to;
  };

  std::mutex lock;
  std::condition_variable changed;
  std::vector<Job> jobs; // never more than there are threads without one
  unsigned threads = 0, idle = 0;
  bool over = false;

  void serve();
  static bool start(const std::shared_ptr<Shared>& self);
};

void PageWorkers::Shared::serve() {
  std::unique_lock guard(lock);
  for (;;) {
    ++idle;
    changed.wait(guard, [this] { return over || !jobs.empty(); });
    --idle;
    if (over) return;
    const Job job = std::move(jobs.back());
    jobs.pop_back();
    guard.unlock();
    const bool there = touch(job.page);
    job.to->arrive({job.token, there});
    guard.lock();
  }
}

// lock held.
bool PageWorkers::Shared::start(const std::shared_ptr<Shared>& self) {
  const auto body = [](void* argument) -> void* {
    const std::unique_ptr<std::shared_ptr<Shared>> own(static_cast<std::shared_ptr<Shared>*>(argument));
    (*own)->serve();
    return nullptr;
  };
  auto own = std::make_unique<std::shared_ptr<Shared>>(self);
  pthread_attr_t attributes;
  if (::pthread_attr_init(&attributes) != 0) return false;
  ::pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  ::pthread_attr_setstacksize(&attributes, std::size_t{256} << 10);
  const SignalsBlocked blocked;
  pthread_t thread;
  const bool made = ::pthread_create(&thread, &attributes, body, own.get()) == 0;
  ::pthread_attr_destroy(&attributes);
  if (!made) return false;
  static_cast<void>(own.release()); // the thread's
  ::pthread_setname_np(thread, "ring3-page");
  ++self->threads;
  return true;
}

PageWorkers::PageWorkers() : owner_(::getpid()), shared_(std::make_shared<Shared>()) {}

PageWorkers::~PageWorkers() {
  if (::getpid() != owner_) return;
  const std::scoped_lock guard(shared_->lock);
  shared_->over = true;
  shared_->jobs.clear();
  shared_->changed.notify_all();
}

bool PageWorkers::fetch(const std::byte* page, u32 token, const std::shared_ptr<FetchedPages>& to) {
  if (::getpid() != owner_) return false;
  const std::scoped_lock guard(shared_->lock);
  // A new thread counts as idle only when it has come to wait; whoever waits takes whichever job is there.
  if (shared_->jobs.size() >= shared_->idle && (shared_->threads >= max_threads || !Shared::start(shared_)))
    return false;
  shared_->jobs.push_back({page, token, to});
  shared_->changed.notify_one();
  return true;
}

} // namespace ring3::kvm
