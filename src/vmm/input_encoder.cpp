// SPDX-License-Identifier: Apache-2.0
#include "vmm/input_encoder.h"

namespace ring3::vmm {
namespace {

constexpr u8 end_of_file = 0x04, literal_next = 0x16;
constexpr std::size_t longest_line = 1024; // the terminal's line buffer has 4096 bytes
constexpr int repeated_ends = 16;

} // namespace

void InputEncoder::encode(std::span<const u8> bytes, std::vector<u8>& out) {
  for (const u8 byte : bytes) {
    if (byte == end_of_file || byte == literal_next || byte == 0) out.push_back(literal_next);
    out.push_back(byte);
    if (byte == '\n') {
      line_length_ = 0;
    } else if (++line_length_ == longest_line) {
      out.push_back(end_of_file); // in mid-line: hands the line so far on, without an end of file
      line_length_ = 0;
    }
  }
}

void InputEncoder::end(std::vector<u8>& out) {
  if (line_length_ != 0) out.push_back(end_of_file);
  line_length_ = 0;
  out.insert(out.end(), repeated_ends, end_of_file);
}

} // namespace ring3::vmm
