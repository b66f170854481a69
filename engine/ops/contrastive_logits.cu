// contrastive_logits.cu: cosines of y_n with q_n and with K other rows of q, over the temperature.
//
// Layout   y, q, dy, dq [N, D] f32 or bf16, any D; picks [N, G], lists of negatives i32; logits,
//          dlogits [N, 1 + K], scales [N] f32
// Work     forward: a warp per logit. Backward: a warp per row of dy goes through its candidates, a
//          warp per row of dq through the places where it is one; then what lies along is taken off
// Cost     2N(1+K)D FLOP forward, twice that going back; rows of q come out of L2 (an utterance's
//          are a few hundred KB): bound by L2
// Numbers  f32 sums in the order of candidates and of places: the same bits every run
#include "engine/ops/contrastive_logits.h"

#include "engine/cuda/cosine.cuh"
#include "engine/cuda/lists.h"

namespace sft::cuda {
namespace {

constexpr float kExcluded = -__builtin_inff();

__device__ __forceinline__ bool same_code(const int32_t* picks, int G, int64_t a, int64_t b) {
  bool same = true;
  for (int g = 0; g < G; ++g) same &= picks[a * G + g] == picks[b * G + g];
  return same;
}

template <class T>
__global__ void contrastive_forward_kernel(Matrix<T> y, Matrix<T> q, const int32_t* picks, int G,
                                           const int32_t* rows, const float* y_scale,
                                           const float* q_scale, float temperature,
                                           Matrix<float> logits, int64_t N, int K, int D) {
  const int64_t i = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (i >= N * (1 + K)) return;
  const int64_t n = i / (1 + K);
  const int column = static_cast<int>(i % (1 + K));
  const int64_t r = column ? rows[n * K + column - 1] : n;
  const float product = row_product(y.row(n), y.whole, q.row(r), q.whole, D);
  if (lane() != 0) return;
  const bool excluded = column && same_code(picks, G, n, r);
  logits.row(n)[column] = excluded ? kExcluded : product * (y_scale[n] / temperature) * q_scale[r];
}

// What a logit passes on to the plain product y_n q_r.
struct Factors {
  Matrix<float> logits, dlogits;
  const float *y_scale, *q_scale;
  float temperature;

  __device__ __forceinline__ float operator()(int64_t n, int column, int64_t r) const {
    if (logits.row(n)[column] == kExcluded) return 0;
    return dlogits.row(n)[column] * y_scale[n] * q_scale[r] / temperature;
  }
};

template <class T>
__device__ __forceinline__ void add_multiple(Matrix<T> x, int64_t row, float factor, int c, int D,
                                             Float8& to) {
  const Float8 value = load_row(x.row(row), c, D, x.whole);
#pragma unroll
  for (int k = 0; k < 8; ++k) to.v[k] += factor * value.v[k];
}

template <class T>
__global__ void by_y_kernel(Factors factor, Matrix<T> q, const int32_t* rows, Matrix<float> by_y,
                            int64_t N, int K, int D) {
  const int64_t n = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (n >= N) return;
  for (int c = lane() * 8; c < D; c += 256) {
    Float8 sum{};
    add_multiple(q, n, factor(n, 0, n), c, D, sum);
    for (int k = 0; k < K; ++k) {
      const int64_t r = rows[n * K + k];
      add_multiple(q, r, factor(n, 1 + k, r), c, D, sum);
    }
    store_row(by_y.row(n), c, D, by_y.whole, sum);
  }
}

template <class T>
__global__ void by_q_kernel(Factors factor, Matrix<T> y, const int32_t* starts, const int32_t* uses,
                            Matrix<float> by_q, int64_t N, int K, int D) {
  const int64_t r = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (r >= N) return;
  for (int c = lane() * 8; c < D; c += 256) {
    Float8 sum{};
    add_multiple(y, r, factor(r, 0, r), c, D, sum);
    for (int i = starts[r]; i < starts[r + 1]; ++i) {
      const int n = uses[i] / K;
      add_multiple(y, n, factor(n, 1 + uses[i] % K, r), c, D, sum);
    }
    store_row(by_q.row(r), c, D, by_q.whole, sum);
  }
}

}  // namespace

void contrastive_logits_forward(Context& ctx, Tensor y, Tensor q, Tensor picks,
                                const Negatives& negatives, float temperature,
                                const ContrastiveOut& out) {
  const int64_t N = y.rows();
  const int K = static_cast<int>(negatives.each), D = static_cast<int>(y.width());
  ScratchScope scratch(ctx.scratch);
  const int32_t* rows = on_device(ctx, negatives.rows);
  if (ctx.dry) return;
  with_element(y.dtype, [&]<class T>() {
    inverse_norms<T>(ctx, y, out.y_scale);
    inverse_norms<T>(ctx, q, out.q_scale);
    launch(contrastive_forward_kernel<T>, cosine_blocks(N * (1 + K)), dim3(32 * kCosineWarps), 0,
           ctx.gpu->stream(), matrix<T>(y), matrix<T>(q), picks.as<int32_t>(),
           static_cast<int>(picks.width()), rows, out.y_scale.f32(), out.q_scale.f32(), temperature,
           matrix<float>(out.logits), N, K, D);
  });
}

void contrastive_logits_backward(Context& ctx, Tensor dlogits, Tensor y, Tensor q,
                                 const Negatives& negatives, const ContrastiveOut& out,
                                 float temperature, Grad dy, Grad dq) {
  const int64_t N = y.rows(), D = y.width();
  const int K = static_cast<int>(negatives.each), width = static_cast<int>(D);
  ScratchScope scratch(ctx.scratch);
  const int32_t* rows = on_device(ctx, negatives.rows);
  const int32_t* starts = on_device(ctx, negatives.starts);
  const int32_t* uses = on_device(ctx, negatives.uses);
  const Tensor by_y = dy ? ctx.temporary({N, D}) : Tensor();
  const Tensor by_q = dq ? ctx.temporary({N, D}) : Tensor();
  if (ctx.dry) return;
  const Factors factor{matrix<float>(out.logits), matrix<float>(dlogits), out.y_scale.f32(),
                       out.q_scale.f32(), temperature};
  with_element(y.dtype, [&]<class T>() {
    if (dy) {
      launch(by_y_kernel<T>, cosine_blocks(N), dim3(32 * kCosineWarps), 0, ctx.gpu->stream(),
             factor, matrix<T>(q), rows, matrix<float>(by_y), N, K, width);
      project<T, T>(ctx, by_y, y, out.y_scale, dy);
    }
    if (dq) {
      launch(by_q_kernel<T>, cosine_blocks(N), dim3(32 * kCosineWarps), 0, ctx.gpu->stream(),
             factor, matrix<T>(y), starts, uses, matrix<float>(by_q), N, K, width);
      project<T, T>(ctx, by_q, q, out.q_scale, dq);
    }
  });
}

}  // namespace sft::cuda
