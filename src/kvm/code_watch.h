// SPDX-License-Identifier: Apache-2.0
// Which guest pages hold instructions that some vCPU has decoded, so that stores to them are noticed.
//
// A page's `lines` mask has a bit for each 128 bytes that were decoded; `version` changes whenever one of
// those lines is written. A decoded block remembers the version it was made under and is stale when the two
// differ.
#pragma once

#include "base/address.h"

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

namespace ring3::kvm {

struct CodePage {
  std::atomic<u32> lines{0};
  std::atomic<u32> version{0};

  static constexpr u32 lines_of(u64 page_offset, u64 size) {
    const u64 first = page_offset >> 7;
    const u64 last = (page_offset + size - 1) >> 7;
    return static_cast<u32>(((u64{2} << last) - 1) & ~((u64{1} << first) - 1));
  }
};

class CodeWatch {
 public:
  // Who has to look for stale code at once. Told by the thread that wrote, which may hold locks.
  class Listener {
   public:
    virtual void code_changed() = 0;

   protected:
    ~Listener() = default;
  };

  CodeWatch() = default;
  ~CodeWatch();
  CodeWatch(const CodeWatch&) = delete;
  CodeWatch& operator=(const CodeWatch&) = delete;

  // The page's record, made on first use; null above max_gpa, where nothing may be cached. Any thread. The
  // pointer is valid as long as the CodeWatch.
  CodePage* page(GuestPhys a);

  // The page's record if there is one. Any thread, no lock.
  CodePage* find(GuestPhys a) const {
    const u64 frame = a.frame();
    if (frame >= roots * chunks_per_root * pages_per_chunk) return nullptr;
    const Root* r = roots_[frame / (chunks_per_root * pages_per_chunk)].load(std::memory_order_acquire);
    if (r == nullptr) return nullptr;
    Chunk* c = (*r)[frame / pages_per_chunk % chunks_per_root].load(std::memory_order_acquire);
    return c == nullptr ? nullptr : &(*c)[frame % pages_per_chunk];
  }

  // Somebody wrote [a, a + size), which lies in one page: makes blocks decoded from those lines stale. Any
  // thread.
  void written(GuestPhys a, u64 size) {
    CodePage* p = find(a);
    if (p == nullptr) return;
    if ((p->lines.load(std::memory_order_relaxed) & CodePage::lines_of(a.page_offset(), size)) != 0) {
      p->lines.store(0, std::memory_order_relaxed);
      p->version.fetch_add(1, std::memory_order_release);
      changes_.fetch_add(1, std::memory_order_release);
      if (listener_ != nullptr) listener_->code_changed();
    }
  }

  // Instructions of this page are kept from now on, but for vCPUs that may still store to it unnoticed: each
  // looks here when it gives its right up, and says what may have been written.
  void note_new(GuestPhys page, const std::byte* host);
  struct NewPage {
    GuestPhys page;
    const std::byte* host;
  };
  // The pages that were noted after the first `seen`, which becomes the number of all; nothing: some of them
  // are forgotten.
  std::optional<std::vector<NewPage>> new_pages(u64& seen);
  u64 noted() const { return noted_.load(std::memory_order_acquire); }

  // Grows with every change of any page's version.
  u64 changes() const { return changes_.load(std::memory_order_acquire); }
  // Before anything is written.
  void set_listener(Listener* listener) { listener_ = listener; }

 private:
  static constexpr u64 pages_per_chunk = 512;
  static constexpr u64 chunks_per_root = 512;
  static constexpr u64 roots = 4096; // 4 TiB of guest-physical space
  using Chunk = std::array<CodePage, pages_per_chunk>;
  using Root = std::array<std::atomic<Chunk*>, chunks_per_root>;

  std::mutex lock_;
  std::array<NewPage, 4096> new_{}; // the last ones, by their numbers
  std::atomic<u64> noted_{0};
  std::atomic<u64> changes_{0};
  Listener* listener_ = nullptr;
  std::array<std::atomic<Root*>, roots> roots_{};
};

} // namespace ring3::kvm
