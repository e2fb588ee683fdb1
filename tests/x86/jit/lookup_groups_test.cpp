// SPDX-License-Identifier: Apache-2.0
// Which accesses share a lookup.
#include "x86/jit/lookup_groups.h"

#include "x86/jit/layout.h"

#include <gtest/gtest.h>
#include <vector>

namespace ring3::x86::jit {
namespace {

// A block of instructions by their bytes, and what the emitter would say of each.
class Groups {
 public:
  void add(std::vector<u8> bytes, GroupCandidate c, bool ends = false) {
    Source s;
    bytes.resize(16);
    EXPECT_EQ(decode(bytes.data(), bytes.size(), 64, s.decoded), DecodeStatus::ok);
    s.insn = Insn{};
    s.insn.len = s.decoded.length;
    s.copied = true;
    s.ends = ends;
    source_.push_back(s);
    candidates_.push_back(c);
  }
  // The last one is to be.
  void alone() { source_.back().alone = true; }
  const std::vector<LookupGroup>& plan() {
    unsigned count = 0;
    const RegisterPlan registers = plan_registers(source_, count);
    EXPECT_EQ(count, source_.size());
    out_.resize(source_.size());
    plan_lookups(source_, candidates_, registers, out_);
    return out_;
  }

 private:
  std::vector<Source> source_;
  std::vector<GroupCandidate> candidates_;
  std::vector<LookupGroup> out_;
};

GroupCandidate access(HostReg base, s32 disp, u8 size, bool write) {
  return {.access = SimpleAccess{HostMem::at(base, disp), size, write}};
}
constexpr GroupCandidate neutral{.access = std::nullopt, .neutral = true};

TEST(LookupGroups, PushesAreOneStore) {
  Groups g;
  g.add({0x55}, access(guest_rsp, -8, 8, true));       // push rbp
  g.add({0x53}, access(guest_rsp, -8, 8, true));       // push rbx
  g.add({0x41, 0x54}, access(guest_rsp, -8, 8, true)); // push r12
  const auto& p = g.plan();
  EXPECT_EQ(p[0].last, 2);
  EXPECT_EQ(p[0].run.lo, -24);
  EXPECT_EQ(p[0].run.span, 24);
  EXPECT_TRUE(p[0].run.write);
  EXPECT_TRUE(p[1].member && p[2].member);
}

TEST(LookupGroups, FieldsOfAStructure) {
  Groups g;
  g.add({0x48, 0x8b, 0x47, 0x08}, access(rdi, 8, 8, false)); // mov rax, [rdi+8]
  g.add({0x48, 0x01, 0xc8}, neutral);                        // add rax, rcx
  g.add({0x48, 0x89, 0x47, 0x20}, access(rdi, 32, 8, true)); // mov [rdi+32], rax
  const auto& p = g.plan();
  EXPECT_EQ(p[0].last, 2);
  EXPECT_EQ(p[0].run.lo, 8);
  EXPECT_EQ(p[0].run.span, 32);
  EXPECT_TRUE(p[0].run.write);
  EXPECT_FALSE(p[1].member);
  EXPECT_TRUE(p[2].member);
}

TEST(LookupGroups, ANewBaseIsAnotherGroup) {
  Groups g;
  g.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));       // mov rax, [rdi]
  g.add({0x48, 0x8b, 0x7f, 0x08}, access(rdi, 8, 8, false)); // mov rdi, [rdi+8], which still shares it
  g.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));       // mov rax, [rdi]: of the new one
  const auto& p = g.plan();
  EXPECT_EQ(p[0].last, 1);
  EXPECT_TRUE(p[1].member);
  EXPECT_FALSE(p[2].member);
}

TEST(LookupGroups, FarApartOrInterruptedIsNone) {
  Groups far;
  far.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));
  far.add({0x48, 0x8b, 0x87, 0, 1, 0, 0}, access(rdi, 256, 8, false)); // mov rax, [rdi+256]
  EXPECT_EQ(far.plan()[0].last, 0);
  Groups interrupted;
  interrupted.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));
  interrupted.add({0x0f, 0xa2}, {}); // cpuid
  interrupted.add({0x48, 0x8b, 0x47, 0x08}, access(rdi, 8, 8, false));
  EXPECT_EQ(interrupted.plan()[0].last, 0);
}

TEST(LookupGroups, RunsShareOneLookup) {
  Groups g;
  g.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));       // mov rax, [rdi]
  g.add({0x48, 0x8b, 0x0e}, access(rsi, 0, 8, false));       // mov rcx, [rsi]
  g.add({0x48, 0x83, 0xc7, 0x10}, neutral);                  // add rdi, 16
  g.add({0x48, 0x89, 0x47, 0x40}, access(rdi, 64, 8, true)); // mov [rdi+64], rax
  g.add({0x48, 0x89, 0x47, 0x48}, access(rdi, 72, 8, true)); // mov [rdi+72], rax
  g.add({0x48, 0x8b, 0x4e, 0x08}, access(rsi, 8, 8, false)); // mov rcx, [rsi+8]
  const auto& p = g.plan();
  EXPECT_EQ(p[0].all.lo, 0);
  EXPECT_EQ(p[0].all.span, 96);
  EXPECT_TRUE(p[0].all.write);
  EXPECT_EQ(p[0].last, 0);
  EXPECT_EQ(p[0].run.span, 8);
  EXPECT_FALSE(p[0].run.write);
  EXPECT_EQ(p[3].slot, p[0].slot);
  EXPECT_EQ(p[3].all.span, 0);
  EXPECT_EQ(p[3].last, 4);
  EXPECT_EQ(p[3].run.lo, 64) << "from what the register is there";
  EXPECT_EQ(p[3].run.span, 16);
  EXPECT_TRUE(p[4].member);
  EXPECT_NE(p[1].slot, LookupGroup::none);
  EXPECT_NE(p[1].slot, p[0].slot);
  EXPECT_EQ(p[5].slot, p[1].slot);
}

TEST(LookupGroups, PushesOfTwoBytes) {
  constexpr GroupCandidate harmless{.access = std::nullopt, .harmless = true};
  Groups g;
  g.add({0x53}, access(guest_rsp, -8, 8, true));                  // push rbx
  g.add({0x66, 0x50}, harmless);                                  // push ax
  g.add({0x48, 0x89, 0x04, 0x24}, access(guest_rsp, 0, 8, true)); // mov [rsp], rax
  g.add({0x66, 0x58}, harmless);                                  // pop ax
  g.add({0x5b}, access(guest_rsp, 0, 8, false));                  // pop rbx
  EXPECT_EQ(g.plan()[0].all.lo, -10);
  EXPECT_EQ(g.plan()[0].all.span, 10);
  EXPECT_EQ(g.plan()[4].run.lo, 0);
}

TEST(LookupGroups, WhoIsToBeAloneIsNoneOfARun) {
  Groups g;
  g.add({0x55}, access(guest_rsp, -8, 8, true)); // push rbp
  g.add({0x53}, access(guest_rsp, -8, 8, true)); // push rbx
  g.alone();
  g.add({0x41, 0x54}, access(guest_rsp, -8, 8, true)); // push r12
  g.add({0x41, 0x55}, access(guest_rsp, -8, 8, true)); // push r13
  const auto& p = g.plan();
  EXPECT_EQ(p[0].all.span, 32);
  for (const unsigned i : {0, 1}) {
    EXPECT_EQ(p[i].last, i);
    EXPECT_EQ(p[i].run.span, 8);
  }
  EXPECT_EQ(p[2].last, 3);
  EXPECT_TRUE(p[3].member);
}

TEST(LookupGroups, OnlyWhatIsHarmlessComesBetweenRuns) {
  for (const bool is : {false, true}) {
    Groups g;
    g.add({0x48, 0x8b, 0x07}, access(rdi, 0, 8, false));
    g.add({0x0f, 0x01, 0xcb}, {.access = std::nullopt, .harmless = is}); // stac, which is not
    g.add({0x48, 0x8b, 0x47, 0x08}, access(rdi, 8, 8, false));
    EXPECT_EQ(g.plan()[0].slot != LookupGroup::none, is);
  }
}

TEST(LookupGroups, TheIndexCountsToo) {
  const auto indexed = [](HostReg index, u8 scale = 0) {
    GroupCandidate c = access(rdi, 0, 4, false);
    c.access->address.index = index;
    c.access->address.scale = scale;
    return c;
  };
  Groups same;
  same.add({0x8b, 0x04, 0x0f}, indexed(rcx)); // mov eax, [rdi+rcx]
  same.add({0x8b, 0x1c, 0x0f}, indexed(rcx)); // mov ebx, [rdi+rcx]
  EXPECT_TRUE(same.plan()[1].member);
  Groups moved;
  moved.add({0x8b, 0x04, 0x8f}, indexed(rcx, 2)); // mov eax, [rdi+rcx*4]
  moved.add({0x48, 0xff, 0xc1}, neutral);         // inc rcx
  moved.add({0x48, 0x8d, 0x7f, 0x10}, neutral);   // lea rdi, [rdi+16]
  moved.add({0x8b, 0x1c, 0x8f}, indexed(rcx, 2)); // mov ebx, [rdi+rcx*4]
  EXPECT_EQ(moved.plan()[0].run.span, 4 + 16 + 4);
  Groups changed;
  changed.add({0x8b, 0x04, 0x0f}, indexed(rcx));
  changed.add({0xff, 0xc1}, neutral); // inc ecx, which may begin at 0 again
  changed.add({0x8b, 0x1c, 0x0f}, indexed(rcx));
  EXPECT_FALSE(changed.plan()[2].member);
  Groups loaded;
  loaded.add({0x8b, 0x04, 0x0f}, indexed(rcx));
  loaded.add({0x48, 0x8d, 0x3c, 0x0f}, neutral); // lea rdi, [rdi+rcx]
  loaded.add({0x8b, 0x1c, 0x0f}, indexed(rcx));
  EXPECT_FALSE(loaded.plan()[2].member);
  Groups other;
  other.add({0x8b, 0x04, 0x0f}, indexed(rcx));
  other.add({0x8b, 0x1c, 0x17}, indexed(rdx));
  EXPECT_EQ(other.plan()[0].run.span, 0);
}

TEST(LookupGroups, TheStackPointerIsFollowed) {
  Groups g;
  g.add({0x53}, access(guest_rsp, -8, 8, true));                  // push rbx
  g.add({0x48, 0x83, 0xec, 0x10}, neutral);                       // sub rsp, 16
  g.add({0x48, 0x89, 0x04, 0x24}, access(guest_rsp, 0, 8, true)); // mov [rsp], rax
  g.add({0x48, 0x83, 0xc4, 0x10}, neutral);                       // add rsp, 16
  g.add({0x5b}, access(guest_rsp, 0, 8, false));                  // pop rbx
  g.add({0xc3}, access(guest_rsp, 0, 8, false), true);            // ret
  const auto& p = g.plan();
  EXPECT_EQ(p[0].last, 5);
  EXPECT_EQ(p[0].run.lo, -24);
  EXPECT_EQ(p[0].run.span, 32);
}

} // namespace
} // namespace ring3::x86::jit
