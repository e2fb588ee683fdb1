// SPDX-License-Identifier: Apache-2.0
// What travels between the local APICs, the I/O APIC and MSI senders (SDM vol. 3, 11.6, 11.10 and 11.11).
#pragma once

#include "base/types.h"

namespace ring3::x86 {

class Lapic;

// The delivery mode field of ICR, LVT, I/O APIC redirection and MSI data; the numbers are the hardware's.
enum class DeliveryMode : u8 {
  Fixed = 0,
  LowestPriority = 1,
  Smi = 2,
  Reserved = 3,
  Nmi = 4,
  Init = 5,
  Startup = 6,
  ExtInt = 7,
};

enum class Shorthand : u8 { None = 0, Self = 1, AllIncludingSelf = 2, AllExcludingSelf = 3 };

struct ApicMessage {
  u32 destination = 0; // 8 bits in xAPIC format, 32 bits from an x2APIC
  u8 vector = 0;
  DeliveryMode mode = DeliveryMode::Fixed;
  Shorthand shorthand = Shorthand::None;
  bool logical = false;
  bool level_triggered = false;
  bool level_assert = true;
  bool redirection_hint = false; // MSI: to one of the destinations, like LowestPriority
};

// What a local APIC needs of the machine around it. Any thread.
class ApicBus {
 public:
  virtual ~ApicBus() = default;
  // The number of local APICs that took the message, or -1 if it addressed none. `source` is null for
  // messages that do not come from a local APIC.
  virtual int deliver(const ApicMessage& message, const Lapic* source) = 0;
  // The end of a level-triggered vector, or of one that the machine wants to hear of.
  virtual void broadcast_eoi(u8 vector, bool level_triggered) = 0;
  virtual bool wants_edge_eoi(u8 vector) const = 0;
  // Whether the end of `vector` on this local APIC is to be reported to user space.
  virtual bool reports_eoi(const Lapic& /*at*/, u8 /*vector*/, bool /*level_triggered*/) const {
    return false;
  }
  // Some APIC changed its mode or its xAPIC ID.
  virtual void addressing_changed() = 0;
};

} // namespace ring3::x86
