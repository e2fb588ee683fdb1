// SPDX-License-Identifier: Apache-2.0
// The program of the jobs of bench/engine: runs other programs on the files of engine_inputs.cpp and prints
// "NAME SECONDS RESULT" for each job: seconds by CLOCK_MONOTONIC from before fork() until it has been waited
// for, and a hash of what it has written; and "end" when all are done.
//
// The environment's NAMES=NAME,NAME chooses some. As /init it finds the files in /jobs.
#include "engine_jobs.h"
#include "engine_base.h"
#include "engine_cpus.h"
#include <cstring>
#include <fcntl.h>
#include <string>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

namespace {

using namespace bench;

constexpr const char* path = "/usr/bin:/bin"; // bench/engine looks for the programs there too

struct Job {
  std::string_view name;
  unsigned cpus; // and processes
  const char* what;
  std::vector<const char*> command;
  const char* input = "/dev/null";
  const char* result = nullptr; // the file that it writes; null: standard output
};

// Summed often enough to last a while.
const std::vector<const char*> sum = {"sha256sum", "text", "text", "text", "text", "text",
                                      "text",      "text", "text", "text", "text", "text",
                                      "text",      "text", "text", "text", "text"};

const std::vector<Job> jobs = {
    {"gzip", 1, "of 8 MiB of text", {"gzip", "-n", "-c", "text"}},
    {"xz", 1, "-0 of 8 MiB of text", {"xz", "-0", "-T1", "-c", "text"}},
    {"awk",
     1,
     "counts the words of 24 MiB of text",
     {"awk",
      "{ for (i = 1; i <= NF; ++i) ++n[$i] } END { for (w in n) { s += n[w] * length(w); ++d } print d, s }",
      "text", "text", "text"}},
    {"sqlite3",
     1,
     "120000 rows in memory: insert, index, query, update, delete",
     {"sqlite3", "-batch", "-init", "/dev/null", ":memory:"},
     "rows.sql"},
    {"gcc",
     1,
     "-O2 -c of a C file of 20 functions",
     {"gcc", "-O2", "-nostdinc", "-c", "-o", "unit.o", "unit.c"},
     "/dev/null",
     "unit.o"},
    {"sha256sum", 1, "of 128 MiB", sum},
    {"sha256sum-2", 2, "2 processes on 2 CPUs; the figure is half the seconds, those for one", sum},
    {"sha256sum-4", 4, "4 processes on 4 CPUs; the figure is a quarter of the seconds", sum},
};

void redirect(const char* file, int flags, int to) {
  const int fd = open(file, flags, 0644);
  if (fd < 0) fail(file);
  dup2(fd, to);
  close(fd);
}

pid_t start(const Job& job, const std::string& output) {
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child != 0) return child;
  redirect(job.input, O_RDONLY, STDIN_FILENO);
  redirect(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
  std::vector<char*> arguments;
  for (const char* argument : job.command) arguments.push_back(const_cast<char*>(argument));
  arguments.push_back(nullptr);
  execvp(arguments[0], arguments.data());
  std::perror(arguments[0]);
  _exit(127);
}

// FNV-1a
std::uint64_t hash_of(const std::string& file) {
  std::uint64_t hash = 0xcbf29ce484222325;
  std::FILE* const f = std::fopen(file.c_str(), "r");
  if (f == nullptr) fail(file.c_str());
  static unsigned char buffer[65536];
  for (std::size_t n = 0; (n = std::fread(buffer, 1, sizeof buffer, f)) != 0;) {
    for (std::size_t i = 0; i < n; ++i) hash = (hash ^ buffer[i]) * 0x100000001b3;
  }
  std::fclose(f);
  return hash;
}

void run(const Job& job) {
  const Cpus here(job.cpus);
  std::vector<std::string> outputs;
  for (unsigned i = 0; i < job.cpus; ++i) outputs.push_back("output-" + std::to_string(i));
  const std::uint64_t before = now_ns();
  for (const std::string& output : outputs) start(job, output);
  bool good = true;
  for (unsigned i = 0; i < job.cpus; ++i) {
    int status = 0;
    if (wait(&status) < 0) fail("wait");
    good = good && status == 0;
  }
  const double seconds = static_cast<double>(now_ns() - before) / 1e9 / job.cpus;
  if (!good) {
    std::printf("%.*s failed\n", static_cast<int>(job.name.size()), job.name.data());
    std::exit(3);
  }
  const std::uint64_t result = hash_of(job.result != nullptr ? job.result : outputs[0]);
  for (std::size_t i = 1; i < outputs.size(); ++i) {
    if (hash_of(outputs[i]) != result) std::printf("the processes' results differ\n");
  }
  std::printf("%.*s %.4f %016llx\n", static_cast<int>(job.name.size()), job.name.data(), seconds,
              static_cast<unsigned long long>(result));
  std::fflush(stdout);
}

// Runs a program and writes its wall time in seconds and the peak size of what it had in memory, in KiB, to
// `file`: of the largest of it and its descendants.
int measure_usage(const char* file, char** command) {
  const std::uint64_t before = now_ns();
  const pid_t child = fork();
  if (child < 0) fail("fork");
  if (child == 0) {
    execvp(command[0], command);
    std::perror(command[0]);
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  if (wait4(child, &status, 0, &usage) != child) fail("wait4");
  std::FILE* const f = std::fopen(file, "w");
  if (f == nullptr) fail(file);
  std::fprintf(f, "%.4f %ld\n", static_cast<double>(now_ns() - before) / 1e9, usage.ru_maxrss);
  std::fclose(f);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

int usage(const char* name) {
  std::fprintf(stderr,
               "Usage: %s --list\n"
               "       %s --prepare DIR [N]         makes the input files, or such that are N times smaller\n"
               "       NAMES=NAME,... %s --run DIR  runs the jobs there\n"
               "       %s --usage FILE CMD ...      runs CMD and writes its seconds and peak KiB to FILE\n",
               name, name, name, name);
  return 2;
}

} // namespace

int main(int argc, char** argv) {
  const bool is_init = getpid() == 1;
  if (!is_init) {
    const std::string_view what = argc > 1 ? argv[1] : "";
    if (what == "--list" && argc == 2) {
      for (const Job& job : jobs) print_name(job.name, job.cpus, job.what);
      return 0;
    }
    if (what == "--usage" && argc > 3) return measure_usage(argv[2], argv + 3);
    const bool prepare = what == "--prepare";
    const int part = prepare && argc == 4 ? std::atoi(argv[3]) : 1;
    if (part < 1 || !(argc == 3 || (prepare && argc == 4)) || !(prepare || what == "--run"))
      return usage(argv[0]);
    if (chdir(argv[2]) != 0) fail(argv[2]);
    if (prepare) {
      make_inputs(static_cast<unsigned>(part));
      return 0;
    }
  } else {
    if (mount("dev", "/dev", "devtmpfs", 0, nullptr) != 0) fail("/dev");
    if (chdir("/jobs") != 0) fail("/jobs");
  }
  const char* const list = std::getenv("NAMES");
  const std::string names = list != nullptr ? list : "";
  clearenv();
  setenv("PATH", path, 1);
  setenv("LC_ALL", "C", 1);
  setenv("HOME", "/", 1);
  setenv("TMPDIR", ".", 1);
  for (const Job& job : jobs) {
    if (wanted(job.name, names.c_str())) run(job);
  }
  return end(is_init);
}
