// SPDX-License-Identifier: Apache-2.0
#include "shim/descriptors.h"

#include "shim/real_calls.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <fcntl.h>
#include <mutex>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

namespace ring3::shim {

namespace {

// Incremented in the child of each fork.
std::atomic<unsigned> process_generation{0};

// Whose table this is. The child of a vfork() uses the same memory until it calls exec(), and what it closes
// are descriptors of its own.
std::atomic<pid_t> owner{getpid()};
bool in_vfork_child() { return getpid() != owner.load(std::memory_order_relaxed); }

// Was there ever an object? Before, programs read and write without a look at the table.
std::atomic<bool> any_sealed{false};

// One entry of the table. The flag is held for the time of a pointer's copy.
struct Slot {
  std::atomic_flag busy;
  std::atomic<bool> sealed{false};
  // Closes of this number that have begun, and that are over. What a number was before is not what it is
  // later.
  std::atomic<u32> closes_begun{0};
  std::atomic<u32> closes_done{0};
  std::shared_ptr<Object> object;

  void lock() {
    while (busy.test_and_set(std::memory_order_acquire)) sched_yield();
  }
  void unlock() { busy.clear(std::memory_order_release); }
};

class Table {
 public:
  static constexpr unsigned chunk_slots = 256;
  static constexpr unsigned chunks = 4096; // a million descriptors
  using Chunk = std::array<Slot, chunk_slots>;

  Slot* find(unsigned fd) {
    if (fd >= chunk_slots * chunks) return nullptr;
    Chunk* c = chunks_[fd / chunk_slots].load(std::memory_order_acquire);
    return c == nullptr ? nullptr : &(*c)[fd % chunk_slots];
  }
  // Needs `changes` held.
  Slot* make(unsigned fd) {
    if (fd >= chunk_slots * chunks) return nullptr;
    std::atomic<Chunk*>& at = chunks_[fd / chunk_slots];
    if (at.load(std::memory_order_acquire) == nullptr) {
      at.store(std::make_unique<Chunk>().release(),
               std::memory_order_release); // lives as long as the process
    }
    return find(fd);
  }

  // Held while an entry changes, and by fork(), so that a child never inherits a half-written one.
  std::mutex changes;
  // The file's identity, for copies made behind our back.
  std::unordered_map<u64, std::weak_ptr<Object>> by_file;
  std::size_t purge_at = 64; // how large it may grow before what is gone is taken out

 private:
  std::array<std::atomic<Chunk*>, chunks> chunks_{};
};

Table& table() {
  // Never destroyed: descriptors are used until the very end of the process.
  static Table* const t = std::make_unique<Table>().release();
  return *t;
}

bool file_identity(int fd, u64& id) {
  struct stat st;
  if (fstat(fd, &st) != 0) return false;
  id = static_cast<u64>(st.st_ino) * 0x9e3779b97f4a7c15 ^ st.st_dev;
  return true;
}

// Those of the range that there are.
template <class F> void for_each_slot(unsigned first, unsigned last, F&& f) {
  constexpr u64 end = u64{Table::chunk_slots} * Table::chunks;
  for (u64 fd = first; fd <= last && fd < end; ++fd) {
    if (Slot* const slot = table().find(static_cast<unsigned>(fd))) {
      f(*slot);
    } else {
      fd |= Table::chunk_slots - 1;
    }
  }
}

// Needs `changes` held. What stood there: it is to go after all locks, since its end may be long.
[[nodiscard]] std::shared_ptr<Object> exchange(Slot& slot, std::shared_ptr<Object> object) {
  const bool sealed = object != nullptr;
  slot.lock();
  slot.sealed.store(sealed);
  if (sealed) any_sealed.store(true, std::memory_order_release);
  std::shared_ptr<Object> old = std::exchange(slot.object, std::move(object));
  slot.unlock();
  return old;
}

std::shared_ptr<Object> object_of(Slot& slot) {
  slot.lock();
  std::shared_ptr<Object> object = slot.object;
  slot.unlock();
  return object;
}

} // namespace

Object::Object() : process_(process_generation.load()) {}
bool Object::ours() const { return process_ == process_generation.load(std::memory_order_relaxed); }
int Object::check_map(u64, u64, int, int) const { return -ENODEV; }
int Object::fallocate(int, int, s64 offset, s64 length) {
  return offset < 0 || length <= 0 ? -EINVAL : -ENODEV;
}

int Object::before_read(u64, u64) { return -EINVAL; }

void lock_descriptors_for_fork() { table().changes.lock(); }
void unlock_descriptors_after_fork(bool in_child) {
  Table& t = table();
  t.changes.unlock();
  if (!in_child) return;
  process_generation.fetch_add(1);
  owner.store(getpid());
  // A thread that is not here may have held one.
  for_each_slot(0, ~0U, [](Slot& slot) { slot.unlock(); });
}

bool is_sealed(int fd) {
  if (fd < 0 || !any_sealed.load(std::memory_order_acquire)) return false;
  const Slot* const s = table().find(static_cast<unsigned>(fd));
  return s != nullptr && s->sealed.load(std::memory_order_acquire);
}

int fix_size(int fd, u64 size) {
  if (size != 0 && real::ftruncate(fd, static_cast<off_t>(size)) != 0) return -errno;
  return real::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0 ? -errno : 0;
}

int adopt_descriptor(int fd, std::shared_ptr<Object> object) {
  u64 id = 0;
  if (!file_identity(fd, id)) return -errno;
  Table& t = table();
  {
    const std::scoped_lock guard(t.changes);
    if (t.by_file.size() >= t.purge_at) {
      std::erase_if(t.by_file, [](const auto& e) { return e.second.expired(); });
      t.purge_at = 2 * t.by_file.size() + 64;
    }
    t.by_file[id] = object;
  }
  std::shared_ptr<Object> old;
  const std::scoped_lock guard(t.changes);
  Slot* const slot = t.make(static_cast<unsigned>(fd));
  if (slot == nullptr) return -EMFILE;
  old = exchange(*slot, std::move(object));
  return fd;
}

int add_descriptor(const char* name, u64 size, std::shared_ptr<Object> object) {
  const int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return -errno;
  int result = fix_size(fd, size);
  if (result == 0) result = adopt_descriptor(fd, std::move(object));
  if (result < 0) real::close(fd);
  return result;
}

std::shared_ptr<Object> find_object(int fd) {
  if (fd < 0) return nullptr;
  Table& t = table();
  Slot* slot = t.find(static_cast<unsigned>(fd));
  if (slot != nullptr) {
    if (auto object = object_of(*slot)) return object;
  }
  // A copy that came by a way we do not watch: SCM_RIGHTS, a raw system call.
  const u32 done = slot != nullptr ? slot->closes_done.load() : 0;
  const u32 begun = slot != nullptr ? slot->closes_begun.load() : 0;
  u64 id = 0;
  if (!file_identity(fd, id)) return nullptr;
  const std::scoped_lock guard(t.changes);
  const auto e = t.by_file.find(id);
  std::shared_ptr<Object> object = e != t.by_file.end() ? e->second.lock() : nullptr;
  if (!object) return nullptr;
  if (slot == nullptr) slot = t.make(static_cast<unsigned>(fd));
  // Kept for the next time, unless somebody closes this number at the same moment: it may be another file
  // now.
  const bool still_that = slot != nullptr && begun == done && slot->closes_begun.load() == begun;
  if (still_that && !in_vfork_child() && !object_of(*slot)) {
    static_cast<void>(exchange(*slot, object));
    // A close that has begun meanwhile may have seen nothing of ours.
    if (slot->closes_begun.load() != begun) static_cast<void>(exchange(*slot, nullptr));
  }
  return object;
}

Closing::Closing(unsigned first, unsigned last) : first_(first), last_(last) {
  // What programs close is rarely ours, and their threads must not wait for each other here.
  bool any = false;
  for_each_slot(first, last, [&](Slot& slot) {
    slot.closes_begun.fetch_add(1);
    any |= slot.sealed.load();
  });
  if (!any || in_vfork_child()) return;
  std::vector<std::shared_ptr<Object>> gone; // after the lock
  const std::scoped_lock guard(table().changes);
  for_each_slot(first, last, [&](Slot& slot) { gone.push_back(exchange(slot, nullptr)); });
}

Closing::~Closing() {
  for_each_slot(first_, last_, [](Slot& slot) { slot.closes_done.fetch_add(1); });
}

} // namespace ring3::shim
