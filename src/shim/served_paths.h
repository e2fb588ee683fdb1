// SPDX-License-Identifier: Apache-2.0
// The files of a machine with KVM that this library answers for: /dev/kvm, and the parameters of KVM's
// modules that VMMs and their tests read.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <sys/stat.h>

namespace ring3::shim {

bool is_kvm_device(std::string_view path);

// The contents of /sys/module/kvm*/parameters/NAME as KVM would have them for the CPU that is offered;
// nothing for any other path. open_served() finds no file for a parameter of KVM's that is not among them.
std::optional<std::string> module_parameter(std::string_view path);

// stat() of a path we serve; false: not ours.
bool stat_served(std::string_view path, struct stat& out);

// open() of one: a descriptor, -errno, or nothing for a path that is not ours.
std::optional<int> open_served(std::string_view path, int flags);

} // namespace ring3::shim
