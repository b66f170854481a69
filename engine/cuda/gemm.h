// Matrix products of the CUDA ops: what engine/cpu/gemm.h is on the host, through Runtime::gemm.
//
// Activations are f32 or bf16, sums f32. Weights are f32 parameters; a product in bf16 reads a bf16
// copy of them, made once per version of the weight (derived). Parameters that were added together,
// as those of a range that trains, have one copy, which Adam keeps current. Gradients of weights
// are f32.
//
// Matrices that all have the same room (Tensor::room) are multiplied with all of it, so that their
// shapes are few: an algorithm is chosen once for each, and graphs of steps serve many. What lies
// behind the rows of activations is finite, whatever it is, and behind those of dy zero; so it
// stays behind those of dx, and adds nothing to dweight.
#pragma once

#include "engine/context.h"

namespace sft::cuda {

// A weight or bias as products with activations of `dtype` take it: itself, or its bf16 copy.
// Anything but a parameter is copied into scratch at every call, so a ScratchScope stands in front.
// Works in dry steps.
Tensor weight_as(Context& ctx, Tensor weight, Dtype dtype);
// The form of parameters that were added together, beginning with the first of them; null: nothing
// has asked for it.
[[gnu::weak]] Prepared::Form* bf16_copy(Prepared& prepared, const void* first);

struct MatmulEnd {
  Tensor bias = {};      // [N]
  Tensor residual = {};  // [T, N], of y's type
};

// y = x W^T + bias + residual, all in one product and of one type; y may be the residual. x [T, K],
// weight [N, K], y [T, N]; rows may be strided.
void matmul(Context& ctx, Tensor x, Tensor weight, Tensor y, const MatmulEnd& end = {});

// Gradients of y = x W^T + b (b: column sums, rows.h), each skipped if nobody wants it. dy [T, N],
// x [T, K], dx [T, K] and weight [N, K] of one type; dweight [N, K] f32.
void matmul_dx(Context& ctx, Tensor dy, Tensor weight, Grad dx);
void matmul_dweight(Context& ctx, Tensor dy, Tensor x, Grad dweight);

// The address of one of this program's kernels: whether the device can run it tells of all.
const void* some_kernel();

}  // namespace sft::cuda
