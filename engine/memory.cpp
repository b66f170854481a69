#include "engine/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace sft {
namespace {

// The first number of a file of the kernel's; absent, or a word: no limit.
int64_t number_in(const std::string& path) {
  std::ifstream in(path);
  int64_t number = 0;
  return in >> number ? number : std::numeric_limits<int64_t>::max();
}

int64_t system_memory() {
  std::ifstream in("/proc/meminfo");
  std::string key, unit;
  for (int64_t kib = 0; in >> key >> kib; std::getline(in, unit))
    if (key == "MemAvailable:") return kib * 1024;
  return std::numeric_limits<int64_t>::max();
}

}  // namespace

int64_t available_memory() {
  const std::string group = "/sys/fs/cgroup/memory.";
  const int64_t limit = number_in(group + "max");
  if (limit == std::numeric_limits<int64_t>::max()) return system_memory();
  return std::min(system_memory(), std::max<int64_t>(0, limit - number_in(group + "current")));
}

}  // namespace sft
