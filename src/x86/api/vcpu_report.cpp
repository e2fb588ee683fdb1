// SPDX-License-Identifier: Apache-2.0
#include "x86/api/vcpu_report.h"

#include "x86/jit/statistics.h"

#include <fmt/format.h>

namespace ring3::x86 {

namespace {

// Null: the interpreter executes it.
const jit::Statistics* translator(const kvm::SeenVcpu& v) {
  return v.executor != 0 ? &jit::Statistics::in(v.record->executor) : nullptr;
}

} // namespace

std::string vcpu_members(u32 id, u64 instructions, const kvm::VcpuStats& stats) {
  return fmt::format("\"id\":{},\"instructions\":{},{}", id, instructions,
                     kvm::stats_json(kvm::StatsLayout::vcpu(), &stats));
}

Result<VcpuReport> VcpuReport::of(const kvm::SeenVcpu& vcpu) {
  if (vcpu.executor != 0 && vcpu.executor != jit::Statistics::layout()) return kvm::another_build();
  return VcpuReport(vcpu);
}

std::string VcpuReport::json() const {
  const auto& r = *vcpu_->record;
  const jit::Statistics* const t = translator(*vcpu_);
  return fmt::format("{{\"vm\":{},{}{}}}", vcpu_->vm,
                     vcpu_members(vcpu_->vcpu, r.instructions.value(), r.stats),
                     t != nullptr ? ',' + t->json() : std::string{});
}

std::vector<std::string> VcpuReport::lines() const {
  const auto seconds = [](const kvm::Counter& ns) { return static_cast<double>(ns.value()) / 1e9; };
  const kvm::VcpuStats& s = vcpu_->record->stats;
  std::vector<std::string> out{
      fmt::format("VM {}, vCPU {}: {} instructions in {:.3f} s in the guest, {:.3f} s halted{}", vcpu_->vm,
                  vcpu_->vcpu, vcpu_->record->instructions.value(), seconds(s.guest_ns),
                  seconds(s.halt_wait_ns), s.blocking.value() != 0 ? ", halted now" : ""),
      fmt::format("{} exits, of which I/O {}, MMIO {}, halts {}; {} interrupts, {} NMIs, {} hypercalls, "
                  "{} returns for signals",
                  s.exits.value(), s.io_exits.value(), s.mmio_exits.value(), s.halt_exits.value(),
                  s.irq_injections.value(), s.nmi_injections.value(), s.hypercalls.value(),
                  s.signal_exits.value())};
  if (const jit::Statistics* const t = translator(*vcpu_)) {
    for (std::string& line : t->lines()) out.push_back(std::move(line));
  }
  return out;
}

} // namespace ring3::x86
