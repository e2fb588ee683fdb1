// SPDX-License-Identifier: Apache-2.0
// With Lockstep, one vCPU of the process at a time: what another one stores between the two runs of a block
// would look like a mistake.
#pragma once

#include <mutex>
#include <utility>

namespace ring3::x86::jit {

// A vCPU's part in it. Its thread may be taken out of the guest by a jump, and then gives back what it holds.
class GuestTurn {
 public:
  void take() {
    one_at_a_time().lock();
    held_ = true;
  }
  void give_back() {
    if (std::exchange(held_, false)) one_at_a_time().unlock();
  }

 private:
  static std::mutex& one_at_a_time() {
    static std::mutex lock;
    return lock;
  }
  bool held_ = false;
};

// For the time of one block. Null: nobody has to wait.
class Turn {
 public:
  explicit Turn(GuestTurn* turn) : turn_(turn) {
    if (turn_ != nullptr) turn_->take();
  }
  ~Turn() {
    if (turn_ != nullptr) turn_->give_back();
  }
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  GuestTurn* const turn_;
};

} // namespace ring3::x86::jit
