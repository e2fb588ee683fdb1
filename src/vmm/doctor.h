// SPDX-License-Identifier: Apache-2.0
// What this host gives to ring3 and what it lacks, and which VMMs are there (`ring3 doctor`). Everything is
// found out by trying it, without privilege and without leaving anything behind.
#pragma once

#include <string>
#include <vector>

namespace ring3::vmm {

struct Finding {
  enum class Status {
    ok,
    note,    // works, with less or slower than it could
    problem, // something will not work
  };
  std::string name;
  Status status = Status::ok;
  std::string text; // one line
  std::string fix;  // what to do about it; empty for ok
};

std::vector<Finding> examine_host();

struct FoundVmm {
  std::string name;
  std::string path;
  Finding::Status status = Finding::Status::ok; // ok: it can be served by the preloaded library
  std::string text;
  std::string fix;
};

// The VMMs in PATH, of those that use /dev/kvm.
std::vector<FoundVmm> find_vmms();

} // namespace ring3::vmm
