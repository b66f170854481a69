#include "engine/device.h"

namespace sft {

std::unique_ptr<cuda::Runtime> open_device(std::string_view name) {
  if (name == "cpu") return nullptr;
  if (name != "cuda") fail(Kind::usage, Hint{"cpu or cuda"}, "unknown device {}", printable(name));
  if (!cuda::open_runtime)
    fail(Kind::resource, Hint{"build it where nvcc is (README), or use --device cpu"},
         "this program was built without CUDA");
  return cuda::open_runtime();
}

}  // namespace sft
