// SPDX-License-Identifier: Apache-2.0
#include "x86/jit/jit.h"

#include "x86/interp/vector_plan.h"
#include "x86/jit/block_emitter.h"
#include "x86/jit/lockstep.h"
#include "x86/jit/trace.h"
#include "x86/jit/vector_copy.h"
#include "x86/jit/x87_copy.h"

#include <algorithm>
#include <array>
#include <asm/prctl.h>
#include <chrono>
#include <cstring>
#include <limits>
#include <sys/auxv.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <utility>

namespace ring3::x86::jit {

namespace {

constexpr u8 hot = 6; // times that code is interpreted first
// Samples, of which there is one in Cpu::poll_interval instructions, until code is worth more work, and for
// the third tier.
constexpr u8 much = 8, very_much = 24;
// Times that a trace of the third tier is left one way, until what comes there is worth as much. Samples
// would not find it: instructions are counted where blocks begin, and a short one's hardly ever are the last.
constexpr u8 often = 32;
// Times that instructions of a block are left to handlers only since they share a lookup, until they do not.
constexpr u8 too_many = 128;

std::size_t hash(u64 linear, const std::byte* host, unsigned bits) {
  const u64 key = reinterpret_cast<u64>(host) ^ linear * 0x9e3779b97f4a7c15ULL;
  return key * 0xd6e8feb86659fd93ULL >> (64 - bits);
}

// The GS base of this thread. The C library does not use it, but the program may.
bool has_gs_instructions() {
  constexpr u64 fsgsbase = 2; // HWCAP2_FSGSBASE
  return (::getauxval(AT_HWCAP2) & fsgsbase) != 0;
}
[[gnu::target("fsgsbase")]] u64 read_gs_base_fast() { return __builtin_ia32_rdgsbase64(); }
[[gnu::target("fsgsbase")]] void write_gs_base_fast(u64 value) { __builtin_ia32_wrgsbase64(value); }
u64 read_gs_base() {
  static const bool fast = has_gs_instructions();
  if (fast) return read_gs_base_fast();
  u64 value = 0;
  ::syscall(SYS_arch_prctl, ARCH_GET_GS, &value);
  return value;
}
void write_gs_base(u64 value) {
  static const bool fast = has_gs_instructions();
  if (fast) {
    write_gs_base_fast(value);
  } else {
    ::syscall(SYS_arch_prctl, ARCH_SET_GS, value);
  }
}

template <class F> bool each_line(u32 lines, F&& holds) {
  for (; lines != 0; lines &= lines - 1) {
    if (!holds(static_cast<u64>(std::countr_zero(lines)) * 128)) return false;
  }
  return true;
}

// Would x87 and MMX instructions raise no fault, and does the processor take the state as it is? A VMM may
// have set what no processor has.
bool x87_usable(const CpuState& s) {
  constexpr unsigned masks = 0x3f, fixed = 0x40, reserved = 0xe080, summary = 0x8080;
  return (s.cr0 & (cr0::em | cr0::ts)) == 0 && (s.x87.fcw & (masks | fixed | reserved)) == (masks | fixed) &&
         (s.x87.fsw & summary) == 0;
}

} // namespace

Jit::Store::Store(Cpu& cpu, std::unique_ptr<CodeCache> code_cache, bool checked)
    : cache(std::move(code_cache)) {
  const auto from_gs = [&](const void* member) {
    return static_cast<s32>(reinterpret_cast<s64>(member) - reinterpret_cast<s64>(&cpu));
  };
  layout.regs = from_gs(cpu.state.regs);
  layout.flags = from_gs(&cpu.state.flags);
  // That belongs to somebody else.
  layout.exit_word = from_gs(&cpu.exit_word);
  if (reinterpret_cast<s64>(&cpu.exit_word) - reinterpret_cast<s64>(&cpu) != layout.exit_word)
    layout.far_exit_word = &cpu.exit_word;
  layout.tlb = from_gs(&cpu.tlb_);
  for (unsigned i = 0; i < seg_count; ++i) layout.segment_base[i] = from_gs(&cpu.segment_base_[i]);
  layout.budget = from_gs(&cpu.translation_.budget);
  layout.jumps = from_gs(&cpu.translation_.jumps);
  layout.cpl = from_gs(&cpu.state.cpl);
  layout.system_flags = from_gs(&cpu.state.system_flags);
  layout.gs_base = from_gs(&cpu.state.segment(Seg::gs).base);
  layout.kernel_gs_base = from_gs(&cpu.state.kernel_gs_base);
  layout.vectors_usable = from_gs(&cpu.translation_.vectors_usable);
  layout.vectors_live = from_gs(&cpu.translation_.vectors_live);
  layout.host_mxcsr = from_gs(&cpu.translation_.host_mxcsr);
  layout.x87 = from_gs(&cpu.state.x87);
  layout.x87_image = from_gs(cpu.translation_.x87_image.data());
  layout.x87_control = from_gs(&cpu.translation_.x87_control);
  layout.x87_used = from_gs(&cpu.translation_.x87_used);
  layout.host_fcw = from_gs(&cpu.translation_.host_fcw);
  layout.string_run = from_gs(&cpu.translation_.string);
  for (unsigned i = 0; i < seg_count; ++i) layout.segment_selector[i] = from_gs(&cpu.state.seg[i].selector);
  layout.fs_base = from_gs(&cpu.state.segment(Seg::fs).base);
  layout.cr0 = from_gs(&cpu.state.cr0);
  layout.cr2 = from_gs(&cpu.state.cr2);
  layout.cr3 = from_gs(&cpu.state.cr3);
  layout.cr4 = from_gs(&cpu.state.cr4);
  layout.xcr0 = from_gs(&cpu.state.xcr0);
  layout.tsc_offset = from_gs(&cpu.state.tsc_offset);
  layout.tsc_aux = from_gs(&cpu.state.tsc_aux);
  layout.window_wanted = from_gs(&cpu.window_wanted);
  layout.pauses_left = from_gs(&cpu.pauses_left_);
  layout.code_tlb = from_gs(&cpu.code_tlb_);
  layout.supervisor_tlb = from_gs(cpu.translation_.supervisor_tlb.data());
  layout.tsc_is_host = from_gs(&cpu.translation_.tsc_is_host);
  layout.runs_twice = checked;

  const std::span<u8> room = cache->room(CodeArea::hot);
  Emitter e(room);
  thunks = emit_thunks(e, cache->executable(room.data()), layout, &cpu, step);
  thunk_bytes = (e.size() + 63) & ~std::size_t{63};
  cache->take(CodeArea::hot, thunk_bytes);
}

TranslatedPage*& Jit::Store::pages_at(u64 linear, const std::byte* host) {
  return pages[hash(linear, host, page_bits)];
}

Jit::Jit(Cpu& cpu, bool checked, Statistics* statistics)
    : cpu_(cpu), lockstep_(checked ? std::make_unique<Lockstep>(*this) : nullptr), host_avx_(host::has_avx()),
      host_avx512_(host::has_avx512()),
      own_statistics_(statistics == nullptr ? std::make_unique<Statistics>() : nullptr),
      statistics_(statistics == nullptr ? *own_statistics_ : *statistics) {
  cpu_.poll_interval = 16384; // some microseconds
}

Jit::~Jit() = default;

void Jit::forget_code() { flush_wanted_ = true; }

void Jit::flush() {
  flush_wanted_ = false;
  std::ranges::fill(store_->pages, nullptr);
  store_->blocks.clear();
  store_->certain.clear();
  store_->memory.rewind();
  store_->cache->rewind(store_->thunk_bytes);
  strayed_ = nullptr;
  clear_jumps();
  statistics_.flushes.add();
}

// --- finding translations ---

void Jit::clear_jumps() {
  statistics_.refreshes.add();
  store_->maps.clear_jumps();
  for (TranslatedPage* const p : store_->entered) p->ways = 0;
  store_->entered.clear();
  pending_ = nullptr;
}

void Jit::forget_ways(TranslatedPage& page) {
  if (page.ways == 0) return;
  store_->maps.each(std::exchange(page.ways, 0), [&](CodeMap& m) {
    for (u64 at = page.heads._Find_first(); at < page_size; at = page.heads._Find_next(at))
      m.forget_jump(page.linear + at);
  });
  std::erase(store_->entered, &page);
}

// Code is written more often than code that is being executed, and most epochs find nothing new. Not more is
// looked at than is in a proportion to what was executed since the last time.
void Jit::check_entered() {
  constexpr u64 few = 64, instructions_a_page = 128;
  const u64 executed = cpu_.instructions - std::exchange(entered_checked_at_, cpu_.instructions);
  if (store_->entered.size() > few + executed / instructions_a_page) return clear_jumps();
  // From the end: those that are found stale leave.
  for (std::size_t i = store_->entered.size(); i-- > 0;) static_cast<void>(valid(*store_->entered[i]));
}

void Jit::refresh_jumps() {
  const u64 changes = cpu_.mmu.code_watch().changes();
  if (mmu_generation_ != cpu_.mmu.generation() || code_changes_ != changes || epoch_ != cpu_.code_epoch)
    doubt_tails();
  mmu_generation_ = cpu_.mmu.generation();
  store_->maps.refresh(cpu_.mmu);
  CodeMap& m = map();
  if (m.doubtful()) [[unlikely]] {
    CodeMap::Rights ignored;
    const auto still_there = [&](const CodeMap::Page& p) { return page_at(p.linear, ignored) == p; };
    if (!m.same(still_there)) {
      statistics_.refreshes.add();
      pending_ = nullptr;
    }
  }
  if (code_changes_ != changes || epoch_ != cpu_.code_epoch) {
    code_changes_ = changes;
    epoch_ = cpu_.code_epoch;
    check_entered();
  }
  cpu_.translation_.jumps = m.jumps();
}

CodeMap::Page Jit::page_at(u64 linear, CodeMap::Rights& rights) {
  Translation t;
  Fault fault;
  if (!cpu_.mmu.walk(GuestVirt{linear}, Access::fetch, cpu_.state.cpl == 3, false, t, fault)) {
    static_cast<void>(cpu_.mmu.lost_page());
    return {};
  }
  const Backing b = cpu_.platform.claims_page(t.pa) ? Backing{} : cpu_.mmu.backing(t.pa);
  rights = {t.global, t.large};
  if (b.host != nullptr) cpu_.mmu.note_mapped(b, t.pa);
  return {linear, b.host, t.pa};
}

const CodeMap::Page* Jit::code_page(u64 rip) {
  if (const CodeMap::Page* const known = map().find(rip)) return known;
  if (!cpu_.canonical(rip)) return nullptr;
  CodeMap::Rights rights;
  const CodeMap::Page page = page_at(rip & ~page_offset_mask, rights);
  return page.host != nullptr ? map().put(page, rights) : nullptr;
}

bool Jit::valid(TranslatedPage& page) {
  const u32 version = page.watch->version.load(std::memory_order_acquire);
  if (page.version == version) {
    if (page.epoch == cpu_.code_epoch) return true;
    if (each_line(page.lines, [&](u64 at) { return equals_guest(&page.copy[at], page.host + at, 128); })) {
      page.epoch = cpu_.code_epoch; // not before: the memory may not be there
      return true;
    }
  }
  // Whoever wrote there may not have counted it yet; afterwards, nothing would tell this page from any other.
  forget_ways(page);
  page.renew();
  page.version = version;
  page.epoch = cpu_.code_epoch;
  doubt_tails();
  return false;
}

TranslatedBlock* Jit::known(u64 linear, const std::byte* host) {
  const u64 offset = linear & page_offset_mask;
  for (TranslatedPage* p = store_->pages_at(linear - offset, host - offset); p != nullptr; p = p->next) {
    if (p->linear != linear - offset || p->host != host - offset || !valid(*p)) continue;
    for (TranslatedBlock* t = p->blocks_at(offset); t != nullptr; t = t->next) {
      if (t->linear == linear) return t;
    }
  }
  return nullptr;
}

TranslatedBlock* Jit::find() {
  if (flush_wanted_) flush();
  refresh_jumps();
  if (TranslatedBlock* const t = std::exchange(strayed_, nullptr)) split_runs(*t);
  const u64 rip = cpu_.state.rip();
  const CodeMap::Page* const code = code_page(rip);
  if (code == nullptr) return nullptr;
  const std::byte* const host = code->host + GuestVirt{rip}.page_offset();
  if (TranslatedBlock* const t = known(rip, host)) {
    if (t->tier == Tier::second && t->samples >= very_much) return improved(*t, *code, Tier::third);
    if (t->tier != Tier::first) return t;
    if (leaves_trace() && pending_->taken >= often) return improved(*t, *code, Tier::third);
    return t->samples >= much ? improved(*t, *code, Tier::second) : t;
  }
  u8& heat = store_->heat[hash(rip, host, Store::heat_bits)];
  if (heat < hot && !lockstep_) {
    ++heat;
    return nullptr;
  }
  heat = 0; // for the next time, should there be nothing to translate
  return translate_timed(rip, *code, Tier::first);
}

void Jit::split_runs(TranslatedBlock& t) {
  const CodeMap::Page* const code = code_page(t.linear);
  if (code != nullptr && known(t.linear, code->host + GuestVirt{t.linear}.page_offset()) == &t)
    static_cast<void>(improved(t, *code, t.tier));
}

bool Jit::leaves_trace() const {
  return pending_ != nullptr && pending_->kind == Exit::Kind::link && pending_->of->tier == Tier::third;
}

TranslatedBlock* Jit::translate_timed(u64 linear, const CodeMap::Page& code, Tier tier) {
  const auto start = std::chrono::steady_clock::now();
  TranslatedBlock* const made = translate(linear, code, tier);
  const std::chrono::nanoseconds took = std::chrono::steady_clock::now() - start;
  statistics_.nanoseconds.add(static_cast<u64>(took.count()));
  return made;
}

TranslatedBlock* Jit::improved(TranslatedBlock& t, const CodeMap::Page& code, Tier tier) {
  t.tier = tier; // as far as it goes, should that fail
  const u64 flushes = statistics_.flushes.value();
  TranslatedBlock* const made = translate_timed(t.linear, code, tier);
  // Without the memory that `t` is in, or with other code in the page, nothing leads to it any more.
  if (made == nullptr || statistics_.flushes.value() != flushes || t.incarnation != made->incarnation)
    return made;
  statistics_.improved.add();
  const auto lead = [&](const u8* from, const u8* to) {
    constexpr u8 jmp = 0xe9;
    const auto distance = static_cast<s32>(to - (from + 5));
    u8* const at = store_->cache->writable(from);
    *at = jmp;
    std::memcpy(at + 1, &distance, sizeof distance);
  };
  // Who goes on in it comes by its entries. All others do not have to.
  lead(t.code, made->code);
  if (t.entry_memory != t.code) lead(t.entry_memory, made->entry_memory);
  for (Exit* x = std::exchange(t.links, nullptr); x != nullptr;) {
    Exit& link = *x;
    x = x->next_into;
    follow(link, *made);
  }
  store_->maps.each(t.page->ways,
                    [&](CodeMap& m) { m.replace_jump(t.linear, t.entry_memory, made->entry_memory); });
  return made;
}

TranslatedPage* Jit::page_of(u64 linear, const std::byte* host, kvm::CodePage* watch) {
  TranslatedPage*& bucket = store_->pages_at(linear, host);
  for (TranslatedPage* p = bucket; p != nullptr; p = p->next) {
    if (p->linear == linear && p->host == host && p->watch == watch) return p;
  }
  auto* const p =
      new (store_->memory.allocate(sizeof(TranslatedPage), alignof(TranslatedPage))) TranslatedPage;
  p->linear = linear;
  p->host = host;
  p->watch = watch;
  p->version = watch->version.load(std::memory_order_acquire);
  p->epoch = cpu_.code_epoch;
  p->blocks.fill(nullptr);
  p->next = bucket;
  bucket = p;
  return p;
}

// These lines of the page are about to be translated, as `bytes` have them. False: they have changed since.
bool Jit::keep(TranslatedPage& page, GuestPhys physical, u32 lines, std::span<const u8> bytes) {
  each_line(lines, [&](u64 at) {
    cpu_.watch_code(*page.watch, physical + at, page.host + at, 128);
    return true;
  });
  // What changed before it was watched would go unnoticed for ever.
  if (!each_line(lines, [&](u64 at) { return equals_guest(&bytes[at], page.host + at, 128); })) return false;
  const bool agrees = each_line(lines & page.lines,
                                [&](u64 at) { return equals_guest(&page.copy[at], page.host + at, 128); });
  if (!agrees) {
    forget_ways(page);
    page.renew();
  }
  each_line(lines & ~page.lines, [&](u64 at) {
    std::memcpy(&page.copy[at], &bytes[at], 128);
    return true;
  });
  page.lines |= lines;
  return true;
}

TranslatedBlock* Jit::translate(u64 linear, const CodeMap::Page& code, Tier tier) {
  const u64 offset = linear & page_offset_mask;
  const std::byte* const host = code.host + offset;
  const GuestPhys physical = code.physical + offset;
  kvm::CodePage* const watch = cpu_.mmu.code_watch().page(physical);
  if (watch == nullptr) return nullptr;
  if (store_->memory.full()) flush();

  const std::byte* const page_host = host - offset;
  TranslatedPage* const page = page_of(linear - offset, page_host, watch);
  static_cast<void>(valid(*page));
  const CodeMap::Page* next = nullptr;
  std::array<u8, 128> next_bytes;
  const auto page_behind = [&]() -> std::span<const u8> {
    const u64 at = page->linear + page_size;
    next = at != 0 ? code_page(at) : nullptr;
    if (next == nullptr) return {};
    copy_guest(next_bytes.data(), next->host, next_bytes.size());
    return next_bytes;
  };
  const GuestPhys page_physical = code.physical;
  TraceBuilder builder(cpu_.cpuid, cpu_.decode_memo(), *page, page_behind);
  const unsigned count = builder.build(linear, store_->sources, tier, [&](u64 at) -> unsigned {
    const u64 there = at & page_offset_mask;
    return at == linear || page->heads[there] ? hot
                                              : store_->heat[hash(at, page_host + there, Store::heat_bits)];
  });
  if (count == 0) return nullptr;
  if (!keep(*page, page_physical, builder.lines(), builder.bytes())) return nullptr;
  SplitTail* tail = nullptr;
  if (store_->sources[count - 1].split) {
    kvm::CodePage* const next_watch = cpu_.mmu.code_watch().page(next->physical);
    if (next_watch == nullptr) return nullptr;
    TranslatedPage* const other = page_of(next->linear, next->host, next_watch);
    static_cast<void>(valid(*other));
    if (!keep(*other, next->physical, 1, next_bytes)) return nullptr;
    tail = new (store_->memory.allocate(sizeof(SplitTail), alignof(SplitTail)))
        SplitTail{other->linear, other->host, other, other->incarnation};
  }

  Translator translator(*store_->cache, store_->memory, store_->thunks, store_->layout);
  const BlockPlace place{linear, host, page, tier, tail};
  TranslatedBlock* made = translator.translate(place, {store_->sources.data(), count});
  if (made != nullptr && lockstep_ && !made->all_native) {
    // Only blocks that are host code throughout can be run twice.
    unsigned native = 0;
    while (made->steps[native].native) ++native;
    if (native == 0) return nullptr;
    made = translator.translate(place, {store_->sources.data(), native});
  }
  if (made == nullptr) {
    flush();
    return nullptr;
  }
  page->heads.set(offset);
  store_->blocks.push_back(made);
  TranslatedBlock*& first = page->blocks_at(offset);
  made->next = std::exchange(first, made);
  statistics_.translations.add();
  statistics_.instructions.add(made->count);
  statistics_.host_bytes.add(static_cast<u64>(made->end - made->code));
  statistics_.cold_bytes.add(made->cold_bytes);
  return made;
}

// --- running them ---

void Jit::follow(Exit& x, TranslatedBlock& to) {
  if (x.target != to.linear || x.of->page != to.page || x.of->incarnation != to.incarnation) return;
  const u8* const target = x.flags_in_memory ? to.entry_memory : to.code;
  const auto distance = static_cast<s32>(target - (x.executable_field + 4));
  std::memcpy(x.field, &distance, sizeof distance);
  x.next_into = std::exchange(to.links, &x);
}

void Jit::note_way(TranslatedBlock& to) {
  map().put_jump(to.linear, to.entry_memory);
  TranslatedPage& page = *to.page;
  if (page.ways == 0) store_->entered.push_back(&page);
  page.ways |= 1u << store_->maps.number(cpu_.state.cpl == 3);
}

const u8* Jit::step(Cpu* cpu, const StepSite* s) {
  auto& jit = static_cast<Jit&>(*cpu->executor_);
  cpu->insn_start_ = s->ip;
  if (s->tail != nullptr && !jit.make_certain(*s->tail)) [[unlikely]]
    return jit.give_up(*s);
  cpu->state.regs[reg_rip] = s->ip + s->insn.len;
  (s->native ? jit.statistics_.missed : jit.statistics_.handled[s->mnemonic]).add();
  const u64 protections = cpu->mmu.protections(), fills = cpu->mmu.fills();
  const Step result = s->insn.handler(*cpu, s->insn);
  if (s->in_run) jit.note_run(*s, cpu->mmu.fills() != fills);
  // A jump that is followed has the next site behind it.
  const bool goes_on = s->followed ? result != Step::abort && cpu->state.rip() == s[1].ip && !cpu->careful_
                                   : result == Step::next && !s->ends;
  // The code may not be right any more, or lookups that were made. No other vCPU finds code while Lockstep is
  // in a block.
  const bool same = (cpu->mmu.protections() == protections && jit.strayed_ == nullptr) || jit.lockstep_;
  if (goes_on && same && cpu->mmu.code_watch().changes() == jit.code_changes_ &&
      cpu->mmu.generation() == jit.mmu_generation_) [[likely]] {
    if (!s->native || s->unmasks) cpu->translation_.vectors_usable = jit.usable_vectors();
    return nullptr;
  }
  const int executed = s->index + (result == Step::abort ? 0 : 1);
  cpu->translation_.budget += s->of->count - executed;
  jit.stepped_ = s;
  jit.step_result_ = result;
  if (jit.lockstep_) return jit.store_->thunks.stop; // which looks at the state first
  jit.go_on_ = jit.settle(*s);
  const u8* const code = jit.go_on_ ? jit.onward() : nullptr;
  return code != nullptr ? code : jit.store_->thunks.stop;
}

// Handlers execute the whole run when its first lookup fails. If none of them had to fill the TLB either, it
// is that their operands are in different pages, or not all of them may be written: that can be so for as
// long as a function is executed.
void Jit::note_run(const StepSite& s, bool filled) {
  run_filled_ = filled || (!s.begins_run && run_filled_);
  if (run_filled_) return;
  TranslatedBlock& t = *s.of;
  t.page->strays.set(s.ip & page_offset_mask);
  if (t.strays < too_many && ++t.strays == too_many) strayed_ = &t;
}

// False: it is another page, or has other bytes.
bool Jit::make_certain(SplitTail& tail) {
  const CodeMap::Page* const page = code_page(tail.linear);
  if (page == nullptr || page->host != tail.host || !valid(*tail.page) ||
      tail.page->incarnation != tail.incarnation)
    return false;
  if (tail.certain_for == SplitTail::none) store_->certain.push_back(&tail);
  tail.certain_for = cpu_.state.cpl;
  return true;
}

void Jit::doubt_tails() {
  for (SplitTail* const tail : store_->certain) tail->certain_for = SplitTail::none;
  store_->certain.clear();
}

// All that is known of the page goes, which is simple, and seldom.
void Jit::drop_page_of(const TranslatedBlock& t) {
  forget_ways(*t.page);
  t.page->renew();
}

// The instruction is another one now.
const u8* Jit::give_up(const StepSite& s) {
  cpu_.translation_.budget += s.of->count - s.index;
  cpu_.state.regs[reg_rip] = s.ip;
  drop_page_of(*s.of);
  stepped_ = nullptr;
  go_on_ = true;
  return store_->thunks.stop;
}

const u8* Jit::onward() {
  if (cpu_.careful_ || !cpu_.code64_ || flush_wanted_ || strayed_ != nullptr) return nullptr;
  refresh_jumps();
  const u8* const code = map().jump(cpu_.state.rip());
  if (code != nullptr) cpu_.translation_.vectors_usable = usable_vectors();
  return code;
}

bool Jit::settle(const StepSite& s) {
  if (step_result_ != Step::abort) return !cpu_.exit_pending;
  if (!cpu_.rip_committed_) cpu_.state.regs[reg_rip] = s.ip;
  cpu_.rip_committed_ = false;
  return cpu_.settle_abort();
}

void Jit::note_sample(TranslatedBlock& t) {
  if (t.samples < very_much) ++t.samples;
}

bool Jit::execute(TranslatedBlock& t) {
  const u64 left = cpu_.poll_at - cpu_.instructions;
  entry_budget_ = static_cast<s32>(std::min<u64>(left, std::numeric_limits<s32>::max()));
  cpu_.translation_.budget = entry_budget_;
  cpu_.translation_.vectors_usable = usable_vectors();
  statistics_.entries.add();
  Exit* const x = store_->thunks.enter(&cpu_, t.entry_memory);
  cpu_.instructions += static_cast<u64>(s64{entry_budget_} - cpu_.translation_.budget);
  pending_ = x;
  statistics_.left[x != nullptr ? static_cast<unsigned>(x->kind) : Statistics::ways_out - 1].add();
  if (x == nullptr) return go_on_;
  switch (x->kind) {
  case Exit::Kind::head:
    cpu_.state.regs[reg_rip] = x->target;
    if (cpu_.exit_word.load(std::memory_order_relaxed) == 0) {
      cpu_.poll_at = cpu_.instructions;
      note_sample(*x->of);
    }
    pending_ = nullptr;
    return true;
  case Exit::Kind::interpret:
    cpu_.state.regs[reg_rip] = x->target;
    pending_ = nullptr;
    return cpu_.interpret_block();
  case Exit::Kind::link:
  case Exit::Kind::jump: cpu_.state.regs[reg_rip] = x->target; return true;
  case Exit::Kind::indirect:
    if (cpu_.canonical(cpu_.state.rip())) return true;
    // A fault of the jump itself, which then did nothing: the interpreter shows how.
    cpu_.state.regs[reg_rip] = x->step->ip;
    cpu_.state.regs[rsp] -= static_cast<u64>(s64{x->pushed});
    --cpu_.instructions;
    pending_ = nullptr;
    return cpu_.interpret_block();
  }
  return true;
}

// Which vector instructions would raise no fault and can use the host's registers.
u8 Jit::usable_vectors() const {
  const CpuState& s = cpu_.state;
  constexpr u32 masks = 0x1f80;
  u8 usable = x87_usable(s) ? vector_level::x87 : 0;
  if ((s.x87.mxcsr & masks) != masks) return usable; // what is unmasked comes as a signal
  if (vector_needs_met(s, vector_needs::sse)) usable |= vector_level::sse;
  if (host_avx_ && vector_needs_met(s, vector_needs::vex)) usable |= vector_level::avx;
  if (host_avx512_ && vector_needs_met(s, vector_needs::evex)) usable |= vector_level::avx512;
  return usable;
}

CpuExit Jit::run() {
  if (!store_) {
    auto cache = CodeCache::make(CodeCache::usual_bytes);
    if (!cache) {
      cpu_.internal_error = "no memory for translated code";
      return CpuExit::internal_error;
    }
    store_ = std::make_unique<Store>(cpu_, std::move(cache), lockstep_ != nullptr);
    flush();
  }
  cpu_.exit_pending = false;
  cpu_.fault_pending = false;
  pending_ = nullptr;
  if (cpu_.replaying() && !cpu_.finish_instruction()) return cpu_.exit;
  cpu_.translation_.tsc_is_host = cpu_.platform.tsc_is_host();
  program_gs_ = read_gs_base();
  running_ = true;
  write_gs_base(reinterpret_cast<u64>(&cpu_));
  const CpuExit why = loop();
  write_gs_base(program_gs_);
  running_ = false;
  if (std::exchange(cpu_.translation_.x87_used, false)) asm volatile("fnclex");
  return why;
}

CpuExit Jit::loop() {
  for (;;) {
    const Turn turn(lockstep_ ? &turn_ : nullptr);
    if (cpu_.exit_word.load(std::memory_order_relaxed) != 0) return CpuExit::request;
    if (cpu_.instructions >= cpu_.poll_at) cpu_.poll();
    TranslatedBlock* const t = cpu_.careful_ || !cpu_.code64_ ? nullptr : find();
    bool go_on;
    if (t != nullptr) {
      if (t->tier == Tier::first && leaves_trace()) {
        ++pending_->taken;
      } else if (pending_ != nullptr && pending_->kind == Exit::Kind::link) {
        follow(*pending_, *t);
      } else if (!lockstep_) { // which wants to see each block
        note_way(*t);
      }
      if (lockstep_) note_sample(*t); // nothing else would
      go_on = lockstep_ ? lockstep_->execute(*t) : execute(*t);
    } else {
      pending_ = nullptr;
      const u64 before = cpu_.instructions;
      go_on = cpu_.interpret_block();
      statistics_.interpreted.add(cpu_.instructions - before);
    }
    if (!go_on) return cpu_.exit;
  }
}

bool Jit::recover(const HostRegisters& host) {
  if (!running_) return false;
  running_ = false;
  write_gs_base(program_gs_);
  cpu_.store_log_ = nullptr;
  turn_.give_back();
  const auto* at = reinterpret_cast<const u8*>(host.rip);
  if (!store_->cache->contains(at)) return false;
  const StringThunks& strings = store_->thunks.strings;
  const auto in_string = strings.element_bits(at);
  if (in_string) std::memcpy(&at, reinterpret_cast<const void*>(host.gpr[rsp]), sizeof at);
  const auto found = std::ranges::find_if(
      store_->blocks, [&](const TranslatedBlock* b) { return b->code <= at && at < b->end; });
  if (found == store_->blocks.end()) return false;
  const TranslatedBlock& t = **found;
  unsigned i = 0;
  while (i + 1 < t.count && t.code + t.steps[i + 1].host_offset <= at) ++i;
  // The guest's registers whose place is lent are in the Cpu already.
  for (unsigned r = 0; r < t.map.size(); ++r) {
    if (t.map[r] != no_reg) cpu_.state.regs[r] = host.gpr[t.map[r]];
  }
  if (in_string) {
    const StringRun& run = cpu_.translation_.string;
    const u64 bytes = host.gpr[rdi] - run.host_to;
    cpu_.state.regs[rdi] = run.rdi + bytes;
    cpu_.state.regs[rcx] = run.rcx - (bytes >> *in_string);
    if (run.moves) cpu_.state.regs[rsi] = run.rsi + bytes;
  }
  const u8 live = std::exchange(cpu_.translation_.vectors_live, 0);
  if ((live & vector_level::vectors) != 0)
    store_->signal_frame.read(host.vectors, cpu_.state.vector, cpu_.state.x87.mxcsr);
  if ((live & vector_level::x87) != 0) SignalFrame::read_x87(host.vectors, cpu_.state.x87);
  for (unsigned last = i; last-- > 0;) {
    const StepSite& s = t.steps[last];
    if (!sets_x87_pointers(s.insn)) continue;
    cpu_.state.x87.fop = static_cast<u16>(s.insn.imm);
    cpu_.state.x87.fip = s.ip;
    break;
  }
  cpu_.insn_start_ = t.steps[i].ip;
  s32 budget = 0;
  const u64 frame_at = host.gpr[rsp] + (in_string ? sizeof at : 0); // behind the return address
  std::memcpy(&budget, reinterpret_cast<const void*>(frame_at + frame::budget.disp), sizeof budget);
  cpu_.instructions += static_cast<u64>(s64{entry_budget_} - budget - t.count + i);
  return true;
}

} // namespace ring3::x86::jit
