// What the host, or the container the process runs in, has.
#pragma once

#include <cstddef>
#include <string>

namespace uniproc {

struct HostMemory {
  size_t total = 0;  // bytes: the machine's, or the limit of the process's cgroup if that is less
  size_t free =
      0;  // bytes that can be had without swapping, page cache that can be dropped included
};

// From /proc/meminfo and the process's cgroup (version 2 or 1) with its ancestors, all under
// `root`.
HostMemory hostMemory(const std::string& root = "");

// Processors that this process may run on.
int availableCores();

}  // namespace uniproc
