// SPDX-License-Identifier: Apache-2.0
// One x86 processor: its state, its memory accesses, its faults, and what instructions need of the world
// around it. Everything here runs on the vCPU's own thread.
#pragma once

#include "base/address.h"
#include "kvm/clock.h"
#include "kvm/code_watch.h"
#include "kvm/memory_slots.h"
#include "x86/cpu/cpuid.h"
#include "x86/cpu/exceptions.h"
#include "x86/cpu/executor.h"
#include "x86/cpu/guest_debug.h"
#include "x86/cpu/state.h"
#include "x86/cpu/translation_context.h"
#include "x86/decode/insn.h"
#include "x86/mmu/guest_access.h"
#include "x86/mmu/mmu.h"

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <span>

namespace ring3::x86 {

class BlockCache;
class DecodeMemo;
class StoreLog;
namespace jit {
class Jit;
class Lockstep;
} // namespace jit
struct VmSettings; // api/vm_settings.h: plain data, which everybody may read

// What a CPU reaches outside itself, within the hypervisor: interrupt controllers and the clock. Whatever is
// not claimed here goes to user space as an exit.
class Platform {
 public:
  virtual ~Platform() = default;
  // False: not ours. Sizes 1, 2 or 4.
  virtual bool port_read(u16 port, u8 size, u32& value) = 0;
  virtual bool port_write(u16 port, u8 size, u32 value) = 0;
  virtual bool mmio_read(GuestPhys a, std::span<std::byte> data) = 0;
  virtual bool mmio_write(GuestPhys a, std::span<const std::byte> data) = 0;
  // True if something in the hypervisor answers at this physical page, above any memory slot.
  virtual bool claims_page(GuestPhys page) const = 0;
  // The Clock's TSC, before the guest's own offset.
  virtual u64 tsc() const = 0;
  // It is the host's, as RDTSC reads it. Does not change while a CPU runs.
  virtual bool tsc_is_host() const { return false; }
  // CR8; 0 without a local APIC.
  virtual u8 cr8() const = 0;
  virtual void set_cr8(u8 value) = 0;
  // IA32_APIC_BASE, x2APIC MSRs and IA32_TSC_DEADLINE; false: #GP.
  virtual bool read_apic_msr(u32 index, u64& value) = 0;
  virtual bool write_apic_msr(u32 index, u64 value, bool host) = 0;
  // The guest's TSC moved: deadlines must be computed again.
  virtual void tsc_changed() = 0;
  virtual u64 tsc_khz() const = 0;
  // The TSC offset with which the counter shows `value` now, as a VMM wants it.
  virtual u64 tsc_offset_for(u64 value) = 0;
  // A CPU has executed PAUSE or MWAIT many times: it may be spinning, and should let others run.
  virtual void pause() = 0;
  // KVM's paravirtual MSRs: may this guest use one; false: #GP.
  virtual bool has_pv_msr(u32 index) const = 0;
  virtual bool read_pv_msr(u32 index, u64& value) = 0;
  virtual bool write_pv_msr(u32 index, u64 value) = 0;
  // VMCALL or VMMCALL from ring 0: KVM's hypercalls (Documentation/virt/kvm/x86/hypercalls.rst), with
  // arguments of 64 or of 32 bits. Nothing: user space has the answer.
  virtual std::optional<s64> hypercall(u64 number, const std::array<u64, 4>& arguments, bool long_mode) = 0;
  // An instruction is about to touch this page of the VMM's, which may not be in memory. A token, if the
  // guest shall have a #PF with it in CR2 instead, and has been told that this one means "not yet".
  virtual std::optional<u32> put_off_access(GuestPhys page, const std::byte* host) = 0;
  virtual const VmSettings& settings() const = 0;
  // Called every few thousand instructions: run timers that are due.
  virtual void poll() = 0;
  // This CPU found a page of code: other CPUs must not store to it unseen any more.
  virtual void code_page_found() = 0;
};

// Why the executor came back.
enum class CpuExit : u8 {
  request,        // the exit word is not 0
  halt,           // HLT or MWAIT; state.activity says so
  io,             // port access for user space, in Cpu::external
  mmio,           // likewise, memory
  hypercall,      // likewise, for an answer; the arguments are in the registers
  memory_fault,   // likewise, to make the private page at Cpu::lost_page reachable; the instruction repeats
  msr,            // likewise, an MSR that the guest may not or cannot reach
  lower_tpr,      // CR8 became lower, and the local APIC is in user space
  debug,          // the debugger's; Cpu::debug_stop says why
  shutdown,       // triple fault
  internal_error, // Cpu::internal_error says what
};

// An access that user space has to perform, and the answers it has given so far to the instruction under way.
// The instruction is executed again from its start once the answer is there; accesses it has already made are
// replayed, so nothing is done twice and no handler knows the difference.
struct ExternalAccess {
  enum class Kind : u8 {
    memory,
    port,
    hypercall, // no access: a question, whose answer is `data`
    msr,
  };
  Kind kind = Kind::memory;
  bool write = false;
  bool string = false; // of INS or OUTS
  u8 size = 0;         // of memory and ports
  u32 count = 1;       // INS: how many elements may come in one answer
  u64 address = 0;     // port, guest-physical address or MSR
  u64 data = 0;
  u32 reason = 0;       // MSRs: KVM_MSR_EXIT_REASON_*
  bool refused = false; // MSRs, in the answer: #GP

  bool same_as(const ExternalAccess& other) const {
    return kind == other.kind && write == other.write && size == other.size && address == other.address;
  }
};

// Elements that user space has delivered for a repeated INS and that are not in memory yet.
struct StringInput {
  static constexpr u32 capacity = 1024; // bytes, as KVM reads ahead
  u16 port = 0;
  u8 size = 0;
  u32 count = 0, next = 0;
  std::array<std::byte, capacity> data;

  u32 left() const { return count - next; }
};

class Cpu {
 public:
  Cpu(const kvm::MemorySlots& slots, kvm::CodeWatch& code_watch, Platform& platform,
      std::atomic<u32>& exit_word);
  ~Cpu();
  Cpu(const Cpu&) = delete;
  Cpu& operator=(const Cpu&) = delete;

  CpuState state;
  Mmu mmu;
  CpuidTable cpuid;
  Platform& platform;
  std::atomic<u32>& exit_word; // polled between blocks; any non-zero value ends run()

  // Power-up (false) or INIT (true) values (SDM vol. 3, table 9-1).
  void reset(bool init);

  // Executes until something ends it.
  CpuExit run() { return executor_ ? executor_->run() : interpret(); }
  // Null, which is what there is at first: the interpreter.
  void set_executor(std::unique_ptr<Executor> executor) { executor_ = std::move(executor); }
  Executor* executor() { return executor_.get(); }
  const Executor* executor() const { return executor_.get(); }

  // Delivers an external interrupt, NMI or re-injected event now. False: it ended in a triple fault or needs
  // user space.
  bool deliver_interrupt(u8 vector) { return deliver_event(EventType::external, vector, std::nullopt); }
  bool deliver_nmi();
  bool deliver_event(EventType type, u8 vector, std::optional<u32> error);
  // Delivers a fault, turning contributory pairs into #DF (SDM vol. 3, table 6-5). False: shutdown or exit.
  bool deliver_fault(const Fault& fault);

  bool can_take_interrupt() const {
    return (state.system_flags & rflags::if_) != 0 && !state.sti_shadow && !state.mov_ss_shadow;
  }
  bool can_take_nmi() const { return !state.nmi_blocked && !state.mov_ss_shadow && !state.sti_shadow; }
  // A debug trap that MOV SS holds back belongs to the interrupted program: it goes first.
  bool can_take_smi() const { return !state.in_smm && pending_db_ == 0; }
  // Something waits for can_take_interrupt(): come back with CpuExit::request when it may be true.
  bool window_wanted = false;
  static constexpr u32 exit_window = 1;         // the exit-word bit that is set then
  static constexpr u32 exit_left_smm = 1u << 3; // likewise, after RSM: an SMI or INIT may have waited for it

  // --- results of an instruction that did not complete ---
  bool fault_pending = false;
  Fault fault;
  bool exit_pending = false;
  CpuExit exit = CpuExit::request;
  const char* internal_error = nullptr;

  Step raise(Vector v, u32 error_code = 0) {
    record_fault(Fault{.vector = v, .error_code = error_code});
    return Step::abort;
  }
  Step ud() { return raise(Vector::ud); }
  Step gp(u32 error_code = 0) { return raise(Vector::gp, error_code); }
  void record_fault(const Fault& f) {
    fault = f;
    fault_pending = true;
  }
  void request_exit(CpuExit why) {
    exit = why;
    exit_pending = true;
  }

  // --- accesses that leave the process of execution ---
  GuestPhys lost_page; // of CpuExit::memory_fault
  ExternalAccess external;
  // Answers the access in `external` (for reads, with data) so that the instruction can be executed again.
  void complete_external(u64 data, bool refused = false);
  // The same for one of several elements, `external.count` of them one after another.
  void complete_external(std::span<const std::byte> elements);
  // Executes the rest of the instruction that was answered, and nothing more. False: it is not over, see
  // `exit`.
  bool finish_instruction();
  // One port access; false: abort. `most`: how many elements of a string user space may deliver at once.
  bool port_read(u16 port, u8 size, u32& value, bool string = false, u32 most = 1);
  bool port_write(u16 port, u8 size, u32 value, bool string = false);
  // A hypercall for user space; false: abort.
  bool ask_user_space(u64& answer);
  // What user space has answered when this instruction asked for an MSR; nothing: it has not asked.
  std::optional<ExternalAccess> msr_answer(u32 index, bool write);
  void ask_for_msr(u32 index, bool write, u64 data, u32 reason);

  // --- registers by Insn's byte offsets ---
  template <class T> T reg(u8 offset) const {
    return load_raw<T>(reinterpret_cast<const u8*>(state.regs) + offset);
  }
  // 32-bit writes clear the upper half, 8- and 16-bit ones keep the rest.
  template <class T> void set_reg(u8 offset, T v) {
    u8* p = reinterpret_cast<u8*>(state.regs) + offset;
    if constexpr (sizeof(T) == 4) {
      store_raw<u64>(p, static_cast<u32>(v));
    } else {
      store_raw<T>(p, v);
    }
  }

  // --- memory ---
  u64 effective_address(const Insn& in) const {
    const u64 a = state.regs[in.base] + (state.regs[in.index] << in.scale) + static_cast<u64>(s64{in.disp});
    return a & address_mask(in.addrsize);
  }
  static u64 address_mask(u8 addrsize) {
    return addrsize == 8 ? ~u64{0} : addrsize == 4 ? 0xffffffff : 0xffff;
  }

  // Segment-relative to linear, with the checks of SDM vol. 3, 5.3 and 5.4; false: #GP or #SS recorded.
  bool linear(Seg s, u64 offset, u64 size, bool write, GuestVirt& out) {
    if (code64_) {
      out = GuestVirt{offset + segment_base_[static_cast<unsigned>(s)]};
      return true; // a non-canonical address never hits the TLB; the slow path faults
    }
    const SegmentCheck& c = segment_check_[static_cast<unsigned>(s)];
    if (offset < c.low || offset + size - 1 > c.high || !(write ? c.write : c.read)) {
      return segment_fault(s);
    }
    out = GuestVirt{(offset + segment_base_[static_cast<unsigned>(s)]) & linear_mask_};
    return true;
  }

  template <class T> bool load(GuestVirt a, T& out, Seg s = Seg::ds) {
    const TlbEntry& e = tlb_->at(a.value);
    if (e.read_tag == a.page().value && a.page_offset() <= page_size - sizeof(T)) [[likely]] {
      out = guest_load<T>(reinterpret_cast<const std::byte*>(a.value + e.addend));
      return true;
    }
    return load_slow(a, &out, sizeof(T), s, false);
  }
  template <class T> bool store(GuestVirt a, T v, Seg s = Seg::ds) {
    const TlbEntry& e = tlb_->at(a.value);
    if (e.write_tag == a.page().value && a.page_offset() <= page_size - sizeof(T)) [[likely]] {
      guest_store<T>(reinterpret_cast<std::byte*>(a.value + e.addend), v);
      return true;
    }
    return store_slow(a, &v, sizeof(T), s, false);
  }
  template <class T> bool read(Seg s, u64 offset, T& out) {
    GuestVirt a;
    return linear(s, offset, sizeof(T), false, a) && load<T>(a, out, s);
  }
  template <class T> bool write(Seg s, u64 offset, T v) {
    GuestVirt a;
    return linear(s, offset, sizeof(T), true, a) && store<T>(a, v, s);
  }
  template <class T> bool read_operand(const Insn& in, T& out) {
    return read<T>(static_cast<Seg>(in.seg), effective_address(in), out);
  }
  template <class T> bool write_operand(const Insn& in, T v) {
    return write<T>(static_cast<Seg>(in.seg), effective_address(in), v);
  }
  // Any size up to 4096, with the same checks; a store either happens wholly or faults before any byte is
  // written.
  bool read_bytes(Seg s, u64 offset, void* out, u64 size);
  bool write_bytes(Seg s, u64 offset, const void* in, u64 size);
  // A store of this ring's to a linear address that no segment register leads to: the bytes of an
  // instruction.
  bool write_linear(GuestVirt a, const void* in, u64 size) { return store_slow(a, in, size, Seg::cs, false); }
  // Would a store of this size fault or leave for user space? Checks without storing; sets A and D bits.
  bool probe_write(Seg s, u64 offset, u64 size);
  // Host pointer for a read-modify-write of [a, a + size) when that is plain memory in one page. Null: either
  // a fault is pending, or the access must be a load and a store (MMIO, page split). Call update_done() after
  // the store.
  std::byte* host_for_update(GuestVirt a, u64 size, Seg s) {
    const TlbEntry& e = tlb_->at(a.value);
    if (e.write_tag == a.page().value && a.page_offset() + size <= page_size) [[likely]] {
      return reinterpret_cast<std::byte*>(a.value + e.addend);
    }
    return host_for_update_slow(a, size, s);
  }
  // Host pointer for a load of [a, a + size) if the TLB allows it at once and it stays in one page, else
  // null.
  const std::byte* host_for_read(GuestVirt a, u64 size) const {
    const TlbEntry& e = tlb_->at(a.value);
    if (e.read_tag != a.page().value || a.page_offset() + size > page_size) return nullptr;
    return reinterpret_cast<const std::byte*>(a.value + e.addend);
  }
  void update_done() {
    if (code_update_size_ != 0) [[unlikely]]
      finish_code_update();
  }
  // The segment check of linear() without a fault: false when it would raise one.
  bool probe_fast(Seg s, u64 offset, u64 size, bool write, GuestVirt& out) const {
    const auto i = static_cast<unsigned>(s);
    out = GuestVirt{offset + segment_base_[i]};
    if (code64_) return true;
    const SegmentCheck& c = segment_check_[i];
    out.value &= linear_mask_;
    return offset >= c.low && offset + size - 1 <= c.high && (write ? c.write : c.read);
  }
  // Host pointer for the rest of the page if the TLB allows the access at once, else null.
  std::byte* fast_host(GuestVirt a, bool write) const {
    const TlbEntry& e = tlb_->at(a.value);
    if ((write ? e.write_tag : e.read_tag) != a.page().value) return nullptr;
    return reinterpret_cast<std::byte*>(a.value + e.addend);
  }
  bool replaying() const { return replay_count_ > 0 || string_input_.left() != 0; }
  // One CPU of the process at a time; see SplitLock. Releasing what is not held does nothing.
  void take_split_lock();
  void release_split_lock();
  // Whatever was under way was left in the middle, by a jump out of it: an instruction is as if it had not
  // begun.
  void abandon_in_the_middle(bool instruction);
  void forget_replay() {
    replay_count_ = replay_next_ = 0;
    string_input_.count = string_input_.next = 0;
  }
  // A string instruction finished an iteration: what it did outside is not replayed any more.
  void element_done() { replay_count_ = replay_next_ = 0; }
  // How many iterations user space's answer is good for.
  u32 answered_elements() const { return std::max<u32>(string_input_.left(), 1); }

  // Descriptor tables, TSS, and other accesses that the processor makes as supervisor whatever the CPL.
  template <class T> bool load_system(GuestVirt a, T& out) {
    return load_slow(a, &out, sizeof(T), Seg::tr, true);
  }
  template <class T> bool store_system(GuestVirt a, T v) {
    return store_slow(a, &v, sizeof(T), Seg::tr, true);
  }
  // A stack store by the ring in state.cpl, which need not be the one the fast path is set up for.
  template <class T> bool store_as_ring(GuestVirt a, T v) {
    const TlbEntry& e = mmu.table(tlb_mode(false)).at(a.value);
    if (e.write_tag == a.page().value && a.page_offset() <= page_size - sizeof(T) && !watchpoints_)
        [[likely]] {
      guest_store<T>(reinterpret_cast<std::byte*>(a.value + e.addend), v);
      return true;
    }
    return store_slow(a, &v, sizeof(T), Seg::ss, false);
  }
  bool probe_system_write(GuestVirt a, u64 size);

  // --- stack ---
  u64 stack_mask() const { return stack_mask_; }
  u64 sp() const { return state.regs[rsp] & stack_mask_; }
  void set_sp(u64 v) {
    state.regs[rsp] =
        stack_mask_ == 0xffff ? (state.regs[rsp] & ~u64{0xffff}) | (v & 0xffff) : v & stack_mask_;
  }
  template <class T> bool push(T v) {
    const u64 at = (sp() - sizeof(T)) & stack_mask_;
    if (!write<T>(Seg::ss, at, v)) return false;
    set_sp(at);
    return true;
  }
  template <class T> bool pop(T& v) {
    if (!read<T>(Seg::ss, sp(), v)) return false;
    set_sp(sp() + sizeof(T));
    return true;
  }

  // --- modes ---
  // Recomputes everything derived from CS, SS, CR0, CR4, EFER, RFLAGS and CPL. Call after changing any of
  // them.
  void mode_changed();
  // Only AC, TF, RF or CPL-independent flag bits changed, or CPL and flags between rings of 64-bit code, in
  // which nothing else comes from CS and SS.
  void flags_changed();
  void load_segment_cache(Seg s); // after changing state.seg[s]
  bool canonical(u64 a) const {
    const unsigned bits = (state.cr4 & cr4::la57) != 0 ? 57 : 48;
    return sign_extend(a, bits) == a;
  }
  // For bases that may be loaded before CR4.LA57 is set: canonical for the widest mode that CPUID offers.
  bool canonical_base(u64 a) const { return sign_extend(a, cpuid.has(feature::la57) ? 57 : 48) == a; }
  bool code64() const { return code64_; }
  unsigned code_bits() const { return code_bits_; } // 16, 32 or 64
  u64 ip_mask() const { return ip_mask_; }

  // Jumps within CS: checks the limit or canonicality; #GP(0) recorded and false if it fails.
  bool jump_near(u64 target, u8 opsize);

  // RDTSC value.
  u64 guest_tsc() const { return platform.tsc() + state.tsc_offset; }

  // Ends the block and, when somebody waits for an interrupt window, the run.
  Step events_may_have_changed() {
    if (window_wanted) exit_word.fetch_or(exit_window, std::memory_order_relaxed);
    return Step::jump;
  }

  // --- code ---
  BlockCache& blocks() { return *blocks_; }
  DecodeMemo& decode_memo() { return *decode_memo_; }
  // What bytes mean has changed, or where they are: nothing that was made of them is used again.
  void forget_code();
  // Instructions of [host, host + size), which is memory at `a`, are about to be kept: from now on stores to
  // them are noticed.
  void watch_code(kvm::CodePage& page, GuestPhys a, const std::byte* host, u64 size);
  // Bytes at CS:rip for the decoder: one page's worth; false: fault recorded.
  bool fetch_page(GuestVirt a, Translation& t, Backing& b);
  // Decoded blocks compare themselves with memory before they run again, since the VMM may have written
  // there. Done on every KVM_RUN, on interrupts, and by CPUID, SERIALIZE and WBINVD; stores by vCPUs need
  // none of it (kvm/code_watch).
  void synchronize_code() {
    if (!memory_is_private) ++code_epoch;
  }
  bool memory_is_private = false; // kvm::VmApi::keep_memory_private()
  u64 code_epoch = 1;

  u64 instructions = 0;
  u64 poll_interval = 4096; // instructions
  // A repeated string instruction looks at events after this many elements, so that an interrupt is not kept
  // waiting.
  static constexpr u64 string_batch = 16384;
  u64 poll_at = 0;
  // A debug trap to be taken before the next instruction.
  void set_debug_trap(u64 bits) {
    pending_db_ |= bits;
    careful_ = true;
  }
  u64& pending_db() { return pending_db_; }
  // Single-step, breakpoints, RF or a shadow: blocks of one instruction with checks around each.
  bool careful() const { return careful_; }
  void update_careful();
  void debug_registers_changed();
  // Call debug_registers_changed() after a change.
  GuestDebug debugger;
  DebugStop debug_stop;
  // The breakpoints that count now: the debugger's, or the guest's own.
  u64 active_dr7() const { return debugger.hardware_breakpoints ? debugger.dr7 : state.dr7; }
  u64 active_dr(unsigned i) const { return debugger.hardware_breakpoints ? debugger.db[i] : state.dr[i]; }
  // RIP is where the debugger shall find the CPU.
  void stop_for_debugger(Vector v, u64 dr6_bits) {
    debug_stop = {v, v == Vector::db ? dr6_bits | dr6::fixed1 : 0};
    request_exit(CpuExit::debug);
  }
  bool rf_kept = false; // the instruction set RF itself
  // A fault that comes now belongs to where RIP already points (the new task of a task switch).
  void commit_rip() { rip_committed_ = true; }
  // The instruction transferred control through the IDT: no single-step trap after it.
  void suppress_trap() { trap_suppressed_ = true; }

  // PAUSE and MWAIT: from time to time the platform hears of them.
  void note_pause() {
    if (--pauses_left_ > 0) return;
    pauses_left_ = pauses_noted;
    platform.pause();
  }
  static constexpr s32 pauses_noted = 64;

  // Handlers of several families share these.
  Step privileged_only() { return state.cpl == 0 ? Step::next : gp(); }

 private:
  friend class BlockCache;
  friend class jit::Jit;
  friend class jit::Lockstep;
  struct SegmentCheck {
    u64 low = 0, high = 0; // allowed offsets, inclusive; low > high: none
    bool read = false, write = false;
  };

  bool segment_fault(Seg s);
  bool load_slow(GuestVirt a, void* out, u64 size, Seg s, bool system);
  bool store_slow(GuestVirt a, const void* in, u64 size, Seg s, bool system);
  // Translates for one access within a page; fills the TLB. False: fault recorded.
  bool translate(GuestVirt a, Access access, bool system, Seg s, Translation& t, Backing& b);
  bool lose_page(GuestPhys page);
  bool put_off(GuestPhys page, const Backing& b, bool system);
  bool access_checks(GuestVirt a, u64 size, Seg s, bool system);
  bool external_read(GuestPhys a, std::byte* out, u64 size);
  bool external_write(GuestPhys a, const std::byte* in, u64 size);
  bool replayed(const ExternalAccess& want, u64& data);
  bool replay_or_exit(ExternalAccess want, u64& data);
  void note_watchpoint(GuestVirt a, u64 size, bool write);
  bool read_piece(const Translation& t, const Backing& b, std::byte* out, u64 size);
  bool write_piece(const Translation& t, const Backing& b, const std::byte* in, u64 size);
  std::byte* host_for_update_slow(GuestVirt a, u64 size, Seg s);
  void finish_code_update();
  bool settle_abort();
  bool take_fault(const Fault& f);
  bool step_carefully();
  CpuExit interpret();
  // One block, or one instruction where care is needed. False: run() must return `exit`.
  bool interpret_block();
  void poll();
  void code_written(GuestPhys a, u64 size);
  TlbMode tlb_mode(bool system) const;
  GuestVirt next_page(GuestVirt a, bool system) const;

  TlbTable* tlb_ = nullptr;         // what the fast paths probe
  TlbTable* code_tlb_ = nullptr;    // the tables of the current mode, watchpoints or not
  std::unique_ptr<TlbTable> never_; // always misses: alignment checks or data breakpoints are on
  bool code64_ = false;
  bool careful_ = false;
  bool alignment_checks_ = false;
  bool watchpoints_ = false;
  bool breakpoints_ = false;
  unsigned code_bits_ = 16;
  u64 ip_mask_ = 0xffff;
  u64 stack_mask_ = 0xffff;
  u64 linear_mask_ = 0xffffffff;
  u64 segment_base_[seg_count] = {};
  SegmentCheck segment_check_[seg_count];
  bool trap_suppressed_ = false;
  bool delivering_ = false; // an event: what it touches is not an instruction's
  bool rip_committed_ = false;
  u64 insn_start_ = 0; // RIP of the instruction under way
  bool holds_split_lock_ = false;
  u64 pending_db_ = 0;
  GuestPhys code_update_at_;
  u64 code_update_size_ = 0;

  static constexpr unsigned max_replay = 64;
  std::array<ExternalAccess, max_replay> replay_;
  unsigned replay_count_ = 0; // answered
  unsigned replay_next_ = 0;  // next to be consumed by this attempt
  StringInput string_input_;

  s32 pauses_left_ = pauses_noted;
  jit::Context translation_;
  StoreLog* store_log_ = nullptr; // null: stores are for good
  std::unique_ptr<DecodeMemo> decode_memo_;
  std::unique_ptr<BlockCache> blocks_;
  std::unique_ptr<Executor> executor_;
};

} // namespace ring3::x86
