// Matrix products of the CPU ops. f32 in memory, rows dense or strided (row_stride >= width).
//
// Forward products are our own (product-inl.h; in the math modes fast16 and bf16 narrow.h): weights
// packed once per version of the weight, rows in any number; a row has the same bits wherever it
// lies and however many threads there are. Gradients go through oneDNN, in the narrow modes through
// narrow.h. Call from one thread, outside of parallel regions.
//
// Measured against the FMA peak of the same moment, one AVX-512 core: [896, 768] x [768, 3072] 95
// %, [896, 3072] x [3072, 768] 91 % (oneDNN's packed matmul: 88 and 87 %).
#pragma once

#include "engine/context.h"
#include "engine/cpu/narrow.h"
#include "engine/cpu/thread_scratch.h"

namespace sft::cpu {

// W [N, K] in panels of columns, and memory for a product with it.
struct PackedWeight {
  const float* data = nullptr;
  int64_t N = 0, K = 0;
  ThreadScratch threads = {};
  Tensor stored = {};            // f16, bf16 or q8_0: no panels, products make them block by block
  float* block = nullptr;        // where
  narrow::Panels narrowed = {};  // in place of data
};

// Keeps the panels of a parameter (derived); packs into scratch at every call for anything else. A
// weight in a narrower type is never there as a whole: each product widens a few columns at a time.
// What a product works in is scratch as well, so a ScratchScope stands in front.
PackedWeight pack_weight(Context& ctx, Tensor weight, Math math);
inline PackedWeight pack_weight(Context& ctx, Tensor weight) {
  return pack_weight(ctx, weight, ctx.math);
}

// Panels in the narrow type of ctx.math: the form `kind` of a weight that `from` is, or is made of.
narrow::Panels narrow_panels(Context& ctx, const void* weight, uint32_t kind,
                             const narrow::Vectors& from);

struct MatmulEnd {
  Tensor bias = {};      // [N]
  bool gelu = false;     // as vector_math-inl.h
  Tensor residual = {};  // [T, N]; may be y
  Tensor pre = {};       // [T, N]; not empty: x W^T + bias is written there, past the caches
};

// y = act(x W^T + bias) + residual. x [T, K], y [T, N].
void matmul(Tensor x, const PackedWeight& weight, Tensor y, const MatmulEnd& end = {});

// C [M, N] = op(A) op(B) + beta C, op(A) [M, K], op(B) [K, N]; ld: elements from row to row as
// stored. beta is 0 (C may be anything) or 1.
void sgemm(bool transpose_a, bool transpose_b, int64_t M, int64_t N, int64_t K, const float* A,
           int64_t lda, const float* B, int64_t ldb, float beta, float* C, int64_t ldc);

// What the gradients of y = x W^T + b are made with; in scratch and derived, as PackedWeight.
struct BackwardWeight {
  Tensor weight;  // [N, K]
  Math math = Math::exact;
  PackedWeight transposed = {};  // of narrow modes: panels of K columns, N deep
  void* vectors = nullptr;       // of narrow modes: dy and x, packed along T
  int64_t most_rows = 0;         // for which they have room
};
// dx, dweight: what will be asked for, of at most `rows` rows at a time.
BackwardWeight pack_backward(Context& ctx, Tensor weight, int64_t rows, bool dx, bool dweight,
                             Math math);
inline BackwardWeight pack_backward(Context& ctx, Tensor weight, int64_t rows, bool dx,
                                    bool dweight) {
  return pack_backward(ctx, weight, rows, dx, dweight, ctx.math);
}

// Gradients of y = x W^T + b, each skipped if nobody wants it. dy [T, N], x [T, K].
void matmul_dx(Tensor dy, const BackwardWeight& weight, Grad dx);
void matmul_dweight(Tensor dy, Tensor x, const BackwardWeight& weight, Grad dweight,
                    Grad dbias = {});

// Products of this thread so far: a layer's number must not depend on the number of utterances.
int64_t gemm_calls();

}  // namespace sft::cpu
