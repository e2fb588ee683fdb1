// SPDX-License-Identifier: Apache-2.0
#include "kvm/stats.h"

#include <cerrno>
#include <cstring>
#include <gtest/gtest.h>
#include <map>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>

namespace ring3::kvm {
namespace {

// The file as a C program reads it (api.rst 4.133): 16 bytes, then the name.
struct Desc {
  u32 flags;
  s16 exponent;
  u16 size;
  u32 offset;
  u32 bucket_size;
};
static_assert(sizeof(Desc) == 16);

struct Parsed {
  kvm_stats_header header;
  std::string id;
  std::map<std::string, Desc> stats;
  u64 data_size = 0;
};

Parsed parse(int fd) {
  Parsed p{};
  EXPECT_EQ(pread(fd, &p.header, sizeof p.header, 0), static_cast<ssize_t>(sizeof p.header));
  std::vector<char> name(p.header.name_size);
  const auto read_name = [&](off_t at) {
    EXPECT_EQ(pread(fd, name.data(), name.size(), at), static_cast<ssize_t>(name.size()));
    EXPECT_LT(strnlen(name.data(), name.size()), name.size());
    return std::string(name.data());
  };
  p.id = read_name(p.header.id_offset);
  for (u32 i = 0; i < p.header.num_desc; ++i) {
    const auto at = static_cast<off_t>(p.header.desc_offset + u64{i} * (sizeof(Desc) + p.header.name_size));
    Desc d{};
    EXPECT_EQ(pread(fd, &d, sizeof d, at), static_cast<ssize_t>(sizeof d));
    EXPECT_EQ(d.offset, p.data_size) << "in order, without gaps";
    EXPECT_TRUE(p.stats.emplace(read_name(at + static_cast<off_t>(sizeof d)), d).second) << "twice";
    p.data_size += d.size * sizeof(u64);
  }
  return p;
}

u64 number(int fd, const Parsed& p, const std::string& name, u32 index = 0) {
  u64 v = ~u64{0};
  const u64 at = p.header.data_offset + p.stats.at(name).offset + u64{index} * sizeof v;
  EXPECT_EQ(pread(fd, &v, sizeof v, static_cast<off_t>(at)), static_cast<ssize_t>(sizeof v));
  return v;
}

TEST(Stats, TheFileIsWhatTheManualSays) {
  for (const StatsLayout* layout : {&StatsLayout::vcpu(), &StatsLayout::vm()}) {
    StatsFile file(*layout, "kvm-1/vcpu-2");
    const int fd = file.open();
    ASSERT_GE(fd, 0);
    const Parsed p = parse(fd);
    EXPECT_EQ(p.id, "kvm-1/vcpu-2");
    EXPECT_EQ(p.header.flags, 0u);
    EXPECT_EQ(p.header.name_size, 48u);
    EXPECT_EQ(p.header.id_offset % 8, 0u);
    EXPECT_EQ(p.header.desc_offset % 8, 0u);
    EXPECT_EQ(p.header.data_offset % 8, 0u);
    EXPECT_EQ(p.header.data_offset, layout->data_offset());
    EXPECT_EQ(p.header.data_offset + p.data_size, layout->size());
    EXPECT_EQ(lseek(fd, 0, SEEK_END), static_cast<off_t>(layout->size()));
    EXPECT_EQ(p.stats.size(), layout->descriptors().size());
    for (const auto& [name, d] : p.stats) {
      const u32 type = d.flags & KVM_STATS_TYPE_MASK;
      const u32 unit = d.flags & KVM_STATS_UNIT_MASK;
      EXPECT_LE(type, static_cast<u32>(KVM_STATS_TYPE_MAX)) << name;
      EXPECT_EQ(d.bucket_size, 0u) << name << ": no linear histograms";
      EXPECT_GE(d.size, 1) << name;
      EXPECT_EQ(d.size != 1, type == KVM_STATS_TYPE_LOG_HIST) << name;
      EXPECT_EQ(d.exponent, unit == KVM_STATS_UNIT_SECONDS ? -9 : 0) << name;
    }
    close(fd);
  }
}

TEST(Stats, NumbersAreLiveAndLastWhenTheVcpuIsGone) {
  int fd = -1;
  Parsed p;
  {
    Stats<VcpuStats> stats(StatsLayout::vcpu(), StatsFile::vcpu_id(3));
    ++stats->exits; // before there is a file
    stats->guest_ns += 41;
    fd = stats.open();
    ASSERT_GE(fd, 0);
    p = parse(fd);
    EXPECT_EQ(p.id, "kvm-" + std::to_string(getpid()) + "/vcpu-3");
    EXPECT_EQ(number(fd, p, "exits"), 1u);
    ++stats->exits;
    ++stats->guest_ns;
    stats->halt_wait_hist.add(0);
    stats->halt_wait_hist.add(1);
    stats->halt_wait_hist.add(1023);
    stats->halt_wait_hist.add(1024);
    stats->halt_wait_hist.add(~u64{0});
    EXPECT_EQ(number(fd, p, "exits"), 2u);
    EXPECT_EQ(number(fd, p, "guest_ns"), 42u);
    for (const auto& [bucket, n] : std::map<u32, u64>{{0, 1}, {1, 1}, {10, 1}, {11, 1}, {31, 1}, {2, 0}})
      EXPECT_EQ(number(fd, p, "halt_wait_hist", bucket), n) << bucket;
    stats->nmi_injections.set(7);
    EXPECT_EQ(number(fd, p, "nmi_injections"), 7u);
  }
  EXPECT_EQ(number(fd, p, "exits"), 2u);
  close(fd);
}

TEST(Stats, DescriptorsHavePositionsOfTheirOwnAndCannotWrite) {
  Stats<VmStats> stats(StatsLayout::vm(), StatsFile::vm_id());
  const int a = stats.open();
  const int b = stats.open();
  ASSERT_GE(a, 0);
  ASSERT_GE(b, 0);
  ASSERT_NE(a, b);
  u64 word;
  EXPECT_EQ(read(a, &word, sizeof word), 8);
  EXPECT_EQ(lseek(b, 0, SEEK_CUR), 0);
  EXPECT_EQ(write(a, &word, sizeof word), -1);
  EXPECT_EQ(ftruncate(a, 0), -1);
  EXPECT_EQ(mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, a, 0), MAP_FAILED);
  stats->remote_tlb_flush.add(5);
  const Parsed p = parse(b);
  EXPECT_EQ(number(b, p, "remote_tlb_flush"), 5u);
  close(a);
  close(b);
}

} // namespace
} // namespace ring3::kvm
