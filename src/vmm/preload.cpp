// SPDX-License-Identifier: Apache-2.0
#include "vmm/preload.h"

#include "vmm/parse_options.h"
#include "x86/cpu/cpuid_model.h"

#include <algorithm>
#include <cpuid.h>
#include <cstdlib>
#include <cstring>
#include <elf.h>
#include <filesystem>
#include <fmt/format.h>
#include <fstream>
#include <sys/stat.h>
#include <system_error>
#include <unistd.h>

namespace ring3::vmm {

namespace {

namespace fs = std::filesystem;

bool host_is_amd() {
  unsigned a, b = 0, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) != 0 && std::memcmp(&b, "Auth", 4) == 0;
}

Result<std::string> model_of(const PreloadOptions& o) {
  if (!o.vendor.empty() && o.vendor != "intel" && o.vendor != "amd")
    return fail(fmt::format("there is no vendor '{}'", o.vendor), "use --vendor intel or --vendor amd",
                exit_usage);
  const std::string name = o.cpu.substr(0, o.cpu.find(','));
  const std::string adjustments = o.cpu.substr(name.size());
  std::string model = name;
  if (name.empty() || name == "host" || name == "max") {
    const bool amd = o.vendor.empty() ? host_is_amd() : o.vendor == "amd";
    model = amd ? "max-amd" : "max";
  }
  const std::string spec = model + adjustments;
  if (const auto selected = x86::select_cpu_model(spec); !selected) return std::unexpected(selected.error());
  const auto info = std::ranges::find(x86::cpu_models(), model, &x86::ModelInfo::name);
  const bool amd_model = info->vendor == "AuthenticAMD";
  if (!o.vendor.empty() && amd_model != (o.vendor == "amd"))
    return fail(fmt::format("CPU model '{}' is not of vendor {}", model, o.vendor),
                "leave out --vendor, or choose another model (see ring3 features)", exit_usage);
  return spec;
}

Result<std::string> library() {
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path path = self.parent_path().parent_path() / "lib" / "libring3-shim.so";
  if (error || !fs::exists(path, error))
    return fail(fmt::format("{} is not there", path.string()), "build all of ring3: ./run --build-only");
  // The dynamic linker splits LD_PRELOAD at these, and there is no way to quote them.
  if (path.string().find_first_of(" :") != std::string::npos)
    return fail(fmt::format("the dynamic linker cannot load a library from '{}'", path.string()),
                "move ring3 to a folder without blanks and colons in its name");
  return path.string();
}

Result<void> check_file(const std::string& path, const std::string& name, int depth) {
  struct stat st {};
  if (stat(path.c_str(), &st) != 0)
    return fail(fmt::format("cannot run '{}': {}", name, std::strerror(errno)), "check the program's name",
                127);
  if (!S_ISREG(st.st_mode) || access(path.c_str(), X_OK) != 0)
    return fail(fmt::format("cannot run '{}': it is not an executable file", name),
                "check the program's name", 126);
  if ((st.st_mode & S_ISUID) != 0 && st.st_uid != getuid())
    return fail(
        fmt::format("'{}' changes its user ID, and then the dynamic linker loads nothing of ours", name),
        "run a copy without the set-user-ID bit", 126);
  std::ifstream in(path, std::ios::binary);
  char head[256] = {};
  in.read(head, sizeof head - 1);
  if (head[0] == '#' && head[1] == '!' && depth < 4) {
    std::string line(head + 2);
    line.erase(std::min(line.find('\n'), line.size()));
    line.erase(0, std::min(line.find_first_not_of(" \t"), line.size()));
    line.erase(std::min(line.find_first_of(" \t"), line.size()));
    return check_file(line, line, depth + 1);
  }
  Elf64_Ehdr elf{};
  std::memcpy(&elf, head, sizeof elf);
  if (std::memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0) return {}; // execve() will say what it thinks of it
  if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_machine != EM_X86_64)
    return fail(fmt::format("'{}' is not an x86-64 program", name), "run one that is", 126);
  for (unsigned i = 0; i < elf.e_phnum; ++i) {
    Elf64_Phdr p{};
    in.clear();
    in.seekg(static_cast<std::streamoff>(elf.e_phoff + u64{i} * elf.e_phentsize));
    if (!in.read(reinterpret_cast<char*>(&p), sizeof p)) break;
    if (p.p_type == PT_INTERP) return {};
  }
  return fail(
      fmt::format("'{}' is statically linked: no library can be put in front of its system calls", name),
      "use a dynamically linked build of it", 126);
}

} // namespace

std::string find_program(const std::string& name) {
  if (name.find('/') != std::string::npos) return name;
  const char* path = std::getenv("PATH");
  std::string rest = path != nullptr ? path : "/bin:/usr/bin";
  while (true) {
    const std::size_t colon = std::min(rest.find(':'), rest.size());
    const std::string folder = colon == 0 ? "." : rest.substr(0, colon);
    const std::string candidate = folder + '/' + name;
    struct stat st {};
    if (stat(candidate.c_str(), &st) == 0 && S_ISREG(st.st_mode) && access(candidate.c_str(), X_OK) == 0)
      return candidate;
    if (colon == rest.size()) return {};
    rest.erase(0, colon + 1);
  }
}

Result<std::vector<std::pair<std::string, std::string>>> preload_environment(const PreloadOptions& options) {
  const auto model = model_of(options);
  if (!model) return std::unexpected(model.error());
  auto preload = library();
  if (!preload) return std::unexpected(preload.error());
  if (const char* others = std::getenv("LD_PRELOAD"); others != nullptr && *others != '\0') {
    if (std::strstr(others, preload->c_str()) == nullptr)
      *preload += std::string(":") + others;
    else
      *preload = others;
  }
  std::vector<std::pair<std::string, std::string>> variables{{"LD_PRELOAD", *preload}, {"RING3_CPU", *model}};
  const auto engine = parse_engine(options.engine);
  if (!engine) return std::unexpected(engine.error());
  if (!options.engine.empty()) variables.emplace_back("RING3_ENGINE", options.engine);
  if (!options.stats.empty()) variables.emplace_back("RING3_STATS", fs::absolute(options.stats).string());
  return variables;
}

Result<void> check_preloadable(const std::string& program) {
  const std::string path = find_program(program);
  if (path.empty())
    return fail(fmt::format("there is no program '{}' in PATH", program), "check its name, or give its path",
                127);
  return check_file(path, program, 0);
}

} // namespace ring3::vmm
