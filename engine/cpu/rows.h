// Passes over the rows of matrices that several CPU ops share.
#pragma once

#include "engine/cpu/dropout.h"
#include "engine/tensor.h"

namespace sft::cpu {

// to = base + x * factors, row by row; base may be empty (nothing is added) or `to` itself, and so
// may x. All [T, C].
void scale_rows(Tensor base, Tensor x, const DropoutRows& factors, Tensor to);

// grad = or += x * factors.
inline void scale_rows(Tensor x, const DropoutRows& factors, Grad grad) {
  if (grad) scale_rows(grad.add ? grad.to : Tensor(), x, factors, grad.to);
}

// The sum over rows of x [T, N], in an order that does not depend on threads: biases' gradients.
void sum_rows(Tensor x, Grad sums);

}  // namespace sft::cpu
