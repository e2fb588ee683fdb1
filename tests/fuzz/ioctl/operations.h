// SPDX-License-Identifier: Apache-2.0
// What a hostile client does. Each operation is recorded by itself.
#pragma once

#include "world.h"

namespace fuzz {

// One operation, chosen by the thread's random numbers.
void operate(Thread& t);

// ioctl() with a record. `result`: what it returned.
long call(Thread& t, const char* name, int fd, unsigned long request, u64 argument);
template <class T> long call(Thread& t, const char* name, int fd, unsigned long request, T* argument) {
  return call(t, name, fd, request, reinterpret_cast<u64>(argument));
}
long enter(Thread& t, int vcpu); // KVM_RUN

void state_operation(Thread& t);  // state_operations.cpp
void vm_operation(Thread& t);     // vm_operations.cpp
void memory_operation(Thread& t); // vm_operations.cpp
void file_operation(Thread& t);   // file_operations.cpp

// A new VM or vCPU at a place of the world. For the start of a run, and for replacements.
void make_vm(Thread& t, Descriptor& place);
void make_vcpu(Thread& t, Descriptor& place, int vm);

} // namespace fuzz
