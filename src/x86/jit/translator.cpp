// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/translator.h"

#include "x86/jit/block_emitter.h"

#include <algorithm>
#include <new>

namespace ring3::x86::jit {

TranslatedBlock* Translator::translate(const BlockPlace& place, std::span<const Source> source) {
  unsigned count = 0;
  source = source.first(std::min<std::size_t>(source.size(), BlockEmitter::max_insns));
  const RegisterPlan plan = plan_registers(source, count);
  source = source.first(count);

  auto* const t = new (memory_.allocate(sizeof(TranslatedBlock), alignof(TranslatedBlock))) TranslatedBlock{};
  auto* const steps = static_cast<StepSite*>(memory_.allocate(sizeof(StepSite) * count, alignof(StepSite)));
  for (unsigned i = 0; i < count; ++i) {
    new (&steps[i]) StepSite{.insn = source[i].insn,
                             .ip = source[i].ip,
                             .of = t,
                             .index = static_cast<u16>(i),
                             .mnemonic = source[i].decoded.mnemonic,
                             .ends = source[i].ends,
                             .followed = i + 1 < count && source[i].followed != JumpForm::none,
                             .host_offset = 0,
                             .tail = source[i].split ? place.tail : nullptr};
  }
  t->linear = place.linear;
  t->host = place.host;
  t->page = place.page;
  t->incarnation = place.page->incarnation;
  t->count = static_cast<u16>(count);
  t->tier = place.tier;
  t->steps = steps;
  t->map = plan.map;

  const CodeArea area = place.tier == Tier::first ? CodeArea::warm : CodeArea::hot;
  if (!BlockEmitter(cache_, area, thunks_, layout_, plan, source, *t, steps, memory_).emit()) return nullptr;
  return t;
}

} // namespace ring3::x86::jit
