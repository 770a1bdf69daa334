// Resources of the host or container.
#pragma once

#include <cstddef>
#include <string>

namespace uniproc {

struct HostMemory {
  size_t total = 0;  // bytes: the host's memory, or the cgroup's limit if lower
  size_t free = 0;   // bytes available without swapping, including reclaimable page cache
};

// Reads /proc/meminfo and the process's cgroups (version 2 or 1) with their ancestors, all below
// `root`.
HostMemory hostMemory(const std::string& root = "");

// Cores that this process may run on.
int availableCores();

}  // namespace uniproc
