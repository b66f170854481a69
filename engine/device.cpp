#include "engine/device.h"

#include "engine/cuda/driver.h"

namespace sft {

std::unique_ptr<cuda::Runtime> open_device(std::string_view name) {
  if (name == "cpu") return nullptr;
  if (name != "cuda") fail(Kind::usage, Hint{"cpu or cuda"}, "unknown device {}", printable(name));
  if (!cuda::open_driver)
    fail(Kind::resource, Hint{"build it where nvcc is (README), or use --device cpu"},
         "this program was built without CUDA");
  return std::make_unique<cuda::Runtime>(cuda::open_driver());
}

}  // namespace sft
