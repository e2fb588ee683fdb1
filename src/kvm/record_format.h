// SPDX-License-Identifier: Apache-2.0
// The file in which a process keeps the counters of its vCPUs (vcpu_record.h), as other processes read it
// (record_reader.h): a header, a directory, and a record a place. Numbers are the host's. A place that nobody
// has used is a hole in the file.
#pragma once

#include "base/address.h"
#include "base/types.h"
#include "kvm/stats.h"

#include <array>
#include <atomic>

namespace ring3::kvm::record_format {

// The memory file's name; its link in /proc/PID/fd is "/memfd:ring3-stats (deleted)".
constexpr const char* file_name = "ring3-stats";
constexpr u64 magic = 0x0a73746174733372; // "r3stats\n"
constexpr u32 version = 1;

struct Header {
  std::atomic<u64> magic; // 0: the file is being made
  u32 version;
  u32 header_bytes; // sizeof(Header)
  u64 layout;       // layout(): what the records consist of
  u32 process;      // getpid() of who writes: a child may have inherited the descriptor
  u32 places;
  u32 record_bytes; // sizeof(Record)
  u32 padding;
  u64 directory_at, records_at; // offsets in the file
  std::atomic<u32> used;        // places beyond this one were never used
  std::atomic<u32> unplaced;    // vCPUs for which there was no place
};

struct Entry {
  std::atomic<u64> generation; // odd: there is a vCPU here; it changes with each that comes or goes
  u32 vm, vcpu;                // the VM's number in its process, KVM's vCPU id
  std::atomic<u64> executor;   // what Record::executor holds; 0: nothing
  u64 padding;
};
static_assert(sizeof(Entry) == 32);

struct Record {
  Counter instructions; // as of the last time that the vCPU looked at timers or was left
  VcpuStats stats;
  // The counters of what executes the vCPU, which this layer knows nothing about.
  static constexpr std::size_t executor_bytes = 5 * page_size - sizeof(Counter) - sizeof(VcpuStats);
  alignas(u64) std::array<std::byte, executor_bytes> executor;
};
static_assert(sizeof(Record) == 5 * page_size);

constexpr u32 most_places = 4096;
constexpr u64 directory_at = page_size;
constexpr u64 records_at = directory_at + most_places * sizeof(Entry);
static_assert(sizeof(Header) <= directory_at && records_at % page_size == 0);
constexpr u64 record_at(u32 place) { return records_at + u64{place} * sizeof(Record); }

// Differs between builds whose records mean something else.
u64 layout();

} // namespace ring3::kvm::record_format
