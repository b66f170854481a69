// Opening the device that --device names.
#pragma once

#include <memory>
#include <string_view>

#include "engine/cuda/runtime.h"

namespace sft {

// "cpu": null. "cuda": its runtime; Kind::resource with a hint if this program or this machine has
// none. Other names: Kind::usage.
std::unique_ptr<cuda::Runtime> open_device(std::string_view name);

}  // namespace sft
