#include "ops/cpu/host.h"

#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace uniproc {
namespace {

// The only number in a file; nullopt if the file is missing or holds "max".
std::optional<size_t> readNumber(const std::string& file) {
  size_t value = 0;
  if (std::ifstream(file) >> value) return value;
  return std::nullopt;
}

// The number after `name` in a file with one name and number per line.
size_t readField(const std::string& file, const std::string& name) {
  std::ifstream stream(file);
  for (std::string line; std::getline(stream, line);) {
    std::istringstream fields(line);
    std::string key;
    size_t value = 0;
    if (fields >> key >> value && key == name) return value;
  }
  return 0;
}

struct CgroupFiles {
  const char* mount;
  const char* limit;
  const char* usage;
  // Fields of memory.stat: cached file pages, which count as used but are reclaimable.
  const char* inactiveFile;
  const char* activeFile;
};

constexpr CgroupFiles kVersion2 = {"/sys/fs/cgroup", "memory.max", "memory.current",
                                   "inactive_file", "active_file"};
constexpr CgroupFiles kVersion1 = {"/sys/fs/cgroup/memory", "memory.limit_in_bytes",
                                   "memory.usage_in_bytes", "total_inactive_file",
                                   "total_active_file"};

// Reduces `memory` to the limits of the cgroup at `path` and its ancestors.
void applyCgroup(const std::string& root, const CgroupFiles& files, std::string path,
                 HostMemory* memory) {
  while (true) {
    const std::string folder = root + files.mount + path + "/";
    const auto limit = readNumber(folder + files.limit);
    if (limit && *limit < memory->total) memory->total = *limit;
    if (limit) {
      const size_t usage = readNumber(folder + files.usage).value_or(0);
      const size_t cached = readField(folder + "memory.stat", files.inactiveFile) +
                            readField(folder + "memory.stat", files.activeFile);
      const size_t used = usage - std::min(usage, cached);
      memory->free = std::min(memory->free, *limit - std::min(*limit, used));
    }
    if (path.empty()) return;
    path.resize(path.rfind('/'));
  }
}

}  // namespace

HostMemory hostMemory(const std::string& root) {
  HostMemory memory;
  memory.total = readField(root + "/proc/meminfo", "MemTotal:") * 1024;
  memory.free = readField(root + "/proc/meminfo", "MemAvailable:") * 1024;
  if (memory.total == 0) {  // the system has no such file
    memory.total =
        static_cast<size_t>(sysconf(_SC_PHYS_PAGES)) * static_cast<size_t>(sysconf(_SC_PAGESIZE));
    memory.free = memory.total;
  }
  // A line is "0::/path" for version 2, "4:memory:/path" for version 1. In a container the path may
  // be the host's; if it does not exist, its parent folders do.
  std::ifstream groups(root + "/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (first == std::string::npos || second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    std::string path = line.substr(second + 1);
    if (path.empty() || path[0] != '/' || path == "/") path.clear();
    if (controllers.empty()) {
      applyCgroup(root, kVersion2, path, &memory);
    } else if (controllers.find("memory") != std::string::npos) {
      applyCgroup(root, kVersion1, path, &memory);
    }
  }
  return memory;
}

int availableCores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(CPU_COUNT(&set), 1);
#endif
  return std::max(static_cast<int>(std::thread::hardware_concurrency()), 1);
}

}  // namespace uniproc
