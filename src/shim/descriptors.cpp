// SPDX-License-Identifier: Apache-2.0
#include "shim/descriptors.h"

#include "shim/real_calls.h"

#include <array>
#include <atomic>
#include <cerrno>
#include <mutex>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <unordered_map>

namespace ring3::shim {

namespace {

// Incremented in the child of each fork.
std::atomic<unsigned> process_generation{0};

// Was there ever a sealed one? Most programs read and write without such a thing.
std::atomic<bool> any_sealed{false};

// One entry of the table. The flag is held for the time of a pointer's copy.
struct Slot {
  std::atomic_flag busy;
  std::atomic<bool> sealed{false};
  std::atomic<bool> used{false}; // there is an object
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
  static Table* const t = [] {
    auto* made = std::make_unique<Table>().release();
    pthread_atfork([] { table().changes.lock(); }, [] { table().changes.unlock(); },
                   [] {
                     table().changes.unlock();
                     process_generation.fetch_add(1);
                     for (unsigned fd = 0; fd < Table::chunk_slots * Table::chunks; fd += 1) {
                       Slot* s = table().find(fd);
                       if (s == nullptr) {
                         fd |= Table::chunk_slots - 1;
                       } else {
                         s->unlock(); // a thread that is not here may have held it
                       }
                     }
                   });
    return made;
  }();
  return *t;
}

bool file_identity(int fd, u64& id) {
  struct stat st;
  if (fstat(fd, &st) != 0) return false;
  id = static_cast<u64>(st.st_ino) * 0x9e3779b97f4a7c15 ^ st.st_dev;
  return true;
}

void put(int fd, std::shared_ptr<Object> object) {
  Table& t = table();
  if (!object) {
    // What programs close is rarely ours, and their threads must not wait for each other here.
    const Slot* const s = t.find(static_cast<unsigned>(fd));
    if (s == nullptr || !s->used.load(std::memory_order_acquire)) return;
  }
  std::shared_ptr<Object> old;
  const std::scoped_lock guard(t.changes);
  Slot* s = object ? t.make(static_cast<unsigned>(fd)) : t.find(static_cast<unsigned>(fd));
  if (s == nullptr) return;
  s->lock();
  s->used.store(object != nullptr, std::memory_order_release);
  const bool sealed = object && object->sealed();
  s->sealed.store(sealed, std::memory_order_release);
  if (sealed) any_sealed.store(true, std::memory_order_release);
  old = std::exchange(s->object, std::move(object));
  s->unlock();
  // `old` goes after both locks: its end may be long.
}

} // namespace

Object::Object() : process_(process_generation.load()) {}
bool Object::ours() const { return process_ == process_generation.load(std::memory_order_relaxed); }
int Object::check_map(u64, u64, int, int) const { return 0; }
int Object::fallocate(int fd, int mode, s64 offset, s64 length) {
  return real::fallocate(fd, mode, offset, length) == 0 ? 0 : -errno;
}

bool is_sealed(int fd) {
  if (fd < 0 || !any_sealed.load(std::memory_order_acquire)) return false;
  const Slot* const s = table().find(static_cast<unsigned>(fd));
  return s != nullptr && s->sealed.load(std::memory_order_acquire);
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
  put(fd, std::move(object));
  return fd;
}

int add_descriptor(const char* name, u64 size, std::shared_ptr<Object> object) {
  const int fd = memfd_create(name, MFD_CLOEXEC);
  if (fd < 0) return -errno;
  int result = size != 0 && ftruncate(fd, static_cast<off_t>(size)) != 0 ? -errno : 0;
  if (result == 0) result = adopt_descriptor(fd, std::move(object));
  if (result < 0) real::close(fd);
  return result;
}

std::shared_ptr<Object> find_object(int fd) {
  if (fd < 0) return nullptr;
  Table& t = table();
  if (Slot* s = t.find(static_cast<unsigned>(fd))) {
    s->lock();
    std::shared_ptr<Object> object = s->object;
    s->unlock();
    if (object) return object;
  }
  // A copy that came by a way we do not watch: SCM_RIGHTS, a raw system call.
  u64 id = 0;
  if (!file_identity(fd, id)) return nullptr;
  std::shared_ptr<Object> object;
  {
    const std::scoped_lock guard(t.changes);
    const auto e = t.by_file.find(id);
    if (e != t.by_file.end()) object = e->second.lock();
  }
  if (object) put(fd, object);
  return object;
}

void forget_descriptor(int fd) {
  if (fd >= 0) put(fd, nullptr);
}

void forget_descriptors(unsigned first, unsigned last) {
  for (u64 fd = first; fd <= last && fd < u64{Table::chunk_slots} * Table::chunks; ++fd) {
    if (table().find(static_cast<unsigned>(fd)) == nullptr) {
      fd |= Table::chunk_slots - 1;
    } else {
      put(static_cast<int>(fd), nullptr);
    }
  }
}

void copy_descriptor(int fd, int copy) {
  if (Slot* s = table().find(static_cast<unsigned>(fd))) {
    s->lock();
    std::shared_ptr<Object> object = s->object;
    s->unlock();
    if (object || table().find(static_cast<unsigned>(copy)) != nullptr) put(copy, std::move(object));
  } else {
    forget_descriptor(copy);
  }
}

} // namespace ring3::shim
