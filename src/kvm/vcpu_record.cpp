// SPDX-License-Identifier: Apache-2.0
#include "kvm/vcpu_record.h"

#include "base/fingerprint.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

namespace ring3::kvm {

using namespace record_format;

u64 record_format::layout() {
  static const u64 value = [] {
    Fingerprint f;
    f.add(sizeof(Header)).add(sizeof(Entry)).add(sizeof(Record)).add(most_places);
    f.add(offsetof(Record, stats)).add(offsetof(Record, executor));
    for (const StatsLayout::Descriptor& d : StatsLayout::vcpu().descriptors()) f.add(d.name).add(d.size);
    return f.value();
  }();
  return value;
}

u32 next_vm_number() {
  static constinit std::atomic<u32> last{0};
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

// What a process knows of its file. It lies in memory that a child of fork() finds zeroed, and so do all
// children that are made in other ways: there, it has no places. Never destroyed once it is in use.
class VcpuRecord::File {
 public:
  // Null: there can be none.
  static File* of_this_process();

  // A place for a vCPU, zeroed; null: there is none.
  Record* take(u32 vm, u32 vcpu, u32& place);
  void give_back(u32 place);
  // A vCPU without a place has come (1) or gone (-1).
  void count_unplaced(u32 change);
  void set_executor(u32 place, u64 layout) { entry(place).executor.store(layout, std::memory_order_release); }

 private:
  static File* make();
  bool open();

  Header& header() const { return *reinterpret_cast<Header*>(base_); }
  Entry& entry(u32 place) const { return reinterpret_cast<Entry*>(base_ + directory_at)[place]; }
  Record* record(u32 place) const { return reinterpret_cast<Record*>(base_ + record_at(place)); }

  bool ours_ = false; // else all of this is zero
  std::byte* base_ = nullptr;
  u64 bytes_ = 0;
  int fd_ = -1;
  u32 places_ = 0;
  std::array<std::atomic<u64>, most_places / 64> taken_{};
  std::array<u64, most_places> generation_{}; // of the place's owner; that in the file is for others
};

VcpuRecord::File* VcpuRecord::File::make() {
  // Zeroed in children (Linux 4.14).
  void* const p = ::mmap(nullptr, sizeof(File), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) return nullptr;
  File* const file = std::construct_at(static_cast<File*>(p));
  if (::madvise(p, sizeof(File), MADV_WIPEONFORK) == 0 && file->open()) return file;
  ::munmap(p, sizeof(File));
  return nullptr;
}

bool VcpuRecord::File::open() {
  // A file may not be larger than that, and who tries gets SIGXFSZ.
  rlimit limit{};
  if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur < record_at(1)) return false;
  places_ = static_cast<u32>(std::min<u64>(most_places, (limit.rlim_cur - records_at) / sizeof(Record)));
  bytes_ = record_at(places_);
  const int fd = ::memfd_create(file_name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return false;
  void* p = MAP_FAILED;
  // No access but to places in use: a program may lock all that it can access into memory (mlockall()).
  if (::ftruncate(fd, static_cast<off_t>(bytes_)) == 0)
    p = ::mmap(nullptr, bytes_, PROT_NONE, MAP_SHARED, fd, 0);
  // From now on, only this mapping can write and nobody can resize. Kernels before 5.1 do not know the first.
  ::fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
  ::fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  if (p == MAP_FAILED || ::madvise(p, bytes_, MADV_DONTFORK) != 0 ||
      ::mprotect(p, records_at, PROT_READ | PROT_WRITE) != 0) {
    if (p != MAP_FAILED) ::munmap(p, bytes_);
    ::close(fd);
    return false;
  }
  base_ = static_cast<std::byte*>(p);
  Header& h = header();
  h.version = version;
  h.header_bytes = sizeof(Header);
  h.layout = layout();
  h.process = static_cast<u32>(::getpid());
  h.places = places_;
  h.record_bytes = sizeof(Record);
  h.directory_at = directory_at;
  h.records_at = records_at;
  h.magic.store(magic, std::memory_order_release);
  fd_ = fd;
  ours_ = true;
  return true;
}

VcpuRecord::File* VcpuRecord::File::of_this_process() {
  static constinit std::atomic<File*> current{nullptr};
  File* known = current.load(std::memory_order_acquire);
  if (known != nullptr && known->ours_) return known;
  File* const made = make();
  if (made == nullptr) return nullptr;
  if (current.compare_exchange_strong(known, made, std::memory_order_acq_rel)) return made;
  // Another thread was faster.
  ::munmap(made->base_, made->bytes_);
  ::close(made->fd_);
  ::munmap(made, sizeof(File));
  return known;
}

Record* VcpuRecord::File::take(u32 vm, u32 vcpu, u32& place) {
  for (u32 word = 0; word * 64 < places_; ++word) {
    u64 taken = taken_[word].load(std::memory_order_relaxed);
    while (~taken != 0) {
      const auto free = static_cast<u32>(std::countr_one(taken));
      if (!taken_[word].compare_exchange_weak(taken, taken | u64{1} << free, std::memory_order_acquire))
        continue;
      place = word * 64 + free;
      Record* const r = place < places_ ? record(place) : nullptr;
      if (r == nullptr || ::mprotect(r, sizeof *r, PROT_READ | PROT_WRITE) != 0) {
        taken_[word].fetch_and(~(u64{1} << free), std::memory_order_release);
        return nullptr;
      }
      if (generation_[place] != 0) std::memset(static_cast<void*>(r), 0, sizeof *r);
      Entry& e = entry(place);
      e.vm = vm;
      e.vcpu = vcpu;
      e.executor.store(0, std::memory_order_relaxed);
      e.generation.store(++generation_[place], std::memory_order_release);
      u32 used = header().used.load(std::memory_order_relaxed);
      while (used <= place && !header().used.compare_exchange_weak(used, place + 1)) {
      }
      return r;
    }
  }
  return nullptr;
}

void VcpuRecord::File::give_back(u32 place) {
  if (!ours_) return; // a parent's
  // Before whatever the next one writes there.
  entry(place).generation.exchange(++generation_[place], std::memory_order_acq_rel);
  taken_[place / 64].fetch_and(~(u64{1} << place % 64), std::memory_order_release);
}

void VcpuRecord::File::count_unplaced(u32 change) {
  if (ours_) header().unplaced.fetch_add(change, std::memory_order_relaxed);
}

VcpuRecord::VcpuRecord(u32 vm, u32 vcpu) : file_(File::of_this_process()) {
  record_ = file_ != nullptr ? file_->take(vm, vcpu, place_) : nullptr;
  if (record_ != nullptr) return;
  own_ = std::make_unique<Record>();
  record_ = own_.get();
  if (file_ != nullptr) file_->count_unplaced(1);
}

VcpuRecord::~VcpuRecord() {
  if (file_ == nullptr) return;
  if (own_ == nullptr) {
    file_->give_back(place_);
  } else {
    file_->count_unplaced(~u32{0});
  }
}

std::span<std::byte> VcpuRecord::executor(u64 layout) {
  if (shared()) file_->set_executor(place_, layout);
  return record_->executor;
}

} // namespace ring3::kvm
