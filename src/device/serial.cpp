// SPDX-License-Identifier: Apache-2.0
#include "device/serial.h"

#include <algorithm>
#include <utility>

namespace ring3::device {
namespace {

constexpr u8 ier_rda = 1, ier_thre = 2, ier_rls = 4, ier_ms = 8;
constexpr u8 iir_none = 1, iir_thre = 2, iir_rda = 4, iir_rls = 6, iir_timeout = 12, iir_fifos = 0xc0;
constexpr u8 lcr_dlab = 0x80, lcr_break = 0x40;
constexpr u8 mcr_rts = 2, mcr_out2 = 8, mcr_loop = 0x10;
constexpr u8 lsr_dr = 1, lsr_oe = 2, lsr_bi = 0x10, lsr_thre = 0x20, lsr_temt = 0x40;
constexpr u8 msr_cts = 0x10, msr_dsr = 0x20, msr_ri = 0x40, msr_dcd = 0x80;
constexpr std::array<u8, 4> trigger_levels = {1, 4, 8, 14};

} // namespace

Serial::Serial(IrqLine irq, Sink sink, WakeFn room)
    : irq_(std::move(irq)), sink_(std::move(sink)), room_(std::move(room)) {}

u64 Serial::read(u64 offset, unsigned) {
  std::unique_lock lock(mutex_);
  const bool dlab = lcr_ & lcr_dlab;
  switch (offset) {
  case 0: {
    if (dlab) return divisor_ & 0xff;
    u8 byte = 0;
    if (!fifo_.empty()) {
      byte = fifo_.front();
      fifo_.pop_front();
    }
    const bool had_queue = !queue_.empty();
    refill();
    update_irq();
    const bool drained = had_queue && queue_.empty();
    lock.unlock();
    if (drained && room_) room_();
    return byte;
  }
  case 1: return dlab ? divisor_ >> 8 : ier_;
  case 2: {
    const u8 id = interrupt_id();
    if (id == iir_thre) {
      thre_pending_ = false;
      update_irq();
    }
    return id | ((fcr_ & 1) ? iir_fifos : 0);
  }
  case 3: return lcr_;
  case 4: return mcr_;
  case 5: {
    const u8 value = static_cast<u8>(lsr_thre | lsr_temt | lsr_errors_ | (fifo_.empty() ? 0 : lsr_dr));
    lsr_errors_ = 0;
    update_irq();
    return value;
  }
  case 6: {
    const u8 value = static_cast<u8>(modem_status() | msr_delta_);
    msr_delta_ = 0;
    update_irq();
    return value;
  }
  default: return scr_;
  }
}

void Serial::write(u64 offset, unsigned, u64 wide) {
  std::unique_lock lock(mutex_);
  const u8 value = static_cast<u8>(wide);
  const bool dlab = lcr_ & lcr_dlab;
  bool drained = false;
  switch (offset) {
  case 0:
    if (dlab) {
      divisor_ = static_cast<u16>((divisor_ & 0xff00) | value);
      return;
    }
    // The register is full for no time at all, but an edge-triggered controller has to see the line drop.
    thre_pending_ = false;
    update_irq();
    thre_pending_ = true;
    if (mcr_ & mcr_loop) {
      receive(value);
      update_irq();
    } else {
      update_irq();
      lock.unlock(); // the sink may block while the host is slow; register reads must not
      sink_(value);
    }
    return;
  case 1:
    if (dlab) {
      divisor_ = static_cast<u16>((divisor_ & 0x00ff) | (value << 8));
      return;
    }
    // Enabling the THRE interrupt while the transmitter is empty raises it at once.
    if ((value & ier_thre) && !(ier_ & ier_thre)) thre_pending_ = true;
    ier_ = value & 0x0f;
    break;
  case 2:
    if ((value ^ fcr_) & 1) fifo_.clear();
    if (value & 2) fifo_.clear();
    fcr_ = (value & 1) ? value & 0xc9 : 0;
    refill();
    break;
  case 3:
    if ((value & lcr_break) && !(lcr_ & lcr_break) && (mcr_ & mcr_loop)) {
      lsr_errors_ |= lsr_bi;
      receive(0);
    }
    lcr_ = value;
    break;
  case 4: {
    const u8 before = modem_status();
    mcr_ = value & 0x1f;
    const u8 after = modem_status();
    msr_delta_ |= static_cast<u8>((before ^ after) >> 4) & 0x0b;
    if ((before & msr_ri) && !(after & msr_ri)) msr_delta_ |= 4; // trailing edge
    const bool had_queue = !queue_.empty();
    refill();
    drained = had_queue && queue_.empty();
    break;
  }
  case 5: break; // factory test
  case 6: break; // read only
  default: scr_ = value; return;
  }
  update_irq();
  lock.unlock();
  if (drained && room_) room_();
}

std::size_t Serial::input(std::span<const u8> bytes) {
  std::lock_guard lock(mutex_);
  const std::size_t n = std::min(bytes.size(), input_capacity - queue_.size());
  queue_.insert(queue_.end(), bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(n));
  refill();
  update_irq();
  return n;
}

std::size_t Serial::input_room() {
  std::lock_guard lock(mutex_);
  return input_capacity - queue_.size();
}

void Serial::receive(u8 byte) {
  if (fifo_.size() < fifo_size()) {
    fifo_.push_back(byte);
    return;
  }
  lsr_errors_ |= lsr_oe;
  if (!(fcr_ & 1)) fifo_.back() = byte; // without FIFOs the newer character wins
}

void Serial::refill() {
  if (!(mcr_ & mcr_rts) || (mcr_ & mcr_loop)) return;
  while (!queue_.empty() && fifo_.size() < fifo_size()) {
    fifo_.push_back(queue_.front());
    queue_.pop_front();
  }
}

u8 Serial::modem_status() const {
  if (!(mcr_ & mcr_loop)) return msr_dcd | msr_dsr | msr_cts;
  // Loopback: DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
  u8 value = 0;
  if (mcr_ & 1) value |= msr_dsr;
  if (mcr_ & 2) value |= msr_cts;
  if (mcr_ & 4) value |= msr_ri;
  if (mcr_ & 8) value |= msr_dcd;
  return value;
}

u8 Serial::interrupt_id() const {
  if ((ier_ & ier_rls) && lsr_errors_) return iir_rls;
  if ((ier_ & ier_rda) && !fifo_.empty()) {
    if (!(fcr_ & 1) || fifo_.size() >= trigger_levels[fcr_ >> 6]) return iir_rda;
    return iir_timeout; // the rest of the trigger level is not going to come: no need to wait four characters
  }
  if ((ier_ & ier_thre) && thre_pending_) return iir_thre;
  if ((ier_ & ier_ms) && msr_delta_) return 0;
  return iir_none;
}

void Serial::update_irq() {
  // On a PC, OUT2 gates the interrupt; in loopback the pin is inactive.
  set_line(interrupt_id() != iir_none && (mcr_ & (mcr_out2 | mcr_loop)) == mcr_out2);
}

void Serial::set_line(bool level) {
  if (level == line_) return;
  line_ = level;
  if (irq_) irq_(level);
}

} // namespace ring3::device
