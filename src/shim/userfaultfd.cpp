// SPDX-License-Identifier: Apache-2.0
#include "shim/userfaultfd.h"

#include "kvm/residency.h"
#include "shim/user_memory.h"

#include <linux/userfaultfd.h>
#include <sys/ioctl.h>

namespace ring3::shim {

void note_userfaultfd(unsigned long request, unsigned long argument) {
  kvm::Residency& residency = kvm::Residency::of_process();
  if (request == UFFDIO_REGISTER) {
    uffdio_register r;
    if (get_user(r, argument) && (r.mode & UFFDIO_REGISTER_MODE_MISSING) != 0)
      residency.registered(r.range.start, r.range.len);
  } else if (request == UFFDIO_UNREGISTER) {
    uffdio_range r;
    if (get_user(r, argument)) residency.unregistered(r.start, r.len);
  }
}

} // namespace ring3::shim
