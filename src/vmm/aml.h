// SPDX-License-Identifier: Apache-2.0
// A builder of ACPI Machine Language (ACPI 6.4, chapter 20), as much as the machine's DSDT needs. Each
// function gives the encoded bytes of one term; terms nest by being passed as the content of others.
#pragma once

#include "base/types.h"

#include <cstddef>
#include <initializer_list>
#include <string_view>
#include <vector>

namespace ring3::vmm::aml {

using Bytes = std::vector<std::byte>;

Bytes join(std::initializer_list<Bytes> parts);
// A name of one segment of up to four characters; a leading backslash makes it a root path.
Bytes name_string(std::string_view name);
// The shortest of ZeroOp, OneOp, BytePrefix, WordPrefix, DWordPrefix.
Bytes integer(u32 value);
// "PNP0501" in the compressed form that _HID takes.
Bytes eisa_id(std::string_view id);
Bytes package(std::initializer_list<Bytes> elements);
Bytes buffer(const Bytes& content);
Bytes name(std::string_view name, const Bytes& value);
Bytes scope(std::string_view name, const Bytes& content);
Bytes device(std::string_view name, const Bytes& content);

// Resource descriptors and the template that holds them.
Bytes io_ports(u16 base, u8 length);
Bytes irq(unsigned number); // ISA: edge-triggered, active high
Bytes resource_template(std::initializer_list<Bytes> descriptors);

} // namespace ring3::vmm::aml
