// SPDX-License-Identifier: Apache-2.0
// A 16550A UART (National Semiconductor PC16550D data sheet), eight byte-wide ports. The line is infinitely
// fast in both directions: the transmitter is always empty, and host input is handed over whenever the guest
// has room. Flow control is real: input waits while the guest holds RTS low, which is also how it waits for
// the port's opening.
#pragma once

#include "device/device.h"

#include <array>
#include <deque>
#include <mutex>
#include <span>

namespace ring3::device {

class Serial final : public Device {
 public:
  static constexpr u64 port_count = 8;
  static constexpr std::size_t input_capacity = 8192; // bytes of host input held for the guest

  using Sink = std::function<void(u8 byte)>;

  // `sink` gets each transmitted byte. `room` is called (any vCPU thread) when the input queue has become
  // empty.
  Serial(IrqLine irq, Sink sink, WakeFn room = {});

  u64 read(u64 offset, unsigned size) override;
  void write(u64 offset, unsigned size, u64 value) override;

  // Queues host input; returns how many bytes were taken (fewer when the queue is full).
  std::size_t input(std::span<const u8> bytes);
  std::size_t input_room();

 private:
  void receive(u8 byte);
  void refill();
  void update_irq();
  void set_line(bool level);
  u8 interrupt_id() const;
  u8 modem_status() const;
  std::size_t fifo_size() const { return (fcr_ & 1) ? 16 : 1; }

  std::mutex mutex_;
  IrqLine irq_;
  Sink sink_;
  WakeFn room_;
  std::deque<u8> queue_; // host side
  std::deque<u8> fifo_;  // receiver FIFO or holding register
  u8 ier_ = 0, fcr_ = 0, lcr_ = 0, mcr_ = 0, scr_ = 0;
  u8 lsr_errors_ = 0; // OE, PE, FE, BI
  u8 msr_delta_ = 0;
  u16 divisor_ = 12; // 9600 baud
  bool thre_pending_ = false;
  bool line_ = false;
};

} // namespace ring3::device
