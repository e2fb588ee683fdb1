// SPDX-License-Identifier: Apache-2.0
// KVM's ioctl numbers that <linux/kvm.h> gets wrong in C++, or does not have yet.
//
// A number contains its argument's size. Structures that end in a flexible array of members with an alignment
// of their own have another size in C++ than in C, where the array is empty; so those are spelled out here.
#pragma once

#include "base/types.h"

#include <linux/kvm.h>

namespace ring3::shim {

namespace request {

constexpr unsigned long none(unsigned number) { return _IO(KVMIO, number); }
constexpr unsigned long number(unsigned direction, unsigned nr, unsigned size) {
  return _IOC(direction, KVMIO, nr, size);
}
constexpr unsigned long get_supported_cpuid = number(_IOC_READ | _IOC_WRITE, 0x05, 8);
constexpr unsigned long get_emulated_cpuid = number(_IOC_READ | _IOC_WRITE, 0x09, 8);
constexpr unsigned long get_msr_index_list = number(_IOC_READ | _IOC_WRITE, 0x02, 4);
constexpr unsigned long get_msr_feature_index_list = number(_IOC_READ | _IOC_WRITE, 0x0a, 4);
constexpr unsigned long get_msrs = number(_IOC_READ | _IOC_WRITE, 0x88, 8);
constexpr unsigned long set_msrs = number(_IOC_WRITE, 0x89, 8);
constexpr unsigned long set_cpuid = number(_IOC_WRITE, 0x8a, 8);
constexpr unsigned long set_signal_mask = number(_IOC_WRITE, 0x8b, 4);
constexpr unsigned long set_cpuid2 = number(_IOC_WRITE, 0x90, 8);
constexpr unsigned long get_cpuid2 = number(_IOC_READ | _IOC_WRITE, 0x91, 8);
constexpr unsigned long set_gsi_routing = number(_IOC_WRITE, 0x6a, 8);
constexpr unsigned long get_xsave = number(_IOC_READ, 0xa4, 4096);
constexpr unsigned long set_xsave = number(_IOC_WRITE, 0xa5, 4096);
constexpr unsigned long get_xsave2 = number(_IOC_READ, 0xcf, 4096);

} // namespace request

} // namespace ring3::shim
