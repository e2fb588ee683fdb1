// SPDX-License-Identifier: Apache-2.0
// KVM's numbers that <linux/kvm.h> gets wrong for C++ (structures that end in an array of unknown length have
// another size there), and those newer than Debian 12's header.
#pragma once

#include <linux/kvm.h>

namespace fuzz::request {

constexpr unsigned long rw(unsigned nr, unsigned size) {
  return _IOC(_IOC_READ | _IOC_WRITE, KVMIO, nr, size);
}
constexpr unsigned long w(unsigned nr, unsigned size) { return _IOC(_IOC_WRITE, KVMIO, nr, size); }
constexpr unsigned long r(unsigned nr, unsigned size) { return _IOC(_IOC_READ, KVMIO, nr, size); }

constexpr unsigned long get_msr_index_list = rw(0x02, 4), get_supported_cpuid = rw(0x05, 8),
                        get_emulated_cpuid = rw(0x09, 8), get_msr_feature_index_list = rw(0x0a, 4),
                        get_msrs = rw(0x88, 8), set_msrs = w(0x89, 8), set_cpuid = w(0x8a, 8),
                        set_signal_mask = w(0x8b, 4), set_cpuid2 = w(0x90, 8), get_cpuid2 = rw(0x91, 8),
                        set_gsi_routing = w(0x6a, 8), get_xsave = r(0xa4, 4096), set_xsave = w(0xa5, 4096),
                        get_xsave2 = r(0xcf, 4096);

// api.rst 4.140 to 4.143.
constexpr unsigned long set_user_memory_region2 = w(0x49, 160), set_memory_attributes = w(0xd2, 32),
                        create_guest_memfd = rw(0xd4, 64), pre_fault_memory = rw(0xd5, 64);
constexpr unsigned mem_guest_memfd = 1U << 2;

} // namespace fuzz::request
