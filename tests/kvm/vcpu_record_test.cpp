// SPDX-License-Identifier: Apache-2.0
#include "kvm/vcpu_record.h"

#include "kvm/record_reader.h"

#include <algorithm>
#include <csignal>
#include <cstring>
#include <fcntl.h>
#include <filesystem>
#include <functional>
#include <gtest/gtest.h>
#include <set>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace ring3::kvm {
namespace {

using namespace record_format;

std::string number(int fd) { return "/proc/self/fd/" + std::to_string(fd); }

// The descriptors of such files that this process has.
std::set<int> files() {
  std::set<int> found;
  for (const auto& e : std::filesystem::directory_iterator("/proc/self/fd")) {
    std::error_code gone; // the iterator's own
    if (std::filesystem::read_symlink(e.path(), gone) == "/memfd:ring3-stats (deleted)")
      found.insert(std::stoi(e.path().filename()));
  }
  return found;
}

// This process's file, opened as another process would.
class Opened {
 public:
  explicit Opened(int fd) : fd_(::open(number(fd).c_str(), O_RDONLY | O_CLOEXEC)) {}
  ~Opened() { ::close(fd_); }
  Opened(const Opened&) = delete;
  Opened& operator=(const Opened&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

SeenProcess seen_by_others() {
  for (const int fd : files()) {
    const Opened file(fd);
    auto seen = read_vcpu_records(file.get());
    EXPECT_TRUE(seen) << seen.error().message;
    if (seen && seen->process == static_cast<u32>(::getpid())) return std::move(*seen);
  }
  ADD_FAILURE() << "no file";
  return {};
}

// In a child, whose failures are its exit code.
int in_child(const std::function<bool()>& f) {
  const pid_t child = ::fork();
  if (child == 0) ::_exit(f() ? 0 : 1);
  int status = -1;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  return status;
}

TEST(VcpuRecord, OthersSeeItCount) {
  VcpuRecord a(7, 3), b(7, 1);
  ASSERT_TRUE(a.shared());
  a.instructions().set(1000);
  a.stats().io_exits.add(5);
  a.stats().halt_wait_hist.add(1);
  const std::span<std::byte> room = b.executor(0x1234);
  room.front() = room.back() = std::byte{0x5a};
  SeenProcess seen = seen_by_others();
  ASSERT_EQ(seen.vcpus.size(), 2u);
  EXPECT_EQ(seen.unplaced, 0u);
  EXPECT_EQ(seen.vcpus[0].vcpu, 1u) << "in order";
  EXPECT_EQ(seen.vcpus[0].executor, 0x1234u);
  EXPECT_EQ(seen.vcpus[0].record->executor.front(), std::byte{0x5a});
  EXPECT_EQ(seen.vcpus[0].record->executor.back(), std::byte{0x5a});
  EXPECT_EQ(seen.vcpus[1].vm, 7u);
  EXPECT_EQ(seen.vcpus[1].vcpu, 3u);
  EXPECT_EQ(seen.vcpus[1].executor, 0u);
  EXPECT_EQ(seen.vcpus[1].record->instructions.value(), 1000u);
  EXPECT_EQ(seen.vcpus[1].record->stats.io_exits.value(), 5u);
  EXPECT_EQ(seen.vcpus[1].record->stats.halt_wait_hist.bucket(1), 1u);
  a.instructions().add(1);
  EXPECT_EQ(seen_by_others().vcpus[1].record->instructions.value(), 1001u);
}

TEST(VcpuRecord, EndsWithItsVcpu) {
  {
    VcpuRecord r(1, 0);
    r.instructions().set(99);
    r.stats().exits.add(1);
    r.executor(5)[100] = std::byte{1};
    EXPECT_EQ(seen_by_others().vcpus.size(), 1u);
  }
  EXPECT_TRUE(seen_by_others().vcpus.empty());
  VcpuRecord next(2, 4);
  const SeenProcess seen = seen_by_others();
  ASSERT_EQ(seen.vcpus.size(), 1u);
  EXPECT_EQ(seen.vcpus[0].vm, 2u);
  EXPECT_EQ(seen.vcpus[0].executor, 0u);
  EXPECT_EQ(seen.vcpus[0].record->instructions.value(), 0u);
  EXPECT_EQ(seen.vcpus[0].record->stats.exits.value(), 0u);
  EXPECT_EQ(seen.vcpus[0].record->executor[100], std::byte{0});
}

TEST(VcpuRecord, ThousandsAndMoreThanThereIsRoomFor) {
  constexpr u32 beyond = 5;
  std::vector<std::unique_ptr<VcpuRecord>> all;
  for (u32 i = 0; i < most_places + beyond; ++i) {
    all.push_back(std::make_unique<VcpuRecord>(1, i));
    all.back()->instructions().set(i);
    ASSERT_EQ(all.back()->shared(), i < most_places);
  }
  EXPECT_EQ(files().size(), 1u);
  {
    const SeenProcess seen = seen_by_others();
    ASSERT_EQ(seen.vcpus.size(), most_places);
    EXPECT_EQ(seen.unplaced, beyond);
    for (u32 i = 0; i < most_places; ++i) ASSERT_EQ(seen.vcpus[i].record->instructions.value(), i);
  }
  all.clear();
  EXPECT_EQ(seen_by_others().unplaced, 0u);
}

TEST(VcpuRecord, ThreadsMakeAndEndThemWhileAnotherReads) {
  std::atomic<bool> done{false};
  std::vector<std::jthread> makers;
  for (u32 vm = 1; vm <= 3; ++vm) {
    makers.emplace_back([&, vm] {
      for (u32 i = 0; !done; ++i) {
        VcpuRecord r(vm, i);
        r.instructions().set(vm * u64{1000000} + i % 1000000);
        r.executor(vm);
      }
    });
  }
  const VcpuRecord there(9, 9);
  const Opened file(*files().begin());
  u32 others = 0;
  for (int i = 0; i < 300; ++i) {
    const auto seen = read_vcpu_records(file.get());
    ASSERT_TRUE(seen);
    bool found = false;
    for (const SeenVcpu& v : seen->vcpus) {
      found |= v.vm == 9;
      others += v.vm != 9;
      const u64 n = v.record->instructions.value();
      // Before it has counted, or what this vCPU has counted, never another's.
      if (v.vm == 9 || n == 0) continue;
      ASSERT_EQ(n, v.vm * u64{1000000} + v.vcpu % 1000000);
    }
    ASSERT_TRUE(found);
  }
  done = true;
  EXPECT_GT(others, 0u);
}

// Whoever came by the descriptor can read; so can the program itself, by its number.
TEST(VcpuRecord, NobodyElseWrites) {
  const VcpuRecord r(1, 0);
  const int fd = *files().begin();
  const int again = ::open(number(fd).c_str(), O_RDWR | O_CLOEXEC);
  for (const int f : {fd, again}) {
    if (f < 0) continue;
    EXPECT_EQ(::pwrite(f, "x", 1, 0), -1);
    EXPECT_EQ(::ftruncate(f, 0), -1);
    EXPECT_EQ(::fallocate(f, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), -1);
    EXPECT_EQ(::mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, f, 0), MAP_FAILED);
  }
  if (again >= 0) ::close(again);
  EXPECT_EQ(seen_by_others().vcpus.size(), 1u);
}

TEST(VcpuRecord, ChildHasAFileOfItsOwn) {
  VcpuRecord parents(1, 0);
  parents.instructions().set(5);
  const int status = in_child([] {
    VcpuRecord mine(1, 0);
    mine.instructions().set(6);
    const SeenProcess seen = seen_by_others();
    return mine.shared() && files().size() == 2 && seen.vcpus.size() == 1 &&
           seen.vcpus[0].record->instructions.value() == 6;
  });
  EXPECT_EQ(status, 0);
  const SeenProcess seen = seen_by_others();
  ASSERT_EQ(seen.vcpus.size(), 1u);
  EXPECT_EQ(seen.vcpus[0].record->instructions.value(), 5u);
}

TEST(VcpuRecord, ParentsRecordEndsInAChildWithoutHarm) {
  auto parents = std::make_unique<VcpuRecord>(1, 0);
  EXPECT_EQ(in_child([&] {
              parents.reset();
              return true;
            }),
            0);
  EXPECT_EQ(seen_by_others().vcpus.size(), 1u);
}

// In children, because there the file is yet to be made.
TEST(VcpuRecord, CountsInOrdinaryMemoryWhereThereCanBeNoFile) {
  const auto counts = [] {
    VcpuRecord r(1, 0);
    r.instructions().set(3);
    ++r.stats().exits;
    r.executor(1)[7] = std::byte{1};
    return !r.shared() && r.instructions().value() == 3 && r.stats().exits.value() == 1;
  };
  const auto limited = [&](auto resource, u64 value) {
    return in_child([&] {
      const rlimit limit{value, value};
      return ::setrlimit(resource, &limit) == 0 && counts();
    });
  };
  EXPECT_EQ(limited(RLIMIT_NOFILE, 0), 0);
  EXPECT_EQ(limited(RLIMIT_FSIZE, 0), 0) << "whose signal would end the process";
  EXPECT_EQ(limited(RLIMIT_FSIZE, record_at(1) - 1), 0);
}

TEST(VcpuRecord, SmallerFileWhereThatIsTheLimit) {
  EXPECT_EQ(in_child([] {
              const rlimit limit{record_at(2), record_at(2)};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              const VcpuRecord a(1, 0), b(1, 1), c(1, 2);
              const SeenProcess seen = seen_by_others();
              return a.shared() && b.shared() && !c.shared() && seen.vcpus.size() == 2 && seen.unplaced == 1;
            }),
            0);
}

// A program may close what it does not know, and give the number to another file.
TEST(VcpuRecord, ClosedDescriptorIsNotUsedAgain) {
  EXPECT_EQ(in_child([] {
              for (const int fd : files()) ::close(fd); // the parent's
              VcpuRecord first(1, 0);
              const int fd = *files().begin();
              const int other = ::memfd_create("other", MFD_CLOEXEC);
              if (::dup2(other, fd) != fd) return false;
              std::vector<std::unique_ptr<VcpuRecord>> more;
              for (u32 i = 1; i < 100; ++i) more.push_back(std::make_unique<VcpuRecord>(1, i));
              for (const auto& r : more) r->instructions().add(1);
              more.clear();
              struct stat st {};
              first.instructions().add(1);
              return ::fstat(fd, &st) == 0 && st.st_size == 0 && files().empty();
            }),
            0);
}

// --- what the reader makes of files that are not what they should be ---

class HostileFile : public testing::Test {
 protected:
  HostileFile() : fd_(::memfd_create("ring3-stats", MFD_CLOEXEC)) {
    good_.magic = magic;
    good_.version = version;
    good_.header_bytes = sizeof(Header);
    good_.layout = layout();
    good_.process = 1;
    good_.places = 2;
    good_.record_bytes = sizeof(Record);
    good_.directory_at = directory_at;
    good_.records_at = records_at;
    good_.used = 2;
    resize(record_at(2));
    put(good_, 0);
    for (u32 i = 0; i < 2; ++i) {
      Entry e{};
      e.generation = 1;
      e.vcpu = i;
      put(e, directory_at + i * sizeof e);
    }
  }
  ~HostileFile() override { ::close(fd_); }

  void resize(u64 bytes) { ASSERT_EQ(::ftruncate(fd_, static_cast<off_t>(bytes)), 0); }
  template <class T> void put(const T& value, u64 at) {
    ASSERT_EQ(::pwrite(fd_, &value, sizeof value, static_cast<off_t>(at)),
              static_cast<ssize_t>(sizeof value));
  }
  // Writes the good header with a change.
  template <class F> void change(F&& f) {
    Header h{};
    ASSERT_EQ(::pread(fd_, static_cast<void*>(&h), sizeof h, 0), static_cast<ssize_t>(sizeof h));
    f(h);
    put(h, 0);
  }
  void refused(const char* what) {
    const auto seen = read_vcpu_records(fd_);
    ASSERT_FALSE(seen) << what;
    EXPECT_NE(seen.error().message.find(what), std::string::npos) << seen.error().message;
    EXPECT_FALSE(seen.error().fix.empty());
  }

  Header good_{};
  int fd_;
};

TEST_F(HostileFile, GoodOneIsRead) {
  const auto seen = read_vcpu_records(fd_);
  ASSERT_TRUE(seen) << seen.error().message;
  EXPECT_EQ(seen->vcpus.size(), 2u);
}

TEST_F(HostileFile, BeingMade) {
  change([](Header& h) { h.magic = 0; });
  auto seen = read_vcpu_records(fd_);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->process, 0u);
  resize(0);
  seen = read_vcpu_records(fd_);
  ASSERT_TRUE(seen);
  EXPECT_TRUE(seen->vcpus.empty());
}

TEST_F(HostileFile, Truncated) {
  for (const u64 size : {record_at(2) - 1, record_at(1), records_at, directory_at + 1, u64{sizeof(Header)}}) {
    resize(size);
    refused("shorter");
  }
  for (const u64 size : {sizeof(Header) - 1, std::size_t{8}, std::size_t{1}}) {
    resize(size);
    refused("too short");
  }
}

TEST_F(HostileFile, SomethingElse) {
  change([](Header& h) { h.magic = magic + 1; });
  refused("does not begin");
}

TEST_F(HostileFile, AnotherBuild) {
  const auto other = [this](auto member) {
    change([&](Header& h) { ++(h.*member); });
    refused("another build");
    change([&](Header& h) { --(h.*member); });
  };
  other(&Header::version);
  other(&Header::header_bytes);
  other(&Header::layout);
  other(&Header::record_bytes);
  other(&Header::directory_at);
  other(&Header::records_at);
  EXPECT_TRUE(read_vcpu_records(fd_));
}

TEST_F(HostileFile, WildCounts) {
  for (const u32 places : {3u, most_places, most_places + 1, 0x80000000u, ~0u}) {
    change([&](Header& h) { h.places = places; });
    refused("shorter");
  }
  change([](Header& h) {
    h.places = 2;
    h.used = ~0u;
  });
  auto seen = read_vcpu_records(fd_);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->vcpus.size(), 2u);
  // A sparse file of the largest size is read as far as it is used.
  resize(record_at(most_places));
  change([](Header& h) { h.places = most_places; });
  seen = read_vcpu_records(fd_);
  ASSERT_TRUE(seen);
  EXPECT_EQ(seen->vcpus.size(), 2u);
}

TEST_F(HostileFile, NoFileAtAll) {
  int ends[2];
  ASSERT_EQ(::pipe2(ends, O_CLOEXEC), 0);
  const int folder = ::open("/proc/self", O_RDONLY | O_CLOEXEC);
  for (const int fd : {ends[0], folder, -1}) EXPECT_FALSE(read_vcpu_records(fd));
  ::close(folder);
  for (const int fd : ends) ::close(fd);
}

// It never holds still long enough to be copied, and then it is cut off.
TEST_F(HostileFile, ChangesWhileItIsRead) {
  std::atomic<bool> done{false};
  std::jthread writer([&] {
    for (u64 n = 1; !done; n += 2) {
      Entry e{};
      e.generation = n;
      static_cast<void>(!::pwrite(fd_, &e, sizeof e, directory_at));
      static_cast<void>(
          !::ftruncate(fd_, static_cast<off_t>(n % 3 == 0 ? record_at(1) + 100 : record_at(2))));
    }
  });
  for (int i = 0; i < 3000; ++i) {
    const auto seen = read_vcpu_records(fd_);
    EXPECT_TRUE(!seen || seen->vcpus.size() <= 2);
  }
  done = true;
}

} // namespace
} // namespace ring3::kvm
