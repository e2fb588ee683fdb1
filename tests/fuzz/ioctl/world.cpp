// SPDX-License-Identifier: Apache-2.0
#include "world.h"

#include "guests.h"
#include "operations.h"

#include <cstdarg>
#include <cstdio>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace fuzz {

namespace {

constexpr u64 page = 4096, pages = Arena::size / page;
constexpr u64 short_file_at = Arena::size - Arena::short_file_bytes;
constexpr int all = PROT_READ | PROT_WRITE;

void* at(u64 offset) { return reinterpret_cast<void*>(Arena::base + offset); }

} // namespace

void fail(Record& record, const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(record.failure, sizeof record.failure, format, list);
  va_end(list);
  _exit(1);
}

void Descriptor::reset(int fd) {
  const int old = fd_.exchange(fd);
  if (old >= 0) close(old);
}

Arena::Arena()
    : file_(memfd_create("guest-memory", MFD_CLOEXEC)),
      short_file_(memfd_create("short-memory", MFD_CLOEXEC)) {
  if (file_ < 0 || short_file_ < 0 || ftruncate(file_, file_bytes) != 0) _exit(3);
  map_all();
}
Arena::~Arena() {
  // The addresses stay taken, so that nothing else gets there.
  mmap(at(0), size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  close(file_);
  close(short_file_);
}

void Arena::map_all() {
  if (ftruncate(short_file_, short_file_bytes) != 0) _exit(3);
  mmap(at(0), file_bytes, all, MAP_SHARED | MAP_FIXED, file_, 0);
  mmap(at(file_bytes), size - file_bytes, all, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  mmap(at(short_file_at), short_file_bytes, all, MAP_SHARED | MAP_FIXED, short_file_, 0);
}

namespace {
// The guest's asynchronous page faults begin when such a range has pages that are not there. Closed at once:
// nobody would bring them.
long serve_for_a_moment(void* start, u64 bytes) {
  const int fd = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY));
  if (fd < 0) return -1;
  uffdio_api api{};
  api.api = UFFD_API;
  uffdio_register range{};
  range.range = {reinterpret_cast<u64>(start), bytes};
  range.mode = UFFDIO_REGISTER_MODE_MISSING;
  const int result = ioctl(fd, UFFDIO_API, &api) == 0 ? ioctl(fd, UFFDIO_REGISTER, &range) : -1;
  close(fd);
  return result;
}
} // namespace

long Arena::disturb(Random& random) {
  const u64 first = random.below(pages);
  const u64 count =
      1 + random.below(random.one_in(4) ? pages - first : (pages - first < 8 ? pages - first : 8));
  void* const start = at(first * page);
  switch (random.below(9)) {
  case 0: return munmap(start, count * page);
  case 1: return mprotect(start, count * page, PROT_NONE);
  case 2: return mprotect(start, count * page, PROT_READ);
  case 3: return madvise(start, count * page, MADV_DONTNEED);
  case 4: return ftruncate(short_file_, static_cast<off_t>(random.below(short_file_bytes)));
  case 5: return mprotect(start, count * page, all);
  case 6: return serve_for_a_moment(start, count * page);
  default: map_all(); return 0;
  }
}

void Arena::write(u64 offset, std::span<const std::byte> bytes) {
  if (pwrite(file_, bytes.data(), bytes.size(), static_cast<off_t>(offset)) < 0) _exit(3);
}

int Thread::any() {
  World& w = world;
  switch (random.below(7)) {
  case 0: return w.kvm.get();
  case 1: return random.among(w.vm).get();
  case 2: return random.among(w.event).get();
  case 3:
  case 4: return random.among(w.vcpu).get();
  default: return random.among(w.other).get();
  }
}

World::World(Record& r, u64 seed) : record(r) {
  Thread t{*this, r.threads[0], Random(seed), 0};
  kvm.reset(open("/dev/kvm", O_RDWR | O_CLOEXEC));
  if (kvm.get() < 0) fail(record, "cannot open /dev/kvm: errno %d", errno);
  run_size = static_cast<u64>(ioctl(kvm.get(), KVM_GET_VCPU_MMAP_SIZE, 0));
  write_tables(arena);
  for (Descriptor& e : event) e.reset(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  for (Descriptor& v : vm) make_vm(t, v);
  for (unsigned i = 0; i < vcpus; ++i) make_vcpu(t, vcpu[i], vm[i % vms].get());
}

} // namespace fuzz
