// SPDX-License-Identifier: Apache-2.0
// Programs of random x87, MMX, SSE and general instructions, with faults and state saved and loaded between
// them: the translator leaves the same state and memory as the interpreter.
#include "x86/jit/jit.h"

#include "../no_platform.h"
#include "x86/cpu/cpuid_model.h"
#include "x86/interp/bind.h"

#include <algorithm>
#include <csetjmp>
#include <csignal>
#include <cstring>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace ring3::x86::jit {
namespace {

constexpr u64 ram_size = 0x100000;
constexpr u32 page_table = 0x4000, idt = 0x5000, gdt = 0x6000, handlers = 0x7000, code = 0x8000,
              stack_page = 0x1e000, stack = 0x1f000;
// Three pages that instructions use, of which the last one comes and goes.
constexpr u32 data = 0x20000, data_size = 0x3000, comes_and_goes = data + 0x2000;
constexpr u32 control_words = 0x24000, image = 0x25000, mxcsr = 0x26000;
constexpr u64 high = u64{254} << 39; // all of memory once more
constexpr unsigned rounds = 40;      // enough for code to be translated

class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 next() {
    u64 z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  u64 below(u64 n) { return next() % n; }

 private:
  u64 state_;
};

class Bytes {
 public:
  Bytes& put(std::initializer_list<unsigned> list) {
    for (const unsigned b : list) all.push_back(static_cast<u8>(b));
    return *this;
  }
  Bytes& word(u32 v) {
    for (unsigned i = 0; i < 4; ++i) all.push_back(static_cast<u8>(v >> 8 * i));
    return *this;
  }
  std::vector<u8> all;
};

class Program {
 public:
  explicit Program(u64 seed) : random_(seed) {
    const auto model = select_cpu_model("max");
    cpuid_.set(cpuid_entries(*model, 0, 1));
    append(Bytes().put({0x48, 0x0f, 0xae, 0x04, 0x25}).word(image).all); // fxsave64 [image]
    const auto loop = static_cast<u32>(bytes.size());
    const u64 count = 4 + random_.below(70);
    while (starts_.size() < count) instruction();
    append({0x49, 0xff, 0xcf}); // dec r15
    const auto back = static_cast<u32>(loop - (bytes.size() + 6));
    append(Bytes().put({0x0f, 0x85}).word(back).all); // jnz loop
    append({0xf4});
  }

  std::vector<u8> bytes;
  u64 random() { return random_.next(); }
  std::string text() const {
    std::string s;
    for (std::size_t i = 0; i < bytes.size(); ++i) {
      if (std::ranges::find(starts_, i) != starts_.end()) s += '\n';
      s += fmt::format("{:02x} ", bytes[i]);
    }
    return s;
  }

 private:
  void append(const std::vector<u8>& more) {
    starts_.push_back(bytes.size());
    bytes.insert(bytes.end(), more.begin(), more.end());
  }

  // If it is an instruction, and leaves alone what the program needs.
  bool add(const std::vector<u8>& one) {
    std::vector<u8> padded = one;
    padded.resize(one.size() + 16, 0xf4);
    Decoded d;
    Insn insn;
    bool ends = false;
    if (decode(padded.data(), padded.size(), 64, d) != DecodeStatus::ok || d.length != one.size())
      return false;
    bind(d, cpuid_, insn, ends);
    if (insn.handler == handle_ud || ends) return false;
    // An XMM operand in memory has to be aligned.
    if (d.op == Op::vector && d.memory_bits == 128 && d.opcode != 0x10 && d.opcode != 0x11) return false;
    for (unsigned i = 0; i < d.operands; ++i) {
      const Operand& o = d.operand[i];
      if (o.kind != Operand::Kind::gpr || !o.written) continue;
      const unsigned r = o.reg >> 3;
      if (r == rbx || r == rsi || r == rsp || r == 15) return false;
    }
    append(one);
    return true;
  }

  // Prefixes, the opcode, and a memory operand with the given digit.
  std::vector<u8> with_memory(std::initializer_list<unsigned> opcode, unsigned digit) {
    Bytes b;
    const auto at = static_cast<u32>(random_.below(data_size - 128));
    switch (random_.below(8)) {
    case 0: return b.put({0x64}).put(opcode).put({digit << 3 | 4, 0x25}).word(at).all; // fs:[at]
    case 1: return b.put(opcode).put({digit << 3 | 0x84, 0x33}).word(at).all;          // [rbx+rsi+at]
    case 2: return b.put(opcode).put({digit << 3 | 4, 0x25}).word(data + at).all;      // [data+at]
    case 3: return b.put(opcode).put({digit << 3 | 5}).word(data + at - code).all;     // near RIP
    case 4: return b.put({0x64}).put(opcode).put({digit << 3 | 0x86}).word(at).all;    // fs:[rsi+at]
    default: return b.put(opcode).put({digit << 3 | 0x83}).word(at).all;               // [rbx+at]
    }
  }

  void instruction() {
    const auto r = [&](u64 n) { return static_cast<unsigned>(random_.below(n)); };
    switch (r(24)) {
    case 0:
    case 1:
    case 2:
    case 3:
    case 4:
    case 5: add(Bytes().put({0xd8 + r(8), 0xc0 + r(64)}).all); break;
    case 6:
    case 7:
    case 8:
    case 9:
    case 10: {
      const unsigned opcode = 0xd8 + r(8);
      const unsigned digit = r(8);
      const bool environment = digit == 4 && (opcode == 0xd9 || opcode == 0xdd);
      const bool control = digit == 5 && opcode == 0xd9;
      if (control || (environment && r(8) != 0)) break;
      add(with_memory({opcode}, digit));
      break;
    }
    case 11: {
      const u32 word = control_words + 2 * (r(8) == 0 ? 8 + r(8) : r(8));
      add(Bytes().put({0xd9, 0x2c, 0x25}).word(word).all);
      break;
    }
    case 12: add({0x9b}); break;
    case 13: add({0xdf, 0xe0}); break;
    case 14:
    case 15:
    case 16: { // MMX, and what is between it and SSE
      const unsigned opcode = r(6) == 0 ? 0x2a + r(4) : r(4) == 0 ? 0x6e + r(18) : 0x60 + r(0xa0);
      if ((opcode >= 0x80 && opcode < 0xc0) || opcode == 0xc7) break; // RDRAND is one
      if (opcode == 0x77) {
        add({0x0f, 0x77});
      } else if (r(2) == 0) {
        Bytes b;
        if (r(6) == 0) b.put({0xf2 + r(2)});
        b.put({0x0f, opcode, 0xc0 + r(64)});
        if (opcode == 0x70 || opcode == 0xc4 || opcode == 0xc5) b.put({r(256)});
        if (opcode >= 0x71 && opcode <= 0x73) b.put({r(80)});
        add(b.all);
      } else if (opcode != 0x70 && opcode != 0xc4) {
        add(with_memory({0x0f, opcode}, r(8)));
      }
      break;
    }
    case 17: add(Bytes().put({0x0f, 0x58, 0xc0 + r(64)}).all); break;          // addps
    case 18: add(with_memory({0x0f, r(2) == 0 ? 0x10U : 0x11U}, r(8))); break; // movups
    case 19:
      switch (r(8)) {
      case 0: add({0x39, 0xd0}); break;                                // cmp eax, edx
      case 1: add(Bytes().put({0x0f, 0x90 + r(16), 0xc2}).all); break; // setcc dl
      case 2: add({0x11, 0xd0}); break;                                // adc eax, edx
      case 3: add({0x4d, 0x01, 0xd1}); break;                          // add r9, r10
      case 4: add({0x50}); break;                                      // push rax
      case 5: add(with_memory({0x48, 0x03}, 0)); break;
      case 6: add(with_memory({0x48, 0x89}, 2)); break;
      default: add({0x4d, 0x11, 0xda}); break; // adc r10, r11
      }
      break;
    case 20: { // fxsave, fxsave64, fxrstor, fxrstor64
      Bytes b;
      if (r(2) == 0) b.put({0x48});
      add(b.put({0x0f, 0xae, r(2) << 3 | 4, 0x25}).word(image).all);
      break;
    }
    case 21:
      append(Bytes().put({0x48, 0xc7, 0x04, 0x25}).word(page_table + 8 * (comes_and_goes >> 12)).word(0).all);
      append(Bytes().put({0x0f, 0x01, 0x3c, 0x25}).word(comes_and_goes).all); // invlpg
      append({0x0f, 0x01, 0x7b, 0x00});
      append(Bytes().put({0x0f, 0x01, 0xbb}).word(comes_and_goes - data).all);
      break;
    case 22:
      if (r(4) != 0) break;
      append({0x0f, 0x20, 0xc0}); // mov rax, cr0
      append({0x83, 0xc8, 0x08}); // or eax, 8: TS
      append({0x0f, 0x22, 0xc0});
      break;
    default: add({0x48, 0xff, 0xc2}); break; // inc rdx
    }
  }

  Random random_;
  CpuidTable cpuid_;
  std::vector<std::size_t> starts_;
};

enum class Engine { interpreter, translator, both };

struct Result {
  CpuExit exit{};
  CpuState state;
  std::vector<u8> ram;
  u64 translations = 0;
  u64 compared = 0;
};

class Guest {
 public:
  Guest()
      : ram_(static_cast<u8*>(
            ::mmap(nullptr, ram_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0))) {}
  ~Guest() { ::munmap(ram_, ram_size); }
  Guest(const Guest&) = delete;
  Guest& operator=(const Guest&) = delete;

  u8* ram() { return ram_; }
  void load(const std::vector<u8>& program, Random& random) {
    fill(random);
    put(code, program);
  }

  Result run(const Program& p, u64 seed, Engine engine) {
    Random random(seed);
    load(p.bytes, random);
    kvm::MemorySlots slots;
    kvm_userspace_memory_region region{};
    region.memory_size = ram_size;
    region.userspace_addr = reinterpret_cast<u64>(ram_);
    EXPECT_EQ(slots.set(region), 0);
    kvm::CodeWatch watch;
    test::NoPlatform platform;
    std::atomic<u32> exit_word{0};
    Cpu cpu(slots, watch, platform, exit_word);
    const auto model = select_cpu_model("max");
    cpu.cpuid.set(cpuid_entries(*model, 0, 1));
    const Jit* jit = nullptr;
    if (engine != Engine::interpreter) {
      auto made = std::make_unique<Jit>(cpu, engine == Engine::both);
      jit = made.get();
      cpu.set_executor(std::move(made));
    }
    prepare(cpu, random);
    Result r;
    r.exit = cpu.run();
    if (jit != nullptr) {
      r.translations = jit->statistics().translations.value();
      r.compared = jit->statistics().compared.value();
    }
    r.state = cpu.state;
    // Flags that nobody reads any more may be old ones in what a fault has pushed.
    std::memset(ram_ + stack_page, 0, page_size);
    r.ram.assign(ram_, ram_ + ram_size);
    cpu.set_executor(nullptr);
    return r;
  }

  static void prepare(Cpu& cpu, Random& random) {
    CpuState& s = cpu.state;
    s.cr0 = cr0::pe | cr0::et | cr0::ne | cr0::mp | cr0::pg;
    s.cr4 = cr4::pae | cr4::osfxsr | cr4::osxmmexcpt;
    s.efer = efer::lme | efer::lma;
    s.cr3 = 0x1000;
    s.gdtr = TableRegister{gdt, 0x1f};
    s.idtr = TableRegister{idt, 0x1ff};
    for (const Seg which : {Seg::cs, Seg::ss, Seg::ds, Seg::es, Seg::fs, Seg::gs}) {
      Segment& x = s.segment(which);
      x = Segment{};
      x.selector = which == Seg::cs ? 0x18 : 0x10;
      x.type = which == Seg::cs ? 0xb : 3;
      x.s = x.present = x.g = true;
      x.l = which == Seg::cs;
      x.db = which != Seg::cs;
      x.limit = 0xffffffff;
    }
    const u64 where = random.below(2) * high;
    s.segment(Seg::fs).base = data + where;
    for (u64& g : s.regs) g = random.next();
    s.regs[reg_zero] = 0;
    s.regs[rbx] = data + where;
    s.regs[rsi] = random.below(128);
    s.regs[rsp] = stack;
    s.regs[15] = rounds;
    s.regs[reg_rip] = code + where;
    s.x87 = X87State{};
    s.set_rflags(random.next() & rflags::arithmetic);
    cpu.mmu.reload_slots();
    cpu.mode_changed();
    cpu.poll_at = ~u64{0};
  }

 private:
  void put64(u64 at, u64 value) { store_raw<u64>(ram_ + at, value); }
  void put(u64 at, const std::vector<u8>& bytes) { std::memcpy(ram_ + at, bytes.data(), bytes.size()); }

  void fill(Random& random) {
    std::memset(ram_, 0, ram_size);
    put64(0x1000, 0x2000 | 7);
    put64(0x1000 + 8 * 254, 0x2000 | 7);
    put64(0x2000, 0x3000 | 7);
    put64(0x3000, page_table | 7);
    for (u64 page = 0; page < ram_size >> 12; ++page) put64(page_table + 8 * page, page << 12 | 0x67);
    put64(gdt + 0x10, 0x00cf93000000ffff);
    put64(gdt + 0x18, 0x00af9b000000ffff);
    for (u64 vector = 0; vector < 32; ++vector) {
      const u64 at = handlers + 32 * vector;
      put64(idt + 16 * vector, (at & 0xffff) | 0x18 << 16 | u64{0x8e00} << 32);
      if (vector == 7) {
        put(at, {0x0f, 0x06, 0x48, 0xcf}); // clts; iretq
      } else if (vector == 14) {
        put(at, Bytes()
                    .put({0x48, 0xc7, 0x04, 0x25})
                    .word(page_table + 8 * (comes_and_goes >> 12))
                    .word(comes_and_goes | 0x67)
                    .put({0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf})
                    .all);
      } else if (vector == 16 || vector == 19) {
        put(at, Bytes().put({0xdb, 0xe3, 0x0f, 0xae, 0x14, 0x25}).word(mxcsr).put({0x48, 0xcf}).all);
      } else {
        put(at, {0xf4}); // not to be seen
      }
    }
    for (u64 at = data; at < data + data_size; at += 8) {
      const u64 v = random.next();
      const double number = static_cast<double>(static_cast<s64>(v)) / 4096;
      put64(at, v % 3 == 0 ? v : v % 3 == 1 ? v >> 40 : std::bit_cast<u64>(number));
    }
    for (unsigned i = 0; i < 16; ++i) {
      const u64 v = random.next();
      const u64 masks = i < 8 ? 0x3f : v >> 16 & 0x3f;
      store_raw<u16>(ram_ + control_words + 2 * i, static_cast<u16>((v & 0xffc0) | masks));
    }
    store_raw<u32>(ram_ + mxcsr, 0x1f80);
  }

  u8* const ram_;
};

std::string difference(const Result& a, const Result& b) {
  if (a.exit != b.exit)
    return fmt::format("exit {} and {}", static_cast<int>(a.exit), static_cast<int>(b.exit));
  if (std::memcmp(&a.state.x87, &b.state.x87, sizeof a.state.x87) != 0) return "x87 state";
  if (std::memcmp(&a.state.vector, &b.state.vector, sizeof a.state.vector) != 0) return "vector registers";
  for (unsigned r = 0; r <= reg_rip; ++r) {
    if (a.state.regs[r] != b.state.regs[r]) return fmt::format("register {}", r);
  }
  // At a fault those that nobody would have read may be old ones.
  if (a.state.regs[15] == 0 && a.state.rflags() != b.state.rflags()) return "flags";
  for (u64 i = 0; i < ram_size; ++i) {
    if (a.ram[i] != b.ram[i]) return fmt::format("memory at {:#x}", i);
  }
  return {};
}

TEST(TranslatedX87, DoesWhatTheInterpreterDoes) {
  constexpr u64 programs = 400;
  Guest guest;
  u64 halted = 0;
  u64 translations = 0;
  u64 compared = 0;
  for (u64 seed = 0; seed < programs; ++seed) {
    const Program p(seed);
    const Result expected = guest.run(p, seed, Engine::interpreter);
    halted += expected.exit == CpuExit::halt && expected.state.regs[15] == 0;
    for (const Engine engine : {Engine::translator, Engine::both}) {
      const Result r = guest.run(p, seed, engine);
      translations += r.translations;
      compared += r.compared;
      const std::string what = difference(expected, r);
      ASSERT_EQ(what, "") << "program " << seed << (engine == Engine::both ? " in lockstep" : "") << p.text();
    }
  }
  EXPECT_GT(halted, programs * 9 / 10) << "most programs run to their end";
  EXPECT_GT(translations, programs * 4);
  EXPECT_GT(compared, programs * rounds * 4);
}

// --- memory that is gone while translated code uses it ---

class TakesMemoryAway : public test::NoPlatform {
 public:
  explicit TakesMemoryAway(void* page) : page_(page) {}
  void poll() override {
    if (++polls_ == 2) ::mprotect(page_, page_size, PROT_NONE);
  }

 private:
  void* const page_;
  unsigned polls_ = 0;
};

Executor* interrupted = nullptr;
bool recovered = false;
sigjmp_buf way_out;

void on_lost_memory(int, siginfo_t*, void* context) {
  const auto& m = static_cast<const ucontext_t*>(context)->uc_mcontext;
  constexpr int order[] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                           REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
  HostRegisters host{};
  for (unsigned r = 0; r < 16; ++r) host.gpr[r] = static_cast<u64>(m.gregs[order[r]]);
  host.rip = static_cast<u64>(m.gregs[REG_RIP]);
  host.vectors = m.fpregs;
  recovered = interrupted->recover(host);
  siglongjmp(way_out, 1);
}

TEST(TranslatedX87, StateOutOfASignal) {
  Guest guest;
  Random random(1);
  guest.load({0xd9, 0xe8,       // fld1
              0xdc, 0x03,       // fadd qword [rbx]
              0xd9, 0xeb,       // fldpi
              0x0f, 0x58, 0xc1, // addps xmm0, xmm1
              0xdd, 0x1e,       // fstp qword [rsi], to memory that will be gone
              0xdd, 0xd8,       // fstp st(0)
              0x49, 0xff, 0xcf, // dec r15
              0x75, 0xee, 0xf4},
             random);
  constexpr u64 lost = 0x30000;
  store_raw<double>(guest.ram() + data, 2.5);
  kvm::MemorySlots slots;
  kvm_userspace_memory_region region{};
  region.memory_size = ram_size;
  region.userspace_addr = reinterpret_cast<u64>(guest.ram());
  ASSERT_EQ(slots.set(region), 0);
  kvm::CodeWatch watch;
  TakesMemoryAway platform(guest.ram() + lost);
  std::atomic<u32> exit_word{0};
  Cpu cpu(slots, watch, platform, exit_word);
  const auto model = select_cpu_model("max");
  cpu.cpuid.set(cpuid_entries(*model, 0, 1));
  cpu.set_executor(std::make_unique<Jit>(cpu));
  Guest::prepare(cpu, random);
  CpuState& s = cpu.state;
  cpu.poll_at = 1000;
  s.regs[rbx] = data;
  s.regs[rsi] = lost;
  s.regs[15] = 10'000'000;
  s.regs[reg_rip] = code;
  s.vector = {};

  interrupted = cpu.executor();
  struct sigaction action {};
  struct sigaction before {};
  action.sa_sigaction = on_lost_memory;
  action.sa_flags = SA_SIGINFO;
  ASSERT_EQ(::sigaction(SIGSEGV, &action, &before), 0);
  if (sigsetjmp(way_out, 1) == 0) {
    cpu.run();
    ADD_FAILURE() << "it was to be taken out";
  }
  ::sigaction(SIGSEGV, &before, nullptr);
  ::mprotect(guest.ram() + lost, page_size, PROT_READ | PROT_WRITE);
  EXPECT_TRUE(recovered);
  const X87State& x = s.x87;
  EXPECT_EQ(x.fip, code + 4) << "FLDPI";
  EXPECT_EQ(x.fop, 0x1eb);
  EXPECT_EQ(x.fdp, data) << "the operand of FADD";
  EXPECT_EQ(x.fcw, 0x37f);
  EXPECT_EQ(x.fsw >> 11 & 7, 6);
  EXPECT_EQ(x.ftw, 0xc0);
  long double top = 0;
  std::memcpy(&top, x.st[1], 10);
  EXPECT_EQ(top, 3.5L);

  // And on from there.
  s.regs[reg_rip] = code + 9;
  s.regs[15] = 1;
  EXPECT_EQ(cpu.run(), CpuExit::halt);
  EXPECT_EQ(load_raw<double>(guest.ram() + lost), 3.14159265358979323846);
  EXPECT_EQ(x.ftw, 0);
  cpu.set_executor(nullptr);
}

} // namespace
} // namespace ring3::x86::jit
