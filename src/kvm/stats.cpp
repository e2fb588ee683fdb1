// SPDX-License-Identifier: Apache-2.0
#include "kvm/stats.h"

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <fcntl.h>
#include <fmt/format.h>
#include <new>
#include <numeric>
#include <sys/mman.h>
#include <unistd.h>

namespace ring3::kvm {
namespace {

using Descriptor = StatsLayout::Descriptor;

constexpr Descriptor count(std::string_view name) {
  return {name, KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10, 0, 1};
}
constexpr Descriptor nanoseconds(std::string_view name) {
  return {name, KVM_STATS_TYPE_CUMULATIVE | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10, -9, 1};
}
constexpr Descriptor nanosecond_histogram(std::string_view name) {
  return {name, KVM_STATS_TYPE_LOG_HIST | KVM_STATS_UNIT_SECONDS | KVM_STATS_BASE_POW10, -9,
          LogHistogram::buckets};
}
constexpr Descriptor current(std::string_view name) {
  return {name, KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_NONE | KVM_STATS_BASE_POW10, 0, 1};
}
constexpr Descriptor flag(std::string_view name) {
  return {name, KVM_STATS_TYPE_INSTANT | KVM_STATS_UNIT_BOOLEAN | KVM_STATS_BASE_POW10, 0, 1};
}

// In the order of VcpuStats' members.
constexpr std::array vcpu_descriptors{
    count("halt_wakeup"),
    nanoseconds("halt_wait_ns"),
    nanosecond_histogram("halt_wait_hist"),
    flag("blocking"),
    count("exits"),
    count("io_exits"),
    count("mmio_exits"),
    count("signal_exits"),
    count("irq_window_exits"),
    count("nmi_window_exits"),
    count("halt_exits"),
    count("request_irq_exits"),
    count("hypercalls"),
    count("irq_injections"),
    count("nmi_injections"),
    count("req_event"),
    nanoseconds("guest_ns"),
};
// In the order of VmStats' members.
constexpr std::array vm_descriptors{
    count("remote_tlb_flush"), count("remote_tlb_flush_requests"), current("pages_4k"), current("pages_2m"),
    current("pages_1g"),
};

constexpr u64 data_bytes(std::span<const Descriptor> descriptors) {
  u64 numbers = 0;
  for (const Descriptor& d : descriptors) numbers += d.size;
  return numbers * sizeof(u64);
}
static_assert(data_bytes(vcpu_descriptors) == sizeof(VcpuStats));
static_assert(data_bytes(vm_descriptors) == sizeof(VmStats));

// What comes before the name. Not sizeof: C++ gives the empty structure in Linux's __DECLARE_FLEX_ARRAY a
// size, which C does not.
constexpr u64 fixed_descriptor_bytes = 16;
static_assert(offsetof(kvm_stats_desc, bucket_size) + sizeof(kvm_stats_desc::bucket_size) ==
              fixed_descriptor_bytes);
constexpr u64 descriptor_bytes = fixed_descriptor_bytes + StatsLayout::name_size;
constexpr u64 id_offset = sizeof(kvm_stats_header);
constexpr u64 descriptors_offset = id_offset + StatsLayout::name_size;
// api.rst: all blocks are aligned to 8 bytes.
static_assert(id_offset % 8 == 0 && descriptors_offset % 8 == 0 && descriptor_bytes % 8 == 0);

constexpr u64 page_bytes = 4096;

} // namespace

void LogHistogram::add(u64 value) {
  const auto bucket = static_cast<std::size_t>(std::bit_width(value));
  ++counts_[std::min(bucket, buckets - 1)];
}

StatsLayout::StatsLayout(std::span<const Descriptor> descriptors, u64 data_size)
    : descriptors_(descriptors), data_offset_(descriptors_offset + descriptors.size() * descriptor_bytes),
      data_size_(data_size) {}

const StatsLayout& StatsLayout::vcpu() {
  static const StatsLayout layout(vcpu_descriptors, sizeof(VcpuStats));
  return layout;
}
const StatsLayout& StatsLayout::vm() {
  static const StatsLayout layout(vm_descriptors, sizeof(VmStats));
  return layout;
}

void StatsLayout::write_header(std::string_view id, std::span<std::byte> file) const {
  const auto put_name = [](std::byte* at, std::string_view name) {
    std::memset(at, 0, name_size);
    std::memcpy(at, name.data(), std::min<std::size_t>(name.size(), name_size - 1));
  };
  kvm_stats_header header{};
  header.name_size = name_size;
  header.num_desc = static_cast<u32>(descriptors_.size());
  header.id_offset = id_offset;
  header.desc_offset = descriptors_offset;
  header.data_offset = static_cast<u32>(data_offset_);
  std::memcpy(file.data(), &header, sizeof header);
  put_name(file.data() + id_offset, id);

  std::byte* at = file.data() + descriptors_offset;
  u32 offset = 0;
  for (const Descriptor& d : descriptors_) {
    kvm_stats_desc desc{};
    desc.flags = d.flags;
    desc.exponent = d.exponent;
    desc.size = d.size;
    desc.offset = offset;
    std::memcpy(at, &desc, fixed_descriptor_bytes);
    put_name(at + fixed_descriptor_bytes, d.name);
    at += descriptor_bytes;
    offset += d.size * static_cast<u32>(sizeof(u64));
  }
}

std::string stats_json(const StatsLayout& layout, const void* data) {
  std::string out;
  const auto* number = static_cast<const Counter*>(data);
  for (const StatsLayout::Descriptor& d : layout.descriptors()) {
    if (!out.empty()) out += ',';
    out += fmt::format("\"{}\":", d.name);
    if (d.size > 1) out += '[';
    for (u16 i = 0; i < d.size; ++i, ++number) out += fmt::format("{}{}", i == 0 ? "" : ",", number->value());
    if (d.size > 1) out += ']';
  }
  return out;
}

StatsFile::StatsFile(const StatsLayout& layout, std::string id)
    : layout_(layout), bytes_((layout.size() + page_bytes - 1) / page_bytes * page_bytes) {
  void* p = ::mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  base_ = static_cast<std::byte*>(p);
  layout_.write_header(id, {base_, layout_.size()});
}

StatsFile::~StatsFile() {
  if (file_ >= 0) ::close(file_);
  ::munmap(base_, bytes_);
}

std::string StatsFile::vm_id() { return fmt::format("kvm-{}", ::getpid()); }
std::string StatsFile::vcpu_id(u32 id) { return fmt::format("kvm-{}/vcpu-{}", ::getpid(), id); }

// Puts a file in the place of the memory: few VMMs ask, and a descriptor for every vCPU of those that do not
// would be theirs to miss.
int StatsFile::share() {
  const int file = ::memfd_create("kvm-stats", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (file < 0) return errno == EMFILE || errno == ENFILE ? -errno : -ENOMEM;
  const auto size = static_cast<off_t>(layout_.size());
  const bool filled = ::ftruncate(file, size) == 0 && ::pwrite(file, base_, layout_.size(), 0) == size;
  if (!filled ||
      ::mmap(base_, bytes_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == MAP_FAILED) {
    ::close(file);
    return -ENOMEM;
  }
  // Our mapping stays writable; nobody can make another one. Kernels before 5.1 do not know this seal: there,
  // that open() gives a descriptor for reading has to do.
  ::fcntl(file, F_ADD_SEALS, F_SEAL_FUTURE_WRITE);
  ::fcntl(file, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  file_ = file;
  return 0;
}

int StatsFile::open() {
  if (file_ < 0) {
    if (const int error = share(); error != 0) return error;
  }
  // Opened anew rather than duplicated: each descriptor has its own position, and can only read.
  const int fd = ::open(fmt::format("/proc/self/fd/{}", file_).c_str(), O_RDONLY | O_CLOEXEC);
  return fd >= 0 ? fd : -errno;
}

} // namespace ring3::kvm
