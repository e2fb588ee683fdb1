// SPDX-License-Identifier: Apache-2.0
// Feeds any file to what reads another process's counters (`ring3 stat`). By the lowest bit of the first
// byte, the rest is the file; or changes to a good one, each a place in one of its parts, a size of 1, 2, 4
// or 8 bytes, and their value. Bit 1: it is cut off, too, by a number in front of all else.
#include "base/bits.h"
#include "kvm/record_reader.h"
#include "x86/api/vcpu_report.h"
#include "x86/jit/statistics.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <span>
#include <sys/mman.h>
#include <unistd.h>
#include <utility>

namespace {

using namespace ring3;
using namespace ring3::kvm::record_format;

constexpr u32 places = 3;

void put(int fd, const void* data, std::size_t size, u64 at) {
  if (::pwrite(fd, data, size, static_cast<off_t>(at)) != static_cast<ssize_t>(size)) std::abort();
}

void make_good(int fd) {
  Header h{};
  h.magic = magic;
  h.version = version;
  h.header_bytes = sizeof h;
  h.layout = layout();
  h.process = 1;
  h.places = places;
  h.record_bytes = sizeof(Record);
  h.directory_at = directory_at;
  h.records_at = records_at;
  h.used = places;
  put(fd, &h, sizeof h, 0);
  for (u32 i = 0; i < places; ++i) {
    Entry e{};
    e.generation = i != 1 ? 1 : 0;
    e.executor = i == 0 ? x86::jit::Statistics::layout() : 0;
    put(fd, &e, sizeof e, directory_at + i * sizeof e);
  }
}

class Input {
 public:
  explicit Input(std::span<const u8> bytes) : bytes_(bytes) {}
  u64 take(std::size_t size) {
    u64 value = 0;
    size = std::min(size, bytes_.size());
    std::memcpy(&value, bytes_.data(), size);
    bytes_ = bytes_.subspan(size);
    return value;
  }
  std::span<const u8> rest() const { return bytes_; }

 private:
  std::span<const u8> bytes_;
};

void change(int fd, Input& in) {
  constexpr std::array<std::pair<u64, u64>, 4> parts = {{{0, sizeof(Header)},
                                                         {directory_at, (places + 1) * sizeof(Entry)},
                                                         {record_at(0), sizeof(Record)},
                                                         {record_at(places - 1), sizeof(Record)}}};
  const u64 what = in.take(1);
  const auto [first, bytes] = parts[what & 3];
  const std::size_t size = std::size_t{1} << (what >> 2 & 3);
  const u64 at = first + in.take(2) % (bytes - size + 1);
  const u64 value = in.take(size);
  put(fd, &value, size, at);
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const u8* data, std::size_t size) {
  static const int fd = ::memfd_create("ring3-stats", MFD_CLOEXEC);
  if (fd < 0) std::abort();
  Input in({data, size});
  const u64 kind = in.take(1);
  const u64 cut = (kind & 2) != 0 ? in.take(3) % record_at(places) : record_at(places);
  if (::ftruncate(fd, 0) != 0 || ::ftruncate(fd, static_cast<off_t>(record_at(places))) != 0) std::abort();
  if ((kind & 1) != 0) {
    put(fd, in.rest().data(), std::min<std::size_t>(in.rest().size(), record_at(places)), 0);
  } else {
    make_good(fd);
    while (!in.rest().empty()) change(fd, in);
  }
  if (::ftruncate(fd, static_cast<off_t>(cut)) != 0) std::abort();

  const auto seen = kvm::read_vcpu_records(fd);
  if (!seen) {
    if (seen.error().message.empty() || seen.error().fix.empty()) std::abort();
    return 0;
  }
  if (seen->vcpus.size() > places) std::abort();
  for (const kvm::SeenVcpu& v : seen->vcpus) {
    const auto report = x86::VcpuReport::of(v);
    if (report && (!report->json().ends_with('}') || report->lines().size() < 2)) std::abort();
  }
  return 0;
}
