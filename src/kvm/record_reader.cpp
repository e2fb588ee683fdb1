// SPDX-License-Identifier: Apache-2.0
#include "kvm/record_reader.h"

#include <algorithm>
#include <sys/stat.h>
#include <tuple>
#include <unistd.h>

namespace ring3::kvm {

namespace {

using namespace record_format;

// Copied rather than mapped: who shortens a file takes mapped memory away. False: it ends before.
bool copy(int fd, void* to, std::size_t size, u64 offset) {
  return ::pread(fd, to, size, static_cast<off_t>(offset)) == static_cast<ssize_t>(size);
}

std::unexpected<Error> no_statistics(std::string_view why) {
  return fail("the file with its statistics is not one of ring3's: " + std::string(why),
              "if that program is a VMM under ring3 exec, please report this");
}

Result<void> check(const Header& h, u64 file_bytes) {
  if (h.magic.load() != magic) return no_statistics("it does not begin like one");
  if (h.version != version || h.header_bytes != sizeof(Header) || h.layout != layout() ||
      h.record_bytes != sizeof(Record) || h.directory_at != directory_at || h.records_at != records_at)
    return another_build();
  if (h.places > most_places || file_bytes < record_at(h.places))
    return no_statistics("it is shorter than it says");
  return {};
}

// False: there is no vCPU, or there were others all the time.
bool read_place(int fd, u32 place, SeenVcpu& out) {
  constexpr int attempts = 8;
  const u64 entry_at = directory_at + u64{place} * sizeof(Entry);
  for (int i = 0; i < attempts; ++i) {
    Entry before{}, after{};
    if (!copy(fd, &before, sizeof before, entry_at) || before.generation.load() % 2 == 0) return false;
    auto record = std::make_unique<Record>();
    if (!copy(fd, record.get(), sizeof *record, record_at(place)) ||
        !copy(fd, &after, sizeof after, entry_at))
      return false;
    if (before.generation.load() != after.generation.load()) continue;
    out = {after.vm, after.vcpu, after.executor.load(), std::move(record)};
    return true;
  }
  return false;
}

} // namespace

std::unexpected<Error> another_build() {
  return fail("its statistics are those of another build of ring3",
              "use the program ring3 of the build that it runs with (/proc/PID/maps says which)");
}

Result<SeenProcess> read_vcpu_records(int fd) {
  struct stat st {};
  if (::fstat(fd, &st) != 0 || !S_ISREG(st.st_mode)) return no_statistics("it is no file");
  Header header{};
  if (st.st_size == 0) return SeenProcess{}; // it is being made
  if (!copy(fd, &header, sizeof header, 0)) return no_statistics("it is too short");
  if (header.magic.load() == 0) return SeenProcess{};
  if (const auto fine = check(header, static_cast<u64>(st.st_size)); !fine)
    return std::unexpected(fine.error());
  SeenProcess seen{header.process, header.unplaced.load(), {}};
  const u32 used = std::min(header.used.load(), header.places);
  for (u32 place = 0; place < used; ++place) {
    if (SeenVcpu v; read_place(fd, place, v)) seen.vcpus.push_back(std::move(v));
  }
  std::ranges::sort(seen.vcpus, {}, [](const SeenVcpu& v) { return std::tuple(v.vm, v.vcpu); });
  return seen;
}

} // namespace ring3::kvm
