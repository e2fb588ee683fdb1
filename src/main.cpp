// SPDX-License-Identifier: Apache-2.0
#include "vmm/cli.h"

#include <exception>
#include <fcntl.h>
#include <new>
#include <string>
#include <unistd.h>
#include <vector>

namespace {

// A closed standard descriptor must not be reused by the next file opened. The replacements are opened the
// wrong way round, so using them fails as a closed descriptor would.
void occupy_standard_descriptors() {
  for (int fd = 0; fd <= 2; ++fd) {
    if (fcntl(fd, F_GETFD) >= 0) continue;
    if (open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0) _exit(1);
  }
}

} // namespace

int main(int argc, char** argv) {
  occupy_standard_descriptors();
  try {
    const std::vector<std::string> arguments(argv + (argc > 0 ? 1 : 0), argv + argc);
    return ring3::vmm::cli_main(arguments);
  } catch (const std::bad_alloc&) {
    return ring3::vmm::report({"out of host memory", "use a smaller --memory or fewer --cpus", 1});
  } catch (const std::exception& e) {
    return ring3::vmm::report({e.what(), "please report this line", 1});
  }
}
