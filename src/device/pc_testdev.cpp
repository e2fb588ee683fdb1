// SPDX-License-Identifier: Apache-2.0
#include "device/pc_testdev.h"

#include <utility>

namespace ring3::device {
namespace {

template <class Bytes> u64 load(const Bytes& bytes, u64 offset, unsigned size) {
  u64 value = 0;
  for (unsigned i = 0; i < size && offset + i < bytes.size(); ++i) value |= u64{bytes[offset + i]} << (8 * i);
  return value;
}

template <class Bytes> void store(Bytes& bytes, u64 offset, unsigned size, u64 value) {
  for (unsigned i = 0; i < size && offset + i < bytes.size(); ++i)
    bytes[offset + i] = static_cast<u8>(value >> (8 * i));
}

constexpr u64 flush_offset = 4, byte_offset = 8;

} // namespace

u64 TestIoPorts::read(u64 offset, unsigned size) {
  std::lock_guard lock(mutex_);
  if (offset == byte_offset) return data_[0];
  return offset < flush_offset ? load(data_, offset, size) : ~u64{0};
}

void TestIoPorts::write(u64 offset, unsigned size, u64 value) {
  std::lock_guard lock(mutex_);
  if (offset == byte_offset) {
    data_[0] = static_cast<u8>(value);
  } else if (offset < flush_offset) {
    store(data_, offset, size, value);
  }
  // Flushing makes real KVM drop its shadow of the page. The guest cannot tell, so there is nothing to do.
}

TestIrqLines::TestIrqLines(std::function<void(u32, bool)> irq) : irq_(std::move(irq)) {}

u64 TestIrqLines::read(u64, unsigned) { return ~u64{0}; }

void TestIrqLines::write(u64 offset, unsigned, u64 value) { irq_(static_cast<u32>(offset), value != 0); }

u64 TestIoMemory::read(u64 offset, unsigned size) {
  std::lock_guard lock(mutex_);
  return load(bytes_, offset, size);
}

void TestIoMemory::write(u64 offset, unsigned size, u64 value) {
  std::lock_guard lock(mutex_);
  store(bytes_, offset, size, value);
}

} // namespace ring3::device
