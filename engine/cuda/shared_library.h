// A library that is opened on first use: linking cuBLASLt would cost every start of every tool 60
// ms.
#pragma once

#include <dlfcn.h>

#include "engine/check.h"

namespace sft::cuda {

class SharedLibrary {  // stays open
 public:
  explicit SharedLibrary(const char* name) : handle_(dlopen(name, RTLD_NOW | RTLD_LOCAL)) {
    if (!handle_)
      fail(Kind::resource,
           Hint{"install the CUDA 13 libraries, or add their folder to LD_LIBRARY_PATH"}, "{}",
           dlerror());
  }
  template <class F>
  void bind(F*& function, const char* symbol) const {
    function = reinterpret_cast<F*>(dlsym(handle_, symbol));
    if (!function) fail(Kind::resource, "{}", dlerror());
  }

 private:
  void* handle_;
};

}  // namespace sft::cuda
