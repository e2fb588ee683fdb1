// SPDX-License-Identifier: Apache-2.0
// Objects that count their holders: what std::shared_ptr does, with a pointer of one word and a count of four
// bytes inside the object. For what there are tens of thousands of.
#pragma once

#include "base/types.h"

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace ring3::kvm {

template <class T> class Ref;

// A base of what Ref<T> can hold. A copy of the object is a new one that nobody holds.
class Counted {
 public:
  Counted() = default;
  Counted(const Counted&) {}
  Counted& operator=(const Counted&) { return *this; }

 protected:
  ~Counted() = default;

 private:
  template <class T> friend class Ref;
  mutable std::atomic<u32> holders_{0};
};

// One holder. Different threads may have different Refs to one object, as with std::shared_ptr.
template <class T> class Ref {
 public:
  Ref() = default;
  explicit Ref(std::unique_ptr<T> object) : object_(object.release()) { hold(); }
  Ref(const Ref& other) : object_(other.object_) { hold(); }
  Ref(Ref&& other) noexcept : object_(std::exchange(other.object_, nullptr)) {}
  Ref& operator=(Ref other) noexcept {
    std::swap(object_, other.object_);
    return *this;
  }
  ~Ref() {
    if (object_ == nullptr || object_->holders_.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    const std::unique_ptr<T> last(object_);
  }

  // One more holder of an object that has some, or of none.
  static Ref of(T* object) {
    Ref ref;
    ref.object_ = object;
    ref.hold();
    return ref;
  }
  // The holder that release() gave away.
  static Ref adopt(T* object) {
    Ref ref;
    ref.object_ = object;
    return ref;
  }
  T* release() { return std::exchange(object_, nullptr); }

  // Whether nobody else holds the object, so that it may be changed where it is; false may be wrong, true is
  // not. Only what this Ref's owner does could give it another holder meanwhile.
  static bool is_only(const T* object) {
#ifdef __SANITIZE_THREAD__
    static_cast<void>(object);
    return false; // ThreadSanitizer knows no fences
#else
    if (object->holders_.load(std::memory_order_relaxed) != 1) return false;
    // Whoever let go of it last has read it before.
    std::atomic_thread_fence(std::memory_order_acquire);
    return true;
#endif
  }

  T* get() const { return object_; }
  T& operator*() const { return *object_; }
  T* operator->() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }
  friend bool operator==(const Ref& a, std::nullptr_t) { return a.object_ == nullptr; }

 private:
  void hold() {
    if (object_ != nullptr) object_->holders_.fetch_add(1, std::memory_order_relaxed);
  }

  T* object_ = nullptr;
};

template <class T, class... Arguments> Ref<T> make_ref(Arguments&&... arguments) {
  return Ref<T>(std::make_unique<T>(std::forward<Arguments>(arguments)...));
}

} // namespace ring3::kvm
