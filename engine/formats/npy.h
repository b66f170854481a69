// NumPy's .npy, version 1.0 (numpy.lib.format).
#pragma once

#include <string>

#include "engine/io/file.h"
#include "engine/tensor.h"

namespace sft {

// f32, C order; rows may be strided.
void write_npy(const std::string& path, const Tensor& tensor, Existing existing = Existing::refuse);

}  // namespace sft
