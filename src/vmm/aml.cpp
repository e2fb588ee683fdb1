// SPDX-License-Identifier: Apache-2.0
#include "vmm/aml.h"

namespace ring3::vmm::aml {
namespace {

Bytes bytes(std::initializer_list<unsigned> values) {
  Bytes out;
  for (unsigned v : values) out.push_back(static_cast<std::byte>(v));
  return out;
}

void append(Bytes& to, const Bytes& more) { to.insert(to.end(), more.begin(), more.end()); }

// PkgLength counts itself: 1 byte up to 63, then a lead byte with 4 low bits and 1 to 3 more bytes.
Bytes with_length(const Bytes& content) {
  const std::size_t n = content.size();
  Bytes out;
  if (n + 1 < 0x40) {
    out = bytes({static_cast<unsigned>(n + 1)});
  } else {
    unsigned more = 1;
    while (n + 1 + more >= std::size_t{1} << (4 + 8 * more)) ++more;
    const std::size_t total = n + 1 + more;
    out.push_back(static_cast<std::byte>(more << 6 | (total & 15)));
    for (unsigned i = 0; i < more; ++i) out.push_back(static_cast<std::byte>(total >> (4 + 8 * i)));
  }
  append(out, content);
  return out;
}

} // namespace

Bytes join(std::initializer_list<Bytes> parts) {
  Bytes out;
  for (const Bytes& p : parts) append(out, p);
  return out;
}

Bytes name_string(std::string_view text) {
  Bytes out;
  if (text.starts_with('\\')) {
    out.push_back(std::byte{'\\'});
    text.remove_prefix(1);
  }
  for (std::size_t i = 0; i < 4; ++i) out.push_back(static_cast<std::byte>(i < text.size() ? text[i] : '_'));
  return out;
}

Bytes integer(u32 value) {
  if (value <= 1) return bytes({value});
  if (value <= 0xff) return bytes({0x0a, value});
  if (value <= 0xffff) return bytes({0x0b, value & 255, value >> 8});
  return bytes({0x0c, value & 255, value >> 8 & 255, value >> 16 & 255, value >> 24});
}

Bytes eisa_id(std::string_view id) {
  auto letter = [&](std::size_t i) { return static_cast<unsigned>(id[i] - '@') & 31; };
  auto digit = [&](std::size_t i) {
    return static_cast<unsigned>(id[i] <= '9' ? id[i] - '0' : id[i] - 'A' + 10) & 15;
  };
  const unsigned vendor = letter(0) << 10 | letter(1) << 5 | letter(2);
  return bytes({0x0c, vendor >> 8, vendor & 255, digit(3) << 4 | digit(4), digit(5) << 4 | digit(6)});
}

Bytes package(std::initializer_list<Bytes> elements) {
  return join(
      {bytes({0x12}), with_length(join({bytes({static_cast<unsigned>(elements.size())}), join(elements)}))});
}

Bytes buffer(const Bytes& content) {
  return join({bytes({0x11}), with_length(join({integer(static_cast<u32>(content.size())), content}))});
}

Bytes name(std::string_view text, const Bytes& value) {
  return join({bytes({0x08}), name_string(text), value});
}

Bytes scope(std::string_view text, const Bytes& content) {
  return join({bytes({0x10}), with_length(join({name_string(text), content}))});
}

Bytes device(std::string_view text, const Bytes& content) {
  return join({bytes({0x5b, 0x82}), with_length(join({name_string(text), content}))});
}

Bytes io_ports(u16 base, u8 length) {
  const unsigned low = base & 255u, high = base >> 8;
  return bytes(
      {0x47, 0x01, low, high, low, high, 1, length}); // decodes 16 bits; minimum = maximum; alignment 1
}

Bytes irq(unsigned number) {
  const unsigned mask = 1u << (number & 15);
  return bytes({0x22, mask & 255, mask >> 8});
}

Bytes resource_template(std::initializer_list<Bytes> descriptors) {
  return buffer(join({join(descriptors), bytes({0x79, 0x00})})); // end tag; checksum 0 means "not computed"
}

} // namespace ring3::vmm::aml
