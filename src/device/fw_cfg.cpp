// SPDX-License-Identifier: Apache-2.0
#include "device/fw_cfg.h"

#include <utility>

namespace ring3::device {
namespace {

std::vector<u8> little_endian(u64 value, unsigned size) {
  std::vector<u8> bytes(size);
  for (unsigned i = 0; i < size; ++i) bytes[i] = static_cast<u8>(value >> (8 * i));
  return bytes;
}

} // namespace

FwCfg::FwCfg() {
  set(signature, {'Q', 'E', 'M', 'U'});
  set_u32(id, 1); // the traditional interface, without DMA
  set_u32(file_directory, 0);
  set_u16(no_graphic, 1);
}

void FwCfg::set(u16 key, std::vector<u8> bytes) {
  std::lock_guard lock(mutex_);
  items_[key] = std::move(bytes);
}
void FwCfg::set_u16(u16 key, u16 value) { set(key, little_endian(value, 2)); }
void FwCfg::set_u32(u16 key, u32 value) { set(key, little_endian(value, 4)); }
void FwCfg::set_u64(u16 key, u64 value) { set(key, little_endian(value, 8)); }
void FwCfg::set_string(u16 key, std::string_view text) {
  std::vector<u8> bytes(text.begin(), text.end());
  bytes.push_back(0);
  set(key, std::move(bytes));
}

u64 FwCfg::read(u64 offset, unsigned size) {
  std::lock_guard lock(mutex_);
  if (offset == 0 && size == 2) return selected_;
  if (offset != 1) return 0;
  // Unknown items, and bytes past the end of one, read as zero.
  const auto item = items_.find(selected_);
  if (item == items_.end() || position_ >= item->second.size()) return 0;
  return item->second[position_++];
}

void FwCfg::write(u64 offset, unsigned size, u64 value) {
  std::lock_guard lock(mutex_);
  if (offset != 0 || size != 2) return; // data writes were never of use and QEMU ignores them
  selected_ = static_cast<u16>(value) & static_cast<u16>(~0x4000); // bit 14: the write channel of old
  position_ = 0;
}

} // namespace ring3::device
