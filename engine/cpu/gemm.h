// Matrix products of the CPU ops, through oneDNN. f32, rows dense or strided (row_stride >= width).
//
// Forward products read weights that are packed once per version of the weight, and run over
// bucket_rows(T) rows, so that few shapes exist: x and y must have that many (all tensors of an
// arena do, see Arena::tensor); what comes out in the rows past T is zeroed. Gradients are plain
// products of the rows there are. Call from one thread, outside of parallel regions.
//
// Measured on two AVX-512 cores, with bias: [250, 768] x [768, 768] 424 GF/s, [50, 768] x
// [768, 3072] 299; GELU and a residual cost up to 10 % each; dx 358 to 374, dweight 370 to 388.
// A call on shapes seen before costs 1 us.
#pragma once

#include "engine/context.h"

namespace sft::cpu {

// W [N, K] in the library's blocked layout; the same for any number of rows of x.
struct PackedWeight {
  const float* data = nullptr;
  int64_t N = 0, K = 0;
  bool accumulate = false;
};

// Keeps the panels of a parameter (derived); packs into scratch at every call for anything else, so
// a ScratchScope stands in front. `accumulate`: the product will add to y, which other code does.
PackedWeight pack_weight(Context& ctx, Tensor weight, bool accumulate = false);

struct MatmulEnd {
  Tensor bias = {};      // [N]
  bool gelu = false;     // the erf form; 4e-7 absolute, far negative values become 0
  Tensor residual = {};  // [T, N], another buffer than y, of bucket_rows(T) rows
};

// y = act(x W^T + bias) + residual; packed to accumulate: y = act(x W^T + bias + y).
// x [T, K], y [T, N].
void matmul(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end = {});

// C [M, N] = op(A) op(B) + beta C, op(A) [M, K], op(B) [K, N]; ld: elements from row to row as
// stored. beta is 0 (C may be anything) or 1.
void sgemm(bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K, const float* A,
           int64_t lda, const float* B, int64_t ldb, float beta, float* C, int64_t ldc);

// Gradients of y = x W^T + b (b: sum_rows of rows.h), each skipped if nobody wants it. dy [T, N], x
// [T, K], weight [N, K].
void matmul_dx(Tensor dy, Tensor weight, Grad dx);
void matmul_dweight(Tensor dy, Tensor x, Grad dweight);

// Products of this thread so far: a layer's number must not depend on the number of utterances.
int64_t gemm_calls();

}  // namespace sft::cpu
