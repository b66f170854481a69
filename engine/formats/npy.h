// NumPy's .npy, version 1.0 (numpy.lib.format).
#pragma once

#include <string>

#include "engine/formats/tensor_file.h"

namespace sft {

// Of f32 in C order: writes the head; the writer's one tensor is named "npy".
TensorWriter create_npy(const std::string& path, const Shape& shape,
                        Existing existing = Existing::refuse);

// The same at once; rows may be strided.
void write_npy(const std::string& path, const Tensor& tensor, Existing existing = Existing::refuse);

}  // namespace sft
