// SPDX-License-Identifier: Apache-2.0
#include "x86/pv/async_pf.h"

#include "base/bits.h"

#include <asm/kvm_para.h>

namespace ring3::x86 {

bool AsyncPf::well_formed(u64 control, const PvFeatures& features) {
  constexpr u64 reserved = bit(4) | bit(5);
  if ((control & reserved) != 0) return false;
  if ((control & KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT) != 0 && !features.has(KVM_FEATURE_ASYNC_PF_VMEXIT))
    return false;
  return (control & KVM_ASYNC_PF_DELIVERY_AS_INT) == 0 || features.has(KVM_FEATURE_ASYNC_PF_INT);
}

bool AsyncPf::enables(u64 control) {
  constexpr u64 both = KVM_ASYNC_PF_ENABLED | KVM_ASYNC_PF_DELIVERY_AS_INT;
  return (control & both) == both;
}

bool AsyncPf::set_vector(u64 value) {
  if ((value & ~u64{0xff}) != 0) return false;
  vector_ = value;
  return true;
}

} // namespace ring3::x86
