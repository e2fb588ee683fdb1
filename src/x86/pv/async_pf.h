// SPDX-License-Identifier: Apache-2.0
// The registers of asynchronous page faults (msr.rst, MSR_KVM_ASYNC_PF_EN, _INT and _ACK). They take and keep
// what KVM's do, for guests and VMMs that write them unasked; but a "page not present" event never comes, so
// CPUID does not offer them (pv_features.h), and there is never a "page ready" event to be acknowledged.
#pragma once

#include "x86/pv/pv_features.h"

namespace ring3::x86 {

class AsyncPf {
 public:
  u64 control() const { return control_; }
  u64 vector() const { return vector_; }

  // False: reserved bits, or delivery that this guest does not have.
  static bool well_formed(u64 control, const PvFeatures& features);
  // Whether events could be delivered with this value, to the address in it.
  static bool enables(u64 control);

  void set_control(u64 value) { control_ = value; }
  bool set_vector(u64 value);
  void reset() { *this = AsyncPf{}; }

 private:
  u64 control_ = 0;
  u64 vector_ = 0;
};

} // namespace ring3::x86
