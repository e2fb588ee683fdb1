// SPDX-License-Identifier: Apache-2.0
#include "vmm/process_stats.h"

#include "kvm/vcpu_record.h"
#include "vmm/cli.h"
#include "x86/jit/statistics.h"

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <fcntl.h>
#include <functional>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

namespace ring3::vmm {
namespace {

// A child that does something, and then waits until the test is over.
class Child {
 public:
  explicit Child(const std::function<void()>& f) {
    int ready[2];
    EXPECT_EQ(::pipe2(ready, O_CLOEXEC), 0);
    pid_ = ::fork();
    if (pid_ == 0) {
      ::prctl(PR_SET_PDEATHSIG, SIGKILL);
      f();
      static_cast<void>(!::write(ready[1], "x", 1));
      for (;;) ::pause();
    }
    ::close(ready[1]);
    char c = 0;
    EXPECT_EQ(::read(ready[0], &c, 1), 1);
    ::close(ready[0]);
  }
  ~Child() {
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;
  pid_t pid() const { return pid_; }
  std::string number() const { return std::to_string(pid_); }

 private:
  pid_t pid_ = -1;
};

// They stay for as long as the process does.
void make_vcpus(u32 count) {
  for (u32 i = 0; i < count; ++i) {
    auto* const r = std::make_unique<kvm::VcpuRecord>(1, i).release();
    r->instructions().set(100 + i);
    x86::jit::Statistics& t = x86::jit::Statistics::in(r->executor(x86::jit::Statistics::layout()));
    t.translations.add(7);
  }
}

void expect_error(pid_t pid, const char* message) {
  const auto found = process_stats(pid);
  ASSERT_FALSE(found) << message;
  EXPECT_NE(found.error().message.find(message), std::string::npos) << found.error().message;
  EXPECT_FALSE(found.error().fix.empty());
}

bool has(const AllProcessStats& all, pid_t pid) {
  return std::ranges::find(all.processes, pid, &ProcessStats::pid) != all.processes.end();
}

// What a command line prints on standard output, and its exit code.
std::pair<int, std::string> output_of(std::vector<std::string> arguments) {
  testing::internal::CaptureStdout();
  const int code = cli_main(arguments);
  return {code, testing::internal::GetCapturedStdout()};
}

TEST(ProcessStats, ReadsAnotherProcess) {
  const Child child([] { make_vcpus(3); });
  const auto found = process_stats(child.pid());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->pid, child.pid());
  EXPECT_EQ(found->command, "test-vmm");
  ASSERT_EQ(found->seen.vcpus.size(), 3u);
  EXPECT_EQ(found->seen.vcpus[2].record->instructions.value(), 102u);
  const auto all = all_process_stats();
  EXPECT_TRUE(has(all, child.pid()));
  EXPECT_TRUE(std::ranges::is_sorted(all.processes, {}, &ProcessStats::pid));
}

TEST(ProcessStats, ThousandVcpus) {
  const Child child([] { make_vcpus(1000); });
  const auto found = process_stats(child.pid());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->seen.vcpus.size(), 1000u);
}

TEST(ProcessStats, CommandLine) {
  const Child one([] { make_vcpus(1); }), two([] { make_vcpus(2); });
  auto [code, text] = output_of({"stat", one.number()});
  EXPECT_EQ(code, 0);
  EXPECT_TRUE(text.starts_with(one.number() + " test-vmm: 1 vCPU\n  VM 1, vCPU 0: 100 instructions")) << text;
  EXPECT_NE(text.find("    7 blocks translated"), std::string::npos) << text;

  std::tie(code, text) = output_of({"stat", "--json", two.number(), one.number()});
  EXPECT_EQ(code, 0);
  auto list = nlohmann::json::parse(text);
  ASSERT_EQ(list.size(), 2u);
  EXPECT_EQ(list[0]["pid"], two.pid()) << "in the order of the command line";
  EXPECT_EQ(list[0]["vcpus"][1]["id"], 1);
  EXPECT_EQ(list[0]["vcpus"][1]["instructions"], 101);
  EXPECT_EQ(list[1]["vcpus"][0]["translator"]["translations"], 7);
  EXPECT_EQ(list[1]["vcpus_not_shown"], 0);

  std::tie(code, text) = output_of({"stat", "--json"});
  EXPECT_EQ(code, 0);
  EXPECT_GE(nlohmann::json::parse(text).size(), 2u);

  // What can be shown is, and the rest is said.
  std::tie(code, text) = output_of({"stat", "--json", "2147483647", one.number()});
  EXPECT_EQ(code, 1);
  EXPECT_EQ(nlohmann::json::parse(text).size(), 1u);
}

TEST(ProcessStats, BadUsage) {
  for (const char* pid : {"0", "-1", "abc", "12x", "", "99999999999", "1.5"})
    EXPECT_EQ(output_of({"stat", pid}).first, 2) << pid;
  EXPECT_EQ(output_of({"stat", "--unheard-of"}).first, 2);
  EXPECT_EQ(output_of({"stat", "--", "true"}).first, 2);
  EXPECT_EQ(output_of({"stat", "--help"}).first, 0);
}

TEST(ProcessStats, ProcessesThatHaveNone) {
  expect_error(2147483647, "there is no process");
  const Child plain([] {});
  expect_error(plain.pid(), "no vCPU");
  EXPECT_EQ(output_of({"stat", plain.number()}).first, 1);
}

TEST(ProcessStats, InheritedDescriptorIsTheParents) {
  const kvm::VcpuRecord ours(1, 0);
  ASSERT_TRUE(ours.shared());
  const Child child([] {});
  expect_error(child.pid(), "no vCPU");
  EXPECT_TRUE(process_stats(::getpid()));
}

TEST(ProcessStats, ClosedDescriptorIsSaid) {
  const Child child([] {
    make_vcpus(1);
    for (int fd = 3; fd < 256; ++fd) {
      char link[64] = {};
      const auto path = "/proc/self/fd/" + std::to_string(fd);
      if (::readlink(path.c_str(), link, sizeof link - 1) > 0 &&
          std::string_view(link).starts_with("/memfd:ring3-stats"))
        ::close(fd);
    }
  });
  expect_error(child.pid(), "has closed");
}

// A file of that name may be anybody's.
TEST(ProcessStats, FileOfThatNameThatIsNone) {
  const Child child([] {
    const int fd = ::memfd_create("ring3-stats", 0);
    static_cast<void>(!::write(fd, "something else", 14));
  });
  expect_error(child.pid(), "not one of ring3's");
  const auto all = all_process_stats();
  EXPECT_TRUE(std::ranges::any_of(all.unreadable, [&](const Error& e) {
    return e.message.find("process " + child.number()) != std::string::npos;
  }));
  EXPECT_FALSE(has(all, child.pid()));
}

TEST(ProcessStats, FileOfThatNameBesidesTheRealOne) {
  const Child child([] {
    for (int i = 0; i < 3; ++i) ::memfd_create("ring3-stats", 0); // being made for ever
    const int bad = ::memfd_create("ring3-stats", 0);
    static_cast<void>(!::write(bad, "x", 1));
    make_vcpus(1);
  });
  const auto found = process_stats(child.pid());
  ASSERT_TRUE(found) << found.error().message;
  EXPECT_EQ(found->seen.vcpus.size(), 1u);
  const auto all = all_process_stats();
  EXPECT_TRUE(has(all, child.pid()));
}

// Its user is another one, and we are not root.
TEST(ProcessStats, ForbiddenIsSaid) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, who can become somebody else";
  const Child child([] { make_vcpus(1); });
  const pid_t judge = ::fork();
  if (judge == 0) {
    constexpr uid_t nobody = 65534;
    if (::setgid(nobody) != 0 || ::setuid(nobody) != 0) ::_exit(2);
    const auto found = process_stats(child.pid());
    const bool said = !found && found.error().message.find("not yours") != std::string::npos;
    ::_exit(said && !has(all_process_stats(), child.pid()) ? 0 : 1);
  }
  int status = -1;
  ASSERT_EQ(::waitpid(judge, &status, 0), judge);
  EXPECT_EQ(status, 0);
}

} // namespace
} // namespace ring3::vmm
