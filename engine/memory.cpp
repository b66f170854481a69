#include "engine/memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

namespace sft {
namespace {

constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// The first number of a file of the kernel's; absent, or a word: no limit.
int64_t number_in(const std::string& path) {
  std::ifstream in(path);
  int64_t number = 0;
  return in >> number ? number : kNoLimit;
}

// The number behind `key` at the start of a line; `absent` if there is no such line.
int64_t number_of(const std::string& path, const std::string& key, int64_t absent) {
  std::ifstream in(path);
  for (std::string name, rest; in >> name; std::getline(in, rest))
    if (int64_t number; name == key && in >> number) return number;
  return absent;
}

// Of our control group; pages of files count as used there, but give way.
int64_t group_memory() {
  const std::string group = "/sys/fs/cgroup/memory.";
  const int64_t limit = number_in(group + "max");
  if (limit == kNoLimit) return kNoLimit;
  const int64_t used = number_in(group + "current"),
                files = number_of(group + "stat", "inactive_file", 0);
  return std::max<int64_t>(0, limit - std::max<int64_t>(0, used - files));
}

int64_t own_memory(const std::string& key) { return number_of("/proc/self/status", key, 0) * 1024; }

}  // namespace

int64_t resident_memory() { return own_memory("VmRSS:"); }
int64_t peak_memory() { return own_memory("VmHWM:"); }

int64_t available_memory() {
  const int64_t kib = number_of("/proc/meminfo", "MemAvailable:", -1);
  return std::min(kib < 0 ? kNoLimit : kib * 1024, group_memory());
}

}  // namespace sft
