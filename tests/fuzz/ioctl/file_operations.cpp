// SPDX-License-Identifier: Apache-2.0
// What can be done to any descriptor, done to KVM's.
#include "operations.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

namespace fuzz {

namespace {

// A copy that comes by a socket.
int send_to_ourselves(int fd) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0, ends) != 0) return -1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  char byte = 0;
  iovec piece{&byte, 1};
  msghdr message{};
  message.msg_iov = &piece;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* const header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
  int copy = -1;
  if (sendmsg(ends[0], &message, 0) == 1 && recvmsg(ends[1], &message, MSG_CMSG_CLOEXEC) == 1 &&
      CMSG_FIRSTHDR(&message) != nullptr)
    std::memcpy(&copy, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof copy);
  close(ends[0]);
  close(ends[1]);
  return copy;
}

int copy_of(Random& r, int fd) {
  switch (r.below(4)) {
  case 0: return dup(fd);
  case 1: return fcntl(fd, F_DUPFD_CLOEXEC, static_cast<int>(r.below(300)));
  case 2: return send_to_ourselves(fd);
  default: {
    // Over a descriptor of our own.
    const int place = open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (place < 0) return -1;
    if (dup2(fd, place) == place) return place;
    close(place);
    return -1;
  }
  }
}

} // namespace

void file_operation(Thread& t) {
  Random& r = t.random;
  World& w = t.world;
  const int fd = t.any();
  const u64 number = r.odd_number();
  const auto offset = static_cast<off_t>(r.one_in(2) ? number : 4096 * r.below(80));
  static thread_local std::array<std::byte, 8192> bytes;
  const std::size_t size = r.below(bytes.size());
  const u64 kind = r.below(20);
  constexpr const char* names[] = {"copy",     "copy",        "copy",      "close vCPU", "close vCPU",
                                   "close VM", "close other", "read",      "write",      "pread",
                                   "pwrite",   "lseek",       "ftruncate", "fallocate",  "mmap",
                                   "mmap",     "fcntl",       "poll",      "fstat",      "open again"};
  t.record.begin(names[kind], static_cast<u64>(fd), static_cast<u64>(offset));
  long result = 0;
  switch (kind) {
  case 0:
  case 1:
  case 2: {
    const int copy = copy_of(r, fd);
    if (copy < 0) break;
    // It takes the place of what it may be: the original is closed while others use it.
    switch (r.below(4)) {
    case 0: w.vcpu[r.below(World::vcpus)].reset(copy); break;
    case 1: w.vm[r.below(World::vms)].reset(copy); break;
    default: w.other[r.below(World::others)].reset(copy); break;
    }
    break;
  }
  case 3:
  case 4: w.vcpu[r.below(World::vcpus)].reset(); break;
  case 5: w.vm[r.below(World::vms)].reset(); break;
  case 6: w.other[r.below(World::others)].reset(); break;
  // An eventfd may wait for its counter, a KVM descriptor has nothing to say.
  case 7: result = read(r.among(w.vcpu).get(), bytes.data(), size); break;
  case 8: result = write(r.among(w.vm).get(), bytes.data(), size); break;
  case 9: result = pread(r.among(w.other).get(), bytes.data(), size, offset); break;
  case 10: result = pwrite(fd, bytes.data(), size, offset); break;
  case 11: result = lseek(fd, offset, static_cast<int>(r.below(5))); break;
  case 12: result = ftruncate(fd, offset); break;
  case 13:
    result = fallocate(fd, static_cast<int>(r.below(4)), offset, static_cast<off_t>(4096 * r.below(64)));
    break;
  case 14:
  case 15: {
    const std::size_t length = r.one_in(4) ? number & 0xffffff : 4096 * (1 + r.below(16));
    void* const p = mmap(nullptr, length, static_cast<int>(r.below(8)),
                         r.one_in(2) ? MAP_SHARED : MAP_PRIVATE, fd, offset);
    result = p == MAP_FAILED ? -1 : munmap(p, length);
    break;
  }
  case 16: result = fcntl(fd, r.one_in(2) ? F_GETFL : F_GETFD); break;
  case 17: {
    pollfd p{fd, static_cast<short>(number), 0};
    result = poll(&p, 1, 0);
    break;
  }
  case 18: {
    struct stat st;
    result = fstat(fd, &st);
    break;
  }
  default: {
    char path[40];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    const int again = open(path, O_RDWR | O_CLOEXEC);
    if (again >= 0) w.other[r.below(World::others)].reset(again);
    result = again;
    break;
  }
  }
  t.record.end(result);
}

} // namespace fuzz
