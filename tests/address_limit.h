// Limits what the process may still allocate, while it lives.
#pragma once

#include <sys/resource.h>

#include <cstdint>
#include <fstream>

namespace sft::test {

class AddressLimit {
 public:
  explicit AddressLimit([[maybe_unused]] uint64_t bytes) {
    ::getrlimit(RLIMIT_AS, &before_);
#ifndef __SANITIZE_ADDRESS__
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    const rlimit limit{pages * 4096 + bytes, before_.rlim_max};
    ::setrlimit(RLIMIT_AS, &limit);
#endif
  }
  ~AddressLimit() { ::setrlimit(RLIMIT_AS, &before_); }

 private:
  rlimit before_;
};

}  // namespace sft::test
