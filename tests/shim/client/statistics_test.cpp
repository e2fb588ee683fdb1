// SPDX-License-Identifier: Apache-2.0
// KVM_GET_STATS_FD of a VM, and what it says of the guest's memory.
#include "guest.h"

#include <string>
#include <vector>

namespace client {
namespace {

// Read as a C program does, by names (api.rst 4.133).
class Statistics : public Guest {
 protected:
  void SetUp() override {
    Guest::SetUp();
    madvise(memory_, memory_size, MADV_NOHUGEPAGE);
    stats_ = ioctl(vm_, KVM_GET_STATS_FD, 0);
    ASSERT_GE(stats_, 0) << strerror(errno);
  }
  void TearDown() override {
    close(stats_);
    Guest::TearDown();
  }
  // Where the number is in the file, or -1.
  off_t place(const char* name) const {
    kvm_stats_header header{};
    EXPECT_EQ(pread(stats_, &header, sizeof header, 0), static_cast<ssize_t>(sizeof header));
    const std::size_t size = 16 + header.name_size; // of a descriptor
    std::vector<char> one(size);
    for (unsigned i = 0; i < header.num_desc; ++i) {
      const off_t at = static_cast<off_t>(header.desc_offset + i * size);
      EXPECT_EQ(pread(stats_, one.data(), size, at), static_cast<ssize_t>(size));
      if (std::strncmp(&one[16], name, header.name_size) != 0) continue;
      std::uint32_t offset = 0;
      std::memcpy(&offset, &one[8], sizeof offset);
      return static_cast<off_t>(header.data_offset + offset);
    }
    return -1;
  }
  std::uint64_t number(int fd, const char* name) const {
    std::uint64_t value = ~std::uint64_t{0};
    EXPECT_EQ(pread(fd, &value, sizeof value, place(name)), static_cast<ssize_t>(sizeof value)) << name;
    return value;
  }

  static int open_parameter(const char* name, char& value) {
    const int fd = open((std::string("/sys/module/kvm/parameters/") + name).c_str(), O_RDONLY);
    if (fd < 0) return -1;
    const bool read_it = read(fd, &value, 1) == 1;
    close(fd);
    return read_it ? 0 : -1;
  }

  int stats_ = -1;
};

TEST_F(Statistics, MappedPagesAreCountedWhenTheyAreRead) {
  code({0xa2, 0x00, 0x70, 0xa2, 0x00, 0x90, 0xf4}); // mov [0x7000], al; mov [0x9000], al; hlt
  EXPECT_EQ(number(stats_, "pages_4k"), 0U);
  EXPECT_EQ(number(stats_, "pages_2m"), 0U);
  EXPECT_EQ(number(stats_, "pages_1g"), 0U);
  ASSERT_EQ(enter(), 0);
  const std::uint64_t mapped = number(stats_, "pages_4k");
  EXPECT_GE(mapped, 3U);
  EXPECT_LE(mapped, memory_size / 4096);
  EXPECT_EQ(number(stats_, "pages_2m"), 0U) << "a slot of one mebibyte";

  const int copy = dup(stats_);
  const int second = ioctl(vm_, KVM_GET_STATS_FD, 0);
  code({0xa2, 0x00, 0xb0, 0xf4}); // mov [0xb000], al; hlt
  go_to(code_at);
  ASSERT_EQ(enter(), 0);
  for (const int fd : {stats_, copy, second}) EXPECT_GE(number(fd, "pages_4k"), mapped);
  // As a whole, by the other calls.
  std::vector<char> file(4096);
  const ssize_t size = read(second, file.data(), file.size());
  const auto at = static_cast<std::size_t>(place("pages_4k"));
  ASSERT_GE(size, static_cast<ssize_t>(at + 24));
  std::uint64_t value = 0;
  std::memcpy(&value, &file[at], sizeof value);
  EXPECT_EQ(value, number(stats_, "pages_4k"));
  EXPECT_EQ(lseek(second, 0, SEEK_SET), size) << "it does not move";
  EXPECT_EQ(read(second, file.data(), 1), 0);
  EXPECT_EQ(write(second, file.data(), 1), -1);
  EXPECT_EQ(errno, EBADF);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ, MAP_SHARED, second, 0), MAP_FAILED);
  EXPECT_EQ(errno, ENODEV);
  close(second);

  // Memory that is gone is not mapped, and a slot that is deleted neither.
  ASSERT_EQ(madvise(memory_, memory_size, MADV_DONTNEED), 0);
  EXPECT_EQ(number(copy, "pages_4k"), 0U);
  code({0xf4});
  go_to(code_at);
  ASSERT_EQ(enter(), 0);
  EXPECT_GE(number(copy, "pages_4k"), 1U);
  kvm_userspace_memory_region slot{};
  ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
  EXPECT_EQ(number(copy, "pages_4k"), 0U);
  close(copy);
}

TEST_F(Statistics, OutliveTheOtherDescriptors) {
  code({0xf4});
  ASSERT_EQ(enter(), 0);
  const std::uint64_t mapped = number(stats_, "pages_4k");
  EXPECT_GE(mapped, 1U);
  for (const int fd : {vcpu_, vm_, kvm_}) close(fd);
  vcpu_ = vm_ = kvm_ = -1;
  EXPECT_EQ(number(stats_, "pages_4k"), mapped) << "the last numbers";
}

// Whoever tries all numbers also meets the descriptors that belong to the VM itself.
TEST_F(Statistics, VmEndsWhateverItsOwnDescriptorsAreCalledWith) {
  constexpr int numbers = 256;
  const auto open_ones = [] {
    int count = 0;
    for (int fd = 0; fd < numbers; ++fd) count += fcntl(fd, F_GETFD) >= 0 ? 1 : 0;
    return count;
  };
  const int before = open_ones();
  for (int i = 0; i < 3; ++i) {
    const int vm = ioctl(kvm_, KVM_CREATE_VM, 0);
    ASSERT_GE(vm, 0) << strerror(errno);
    const int stats = ioctl(vm, KVM_GET_STATS_FD, 0);
    ASSERT_GE(stats, 0) << strerror(errno);
    for (int fd = 0; fd < numbers; ++fd) ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY);
    close(stats);
    close(vm);
  }
  EXPECT_EQ(open_ones(), before);
}

// A large page of the host is one for the guest, until its writes are logged by pages.
TEST_F(Statistics, LargePagesAreSplitByTheDirtyLog) {
  if (char value = 0; open_parameter("eager_page_split", value) != 0 || value != 'Y')
    GTEST_SKIP() << "no large pages are known";
  constexpr std::uint64_t size = 2 << 20, at = 4 << 20;
  void* const mapped = mmap(nullptr, 2 * size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(mapped, MAP_FAILED);
  const std::uint64_t host = (reinterpret_cast<std::uint64_t>(mapped) + size - 1) & ~(size - 1);
  ASSERT_EQ(madvise(reinterpret_cast<void*>(host), size, MADV_HUGEPAGE), 0);
  kvm_userspace_memory_region slot{};
  slot.slot = 1;
  slot.guest_phys_addr = at;
  slot.memory_size = size;
  slot.userspace_addr = host;
  ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
  kvm_sregs s;
  ASSERT_EQ(ioctl(vcpu_, KVM_GET_SREGS, &s), 0);
  s.ds.base = at;
  s.ds.limit = 0xffffffff;
  s.ds.g = 1;
  ASSERT_EQ(ioctl(vcpu_, KVM_SET_SREGS, &s), 0);
  code({0xa2, 0x00, 0x10, 0xf4}); // mov [0x1000], al; hlt
  const auto touch = [this] {
    go_to(code_at);
    ASSERT_EQ(enter(), 0);
    ASSERT_EQ(run_->exit_reason, static_cast<unsigned>(KVM_EXIT_HLT));
  };
  touch();
  const std::uint64_t others = number(stats_, "pages_4k");
  if (number(stats_, "pages_2m") == 0) GTEST_SKIP() << "the host has no large page to give";
  EXPECT_EQ(number(stats_, "pages_2m"), 1U);
  EXPECT_LE(others, memory_size / 4096);
  slot.flags = KVM_MEM_LOG_DIRTY_PAGES;
  ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
  EXPECT_EQ(number(stats_, "pages_2m"), 0U);
  EXPECT_EQ(number(stats_, "pages_4k"), others + 512);
  touch();
  EXPECT_EQ(number(stats_, "pages_2m"), 0U);
  slot.flags = 0;
  ASSERT_EQ(ioctl(vm_, KVM_SET_USER_MEMORY_REGION, &slot), 0);
  EXPECT_EQ(number(stats_, "pages_2m"), 0U);
  EXPECT_EQ(number(stats_, "pages_4k"), others);
  touch();
  EXPECT_EQ(number(stats_, "pages_2m"), 1U);
  EXPECT_EQ(number(stats_, "pages_4k"), others);
  munmap(mapped, 2 * size);
}

} // namespace
} // namespace client
