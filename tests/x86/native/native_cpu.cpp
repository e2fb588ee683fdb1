// SPDX-License-Identifier: Apache-2.0
#include "native_cpu.h"

#include "base/bits.h"
#include "x86/interp/host_code.h"

#include <atomic>
#include <cpuid.h>
#include <cstddef>
#include <sys/mman.h>
#include <ucontext.h>

namespace ring3::x86::native {

namespace {

constexpr u64 area_size = 4096;

// At arena::control.
struct Control {
  u64 gpr[16];
  u64 flags;
  u64 out_gpr[16];
  u64 out_flags;
  u64 target;
  u32 far_offset; // m16:32 for 32-bit code
  u16 far_selector;
  u16 pad;
  u32 marker; // where the instruction went: 1 on, 2 forward, 3 backward
  u32 mxcsr;
  u64 host_rsp;
  alignas(64) u8 in_area[area_size];
  alignas(64) u8 out_area[area_size];
};

Control& control() { return *reinterpret_cast<Control*>(arena::control); }
constexpr u32 control_at(std::size_t offset) { return static_cast<u32>(arena::control + offset); }

NativeCpu* active = nullptr; // while the processor executes foreign code
struct sigaction old_fpe;

class Assembler {
 public:
  explicit Assembler(u64 at) : at_(at) {}
  u64 here() const { return at_; }
  void bytes(std::initializer_list<unsigned> list) {
    for (const unsigned b : list) *reinterpret_cast<u8*>(at_++) = static_cast<u8>(b);
  }
  void word(u32 v) {
    store_raw<u32>(reinterpret_cast<u8*>(at_), v);
    at_ += 4;
  }
  // ModRM and SIB of an absolute address in 64-bit code.
  void absolute(unsigned reg, u32 address) {
    bytes({4 | reg << 3, 0x25});
    word(address);
  }
  void jump(u64 to) {
    bytes({0xe9});
    word(static_cast<u32>(to - (at_ + 4)));
  }

 private:
  u64 at_;
};

bool map_fixed(u64 at, u64 size, int protection) {
  void* p = mmap(reinterpret_cast<void*>(at), size, protection,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  return p == reinterpret_cast<void*>(at);
}

} // namespace

NativeCpu::NativeCpu() {
  constexpr int rw = PROT_READ | PROT_WRITE;
  static_assert(sizeof(Control) <= 4 * arena::page);
  if (!map_fixed(arena::control, 4 * arena::page, rw) ||
      !map_fixed(arena::stubs, arena::page, rw | PROT_EXEC) ||
      !map_fixed(arena::code, arena::page, rw | PROT_EXEC) ||
      !map_fixed(arena::data, arena::region_size, rw) || !map_fixed(arena::stack, arena::region_size, rw)) {
    unusable_ = "the arena's addresses are taken, or executable memory is not allowed";
    return;
  }
  u32 a, b, c, d;
  __cpuid(1, a, b, c, d);
  if ((c & (1U << 27)) == 0) {
    unusable_ = "no XSAVE here";
    return;
  }
  u32 lo, hi;
  asm volatile("xgetbv" : "=a"(lo), "=d"(hi) : "c"(0));
  mask_ = lo & 0xe7;
  if ((mask_ & 0xe0) != 0xe0) mask_ &= 7;
  const auto offset = [](u32 component) {
    u32 ra, rb, rc, rd;
    __cpuid_count(0xd, component, ra, rb, rc, rd);
    return rb;
  };
  ymm_offset_ = offset(2);
  k_offset_ = offset(5);
  zmm_high_offset_ = offset(6);
  zmm16_offset_ = offset(7);
  // Present in 64-bit code too, so that 32-bit code finds usable DS and ES.
  asm volatile("mov %0, %%ds; mov %0, %%es" : : "r"(u32{selector::data}));
  emit_stubs();

  // First ours, for generated code, and then this one in front of it.
  host::install_exception_handler();
  signal_stack_.resize(64 * 1024);
  stack_t alternate{};
  alternate.ss_sp = signal_stack_.data();
  alternate.ss_size = signal_stack_.size();
  sigaltstack(&alternate, nullptr);
  struct sigaction action {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  sigfillset(&action.sa_mask);
  for (const int n : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE}) {
    sigaction(n, &action, n == SIGFPE ? &old_fpe : nullptr);
  }
}

NativeCpu::~NativeCpu() {
  for (const int n : {SIGSEGV, SIGBUS, SIGILL, SIGTRAP}) signal(n, SIG_DFL);
  if (old_fpe.sa_sigaction != nullptr) sigaction(SIGFPE, &old_fpe, nullptr);
  munmap(reinterpret_cast<void*>(arena::control), 4 * arena::page);
  munmap(reinterpret_cast<void*>(arena::stubs), arena::page);
  munmap(reinterpret_cast<void*>(arena::code), arena::page);
  munmap(reinterpret_cast<void*>(arena::data), arena::region_size);
  munmap(reinterpret_cast<void*>(arena::stack), arena::region_size);
}

void NativeCpu::emit_stubs() {
  Assembler s(arena::stubs);
  const auto leave = [&] {
    s.bytes({0x68});
    s.word(0x202);
    s.bytes({0x9d});       // popfq: no AC, NT or DF for the compiler's code
    s.bytes({0xdb, 0xe3}); // fninit
    s.bytes({0x0f, 0xae});
    s.absolute(2, control_at(offsetof(Control, mxcsr)));
    if ((mask_ & 4) != 0) s.bytes({0xc5, 0xf8, 0x77}); // vzeroupper
    s.bytes({0x41, 0x5f, 0x41, 0x5e, 0x41, 0x5d, 0x41, 0x5c, 0x5d, 0x5b, 0xc3});
  };
  const auto enter = [&] {
    s.bytes({0x53, 0x55, 0x41, 0x54, 0x41, 0x55, 0x41, 0x56, 0x41, 0x57});
    s.bytes({0x48, 0x89});
    s.absolute(4, control_at(offsetof(Control, host_rsp)));
    s.bytes({0xb8});
    s.word(static_cast<u32>(mask_));
    s.bytes({0x31, 0xd2, 0x48, 0x0f, 0xae}); // xor edx, edx; xrstor64
    s.absolute(5, control_at(offsetof(Control, in_area)));
    s.bytes({0xff});
    s.absolute(6, control_at(offsetof(Control, flags)));
    s.bytes({0x9d});
    for (const unsigned r : {0U, 1U, 2U, 3U, 5U, 6U, 7U, 8U, 9U, 10U, 11U, 12U, 13U, 14U, 15U, 4U}) {
      s.bytes({r < 8 ? 0x48U : 0x4cU, 0x8b});
      s.absolute(r & 7, control_at(offsetof(Control, gpr) + 8 * r));
    }
    s.bytes({0xff});
  };
  enter64_ = s.here();
  enter();
  s.absolute(4, control_at(offsetof(Control, target)));
  enter32_ = s.here();
  enter();
  s.absolute(5, control_at(offsetof(Control, far_offset)));

  exit_stub_ = s.here();
  for (unsigned r = 0; r < 16; ++r) {
    s.bytes({r < 8 ? 0x48U : 0x4cU, 0x89});
    s.absolute(r & 7, control_at(offsetof(Control, out_gpr) + 8 * r));
  }
  s.bytes({0x48, 0x8b});
  s.absolute(4, control_at(offsetof(Control, host_rsp)));
  s.bytes({0x9c, 0x8f});
  s.absolute(0, control_at(offsetof(Control, out_flags)));
  s.bytes({0xb8});
  s.word(static_cast<u32>(mask_));
  s.bytes({0x31, 0xd2, 0x48, 0x0f, 0xae}); // xor edx, edx; xsave64
  s.absolute(4, control_at(offsetof(Control, out_area)));
  leave();

  fault_stub_ = s.here();
  s.bytes({0x48, 0x8b});
  s.absolute(4, control_at(offsetof(Control, host_rsp)));
  leave();

  u64* const stubs[] = {passed_, forward_, backward_};
  for (unsigned i = 0; i < 3; ++i) {
    stubs[i][0] = s.here();
    s.bytes({0xc7});
    s.absolute(0, control_at(offsetof(Control, marker)));
    s.word(i + 1);
    s.jump(exit_stub_);
    stubs[i][1] = s.here();
    s.bytes({0xc7, 0x05});
    s.word(control_at(offsetof(Control, marker)));
    s.word(i + 1);
    s.bytes({0xea}); // ljmp to 64-bit code
    s.word(static_cast<u32>(exit_stub_));
    s.bytes({selector::code64, 0});
  }
}

void NativeCpu::load_area(const MachineState& in) {
  u8* area = control().in_area;
  std::memcpy(area, &in.x87, 160);
  store_raw<u64>(area + 512, mask_);
  const auto& z = in.vector.zmm;
  for (unsigned i = 0; i < 16; ++i) {
    std::memcpy(area + 160 + 16 * i, z[i], 16);
    if ((mask_ & 4) != 0) std::memcpy(area + ymm_offset_ + 16 * i, z[i] + 16, 16);
    if ((mask_ & 0xe0) == 0) continue;
    std::memcpy(area + zmm_high_offset_ + 32 * i, z[i] + 32, 32);
    std::memcpy(area + zmm16_offset_ + 64 * i, z[16 + i], 64);
  }
  if ((mask_ & 0xe0) != 0) std::memcpy(area + k_offset_, in.vector.k, 64);
}

// Components that the area says are in their initial state need not be there.
void NativeCpu::read_area(const u8* area, MachineState& out) const {
  const u64 have = load_raw<u64>(area + 512);
  out.x87 = X87State{};
  out.vector = VectorState{};
  const u32 mxcsr = load_raw<u32>(area + 24);
  if ((have & 1) != 0) std::memcpy(&out.x87, area, 160);
  out.x87.mxcsr = mxcsr;
  auto& z = out.vector.zmm;
  for (unsigned i = 0; i < 16; ++i) {
    if ((have & 2) != 0) std::memcpy(z[i], area + 160 + 16 * i, 16);
    if ((have & mask_ & 4) != 0) std::memcpy(z[i] + 16, area + ymm_offset_ + 16 * i, 16);
    if ((have & mask_ & 0x40) != 0) std::memcpy(z[i] + 32, area + zmm_high_offset_ + 32 * i, 32);
    if ((have & mask_ & 0x80) != 0) std::memcpy(z[16 + i], area + zmm16_offset_ + 64 * i, 64);
  }
  if ((have & mask_ & 0x20) != 0) std::memcpy(out.vector.k, area + k_offset_, 64);
}

void NativeCpu::on_signal(int number, siginfo_t* info, void* context) {
  // The kernel leaves AC as the instruction had it, and compiled code is not made for that.
  asm volatile("pushfq; andl $~0x40000, (%%rsp); popfq" : : : "memory", "cc");
  auto* uc = static_cast<ucontext_t*>(context);
  greg_t* g = uc->uc_mcontext.gregs;
  NativeCpu* self = active;
  if (self == nullptr) {
    if (number == SIGFPE && (old_fpe.sa_flags & SA_SIGINFO) != 0) {
      old_fpe.sa_sigaction(number, info, context);
    } else {
      signal(number, SIG_DFL); // a crash of the test itself: let it repeat
    }
    return;
  }
  Outcome& o = *self->current_;
  constexpr int order[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                             REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  for (unsigned i = 0; i < 16; ++i) o.state.gpr[i] = static_cast<u64>(g[order[i]]);
  o.state.rip = static_cast<u64>(g[REG_RIP]);
  o.state.flags = static_cast<u64>(g[REG_EFL]);
  o.faulted = true;
  o.fault.vector = static_cast<Vector>(g[REG_TRAPNO]);
  o.fault.error_code = static_cast<u32>(g[REG_ERR]);
  o.fault.cr2 = o.fault.vector == Vector::pf ? static_cast<u64>(g[REG_CR2]) : 0;
  self->read_area(reinterpret_cast<const u8*>(uc->uc_mcontext.fpregs), o.state);
  g[REG_RIP] = static_cast<greg_t>(self->fault_stub_);
  g[REG_EFL] &= ~0x100LL; // TF
  g[REG_CSGSFS] = (g[REG_CSGSFS] & ~0xffffLL) | selector::code64;
}

void NativeCpu::execute(std::span<const u8> instruction, unsigned code_bits, const MachineState& in,
                        Outcome& out) {
  Control& c = control();
  load_area(in);
  std::memcpy(c.gpr, in.gpr, sizeof c.gpr);
  c.flags = in.flags;
  c.target = arena::instruction;
  c.far_offset = static_cast<u32>(arena::instruction);
  c.far_selector = selector::code32;
  c.marker = 0;
  c.mxcsr = 0x1f80;
  const unsigned mode = code_bits == 64 ? 0 : 1;
  std::memset(reinterpret_cast<void*>(arena::instruction), 0xcc, 32);
  std::memcpy(reinterpret_cast<void*>(arena::instruction), instruction.data(), instruction.size());
  Assembler(arena::instruction + instruction.size()).jump(passed_[mode]);
  Assembler(arena::forward_target).jump(forward_[mode]);
  Assembler(arena::backward_target).jump(backward_[mode]);

  out.faulted = out.stopped = false;
  out.fault = Fault{};
  current_ = &out;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  active = this;
  std::atomic_signal_fence(std::memory_order_seq_cst);
  reinterpret_cast<void (*)()>(mode == 0 ? enter64_ : enter32_)();
  std::atomic_signal_fence(std::memory_order_seq_cst);
  active = nullptr;
  if (out.faulted) {
    // A jump to nowhere has been done; what faults is the fetch that follows.
    if (out.fault.vector == Vector::pf && out.fault.cr2 == out.state.rip &&
        out.state.rip != arena::instruction) {
      out.faulted = false;
      out.fault = Fault{};
    }
    return;
  }
  std::memcpy(out.state.gpr, c.out_gpr, sizeof c.out_gpr);
  out.state.flags = c.out_flags;
  read_area(c.out_area, out.state);
  switch (c.marker) {
  case 1: out.state.rip = arena::instruction + instruction.size(); break;
  case 2: out.state.rip = arena::forward_target; break;
  default: out.state.rip = arena::backward_target; break;
  }
}

} // namespace ring3::x86::native
