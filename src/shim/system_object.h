// SPDX-License-Identifier: Apache-2.0
// /dev/kvm: the ioctls of the system descriptor (api.rst, "Type: system ioctl").
#pragma once

#include "shim/descriptors.h"

namespace ring3::shim {

class SystemObject final : public Object {
 public:
  long ioctl(unsigned long request, unsigned long argument) override;
};

} // namespace ring3::shim
