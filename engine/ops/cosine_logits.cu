// cosine_logits.cu: s_nv = x_n e_v / (|x_n| |e_v| temperature), norms at least 1e-8.
//
// Layout   x, dx [N, D] f32 or bf16, any D; e [V, D] f32, its copy in x's type; logits, dlogits
//          [N, V], scales [N], [V], dembedding [V, D] f32
// Work     one product, scaled in place; going back the scaled dlogits in x's type, two products,
//          and a warp per row that takes off what is along the vector
// Cost     2NVD FLOP forward, 4NVD backward, in products; 8NV bytes for each scaling: both
//          memory-bound at D = 256
// Numbers  f32 sums; the same bits every run
#include "engine/ops/cosine_logits.h"

#include "engine/cuda/cosine.cuh"
#include "engine/cuda/gemm.h"

namespace sft::cuda {
namespace {

// to_nv = from_nv rows_n columns_v / temperature; a warp per row.
template <class T>
__global__ void scale_kernel(Matrix<float> from, const float* rows, const float* columns,
                             float temperature, Matrix<T> to, int64_t N, int V) {
  const int64_t n = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (n >= N) return;
  const float factor = rows[n] / temperature;
  for (int c = lane() * 8; c < V; c += 256) {
    Float8 x = load_row(from.row(n), c, V, from.whole);
    for (int k = 0; k < 8; ++k) x.v[k] *= c + k < V ? factor * columns[c + k] : 0;
    store_row(to.row(n), c, V, to.whole, x);
  }
}

template <class T>
void scale(Context& ctx, Tensor from, const CosineLogitsOut& out, float temperature, Tensor to) {
  launch(scale_kernel<T>, cosine_blocks(from.rows()), dim3(32 * kCosineWarps), 0, ctx.gpu->stream(),
         matrix<float>(from), out.x_scale.f32(), out.e_scale.f32(), temperature, matrix<T>(to),
         from.rows(), static_cast<int>(from.width()));
}

}  // namespace

void cosine_logits_forward(Context& ctx, Tensor x, Tensor embedding, float temperature,
                           const CosineLogitsOut& out) {
  ScratchScope scratch(ctx.scratch);
  const Tensor e = weight_as(ctx, embedding, x.dtype);
  if (ctx.dry) return;
  with_element(x.dtype, [&]<class T>() {
    inverse_norms<T>(ctx, x, out.x_scale);
    inverse_norms<T>(ctx, e, out.e_scale);
  });
  matmul(ctx, x, e, out.logits);
  scale<float>(ctx, out.logits, out, temperature, out.logits);
}

void cosine_logits_backward(Context& ctx, Tensor dlogits, Tensor x, Tensor embedding,
                            const CosineLogitsOut& out, float temperature, Grad dx,
                            Grad dembedding) {
  const int64_t N = x.rows(), V = embedding.rows(), D = x.width();
  ScratchScope scratch(ctx.scratch);
  const Tensor e = weight_as(ctx, embedding, x.dtype);
  const Tensor g = ctx.temporary({N, V}, x.dtype);  // by the plain products x_n e_v
  const Tensor by_x = dx ? ctx.temporary({N, D}) : Tensor();
  const Tensor by_e = dembedding ? ctx.temporary({V, D}) : Tensor();
  if (ctx.dry) return;
  with_element(x.dtype, [&]<class T>() {
    scale<T>(ctx, dlogits, out, temperature, g);
    if (dx) {
      matmul_dx(ctx, g, e, {by_x});
      project<T, T>(ctx, by_x, x, out.x_scale, dx);
    }
    if (dembedding) {
      matmul_dweight(ctx, g, x, {by_e});
      project<T, float>(ctx, by_e, e, out.e_scale, dembedding);
    }
  });
}

}  // namespace sft::cuda
