// weighted_sum.cu: y = sum_l s_l n(h_l), s = softmax(w); n: the identity, or layer norm without
// affine part.
//
// Layout   states, y, dy [T, C] f32 or bf16, C <= 2048; w, shares, dw [L] f32; partial [blocks, L]
//          f64
// Work     a warp per frame; its row of y (or dy) stays in registers while the L rows pass by, each
//          read once, mean and centred variance with no reload. dw: a warp adds its frames'
//          products up in shared memory, then blocks in one ordered sum
// Cost     forward (L + 1) TC elements, dw the same, a gradient of a state one more: memory-bound
// Numbers  f32 along a row, dw over frames in f64; the same bits every run; no atomics
#include "engine/ops/weighted_sum.h"

#include <algorithm>

#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kMost = static_cast<int>(kMaxStates);
constexpr int64_t kPartials = 264;  // blocks that sum dw: two for each multiprocessor of an H200

template <class T>
struct States {
  Matrix<T> x[kMost];
  int count;
};

template <class T>
struct StateGrads {
  Matrix<T> dx[kMost];  // data null: nobody wants it
  bool add[kMost];
};

// One row of C elements, V vectors of 8 to a lane; zeros past its end.
template <int V>
struct WarpRow {
  Float8 v[V];

  __device__ __forceinline__ static int column(int i) { return (i * 32 + lane()) * 8; }

  template <class T>
  __device__ __forceinline__ void load(const Matrix<T>& from, int64_t row, int C) {
#pragma unroll
    for (int i = 0; i < V; ++i)
      v[i] = column(i) < C ? load_row(from.row(row), column(i), C, from.whole) : Float8{};
  }
  template <class T>
  __device__ __forceinline__ void store(const Matrix<T>& to, int64_t row, int C) const {
#pragma unroll
    for (int i = 0; i < V; ++i)
      if (column(i) < C) store_row(to.row(row), column(i), C, to.whole, v[i]);
  }
  __device__ __forceinline__ float sum() const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < V; ++i)
      for (float x : v[i].v) total += x;
    return warp_sum(total);
  }
  __device__ __forceinline__ float dot(const WarpRow& other) const {
    float total = 0;
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) total += v[i].v[k] * other.v[i].v[k];
    return warp_sum(total);
  }
  // x -> (x - mean) rstd; what is past the end stays zero.
  __device__ __forceinline__ float normalize(int C) {
    const float mean = sum() / C;
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) v[i].v[k] = column(i) + k < C ? v[i].v[k] - mean : 0;
    const float rstd = rsqrtf(dot(*this) / C + kStateNormEps);
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) v[i].v[k] *= rstd;
    return rstd;
  }
};

// One warp; shares [L].
__global__ void weighted_sum_shares_kernel(const float* w, int L, float* shares) {
  float most = -INFINITY;
  for (int l = lane(); l < L; l += 32) most = fmaxf(most, w[l]);
  most = warp_max(most);
  double total = 0;
  for (int l = lane(); l < L; l += 32) total += exp(static_cast<double>(w[l]) - most);
  total = warp_sum(total);
  for (int l = lane(); l < L; l += 32)
    shares[l] = static_cast<float>(exp(static_cast<double>(w[l]) - most) / total);
}

template <class T, int V>
__global__ void weighted_sum_kernel(States<T> states, const float* shares, bool normalize,
                                    Matrix<T> y, int64_t rows, int C) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp();
  if (row >= rows) return;
  WarpRow<V> total{};
  for (int l = 0; l < states.count; ++l) {
    WarpRow<V> x;
    x.load(states.x[l], row, C);
    if (normalize) x.normalize(C);
#pragma unroll
    for (int i = 0; i < V; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) total.v[i].v[k] += shares[l] * x.v[i].v[k];
  }
  total.store(y, row, C);
}

struct BackShared {
  double g[kWarps][kMost];
};

// dx [T, C] = or += share (dy), or through the norm: share rstd (dy - mean(dy) - n mean(dy n))
template <class T, int V>
__device__ void write_dx(const WarpRow<V>& dy, const WarpRow<V>& n, float scale, float mean,
                         float mean_dot, const Matrix<T>& dx, bool add, int64_t row, int C) {
  WarpRow<V> out{};
  if (add) out.load(dx, row, C);
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k)
      out.v[i].v[k] += scale * (dy.v[i].v[k] - mean - n.v[i].v[k] * mean_dot);
  out.store(dx, row, C);
}

// partial [gridDim.x, L] (may be absent): <dy, n(h_l)> over the frames of each block.
template <class T, int V>
__global__ void weighted_sum_back_kernel(Matrix<T> dy, States<T> states, StateGrads<T> grads,
                                         const float* shares, bool normalize, double* partial,
                                         int64_t rows, int C) {
  BackShared& shared = shared_memory<BackShared>();
  for (int l = lane(); l < states.count; l += 32) shared.g[warp()][l] = 0;
  __syncwarp();
  for (int64_t row = blockIdx.x * int64_t{kWarps} + warp(); row < rows;
       row += gridDim.x * int64_t{kWarps}) {
    WarpRow<V> g;
    g.load(dy, row, C);
    const float mean = normalize ? g.sum() / C : 0;
    for (int l = 0; l < states.count; ++l) {
      const bool wants_dx = grads.dx[l].data;
      WarpRow<V> n{};
      float rstd = 1;
      if (normalize || partial) n.load(states.x[l], row, C);
      if (normalize) rstd = n.normalize(C);
      const float dot = normalize || partial ? g.dot(n) : 0;
      if (partial && lane() == 0) shared.g[warp()][l] += dot;
      if (wants_dx)
        write_dx(g, n, shares[l] * rstd, mean, normalize ? dot / C : 0, grads.dx[l], grads.add[l],
                 row, C);
    }
  }
  __syncthreads();
  for (int l = static_cast<int>(threadIdx.x); l < states.count && partial; l += 32 * kWarps) {
    double sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += shared.g[w][l];
    partial[blockIdx.x * int64_t{states.count} + l] = sum;
  }
}

struct DwShared {
  double g[kMost];
};

// One block: dw_l = s_l (g_l - sum_k s_k g_k); a warp sums the partials of a state.
__global__ void weighted_sum_dw_kernel(const double* partial, int blocks, const float* shares,
                                       int L, float* dw, bool add) {
  DwShared& shared = shared_memory<DwShared>();
  for (int l = warp(); l < L; l += warps()) {
    double sum = 0;
    for (int b = lane(); b < blocks; b += 32) sum += partial[b * int64_t{L} + l];
    sum = warp_sum(sum);
    if (lane() == 0) shared.g[l] = sum;
  }
  __syncthreads();
  double mean = 0;
  for (int l = 0; l < L; ++l) mean += shares[l] * shared.g[l];
  for (int l = static_cast<int>(threadIdx.x); l < L; l += static_cast<int>(blockDim.x))
    dw[l] = static_cast<float>(shares[l] * (shared.g[l] - mean)) + (add ? dw[l] : 0);
}

template <class T>
States<T> states_of(std::span<const Tensor> states) {
  States<T> out{};
  out.count = static_cast<int>(states.size());
  for (size_t l = 0; l < states.size(); ++l) out.x[l] = matrix<T>(states[l]);
  return out;
}

template <class T>
StateGrads<T> grads_of(std::span<const Grad> grads) {
  StateGrads<T> out{};
  for (size_t l = 0; l < grads.size(); ++l)
    out.dx[l] = matrix<T>(grads[l].to), out.add[l] = grads[l].add;
  return out;
}

}  // namespace

void weighted_sum_forward(Context& ctx, std::span<const Tensor> states, Tensor w, bool normalize,
                          const WeightedSumOut& out) {
  const int64_t rows = out.y.rows();
  const int C = static_cast<int>(out.y.width()), L = static_cast<int>(states.size());
  launch(weighted_sum_shares_kernel, 1, 32, 0, ctx.gpu->stream(), w.f32(), L, out.shares.f32());
  with_element(out.y.dtype, [&]<class T>() {
    const auto kernel = C <= 1024 ? weighted_sum_kernel<T, 4> : weighted_sum_kernel<T, 8>;
    launch(kernel, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0, ctx.gpu->stream(),
           states_of<T>(states), out.shares.f32(), normalize, matrix<T>(out.y), rows, C);
  });
}

void weighted_sum_backward(Context& ctx, Tensor dy, std::span<const Tensor> states, Tensor shares,
                           bool normalize, std::span<const Grad> dstates, Grad dw) {
  const int64_t rows = dy.rows();
  const int C = static_cast<int>(dy.width()), L = static_cast<int>(states.size());
  const auto blocks =
      static_cast<int>(std::clamp<int64_t>(ceil_div(rows, kWarps), 1, dw ? kPartials : 65535));
  ScratchScope scratch(ctx.scratch);
  double* partial = dw ? ctx.temporary({blocks * L}, Dtype::f64).as<double>() : nullptr;
  if (ctx.dry) return;
  with_element(dy.dtype, [&]<class T>() {
    const auto kernel = C <= 1024 ? weighted_sum_back_kernel<T, 4> : weighted_sum_back_kernel<T, 8>;
    launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * kWarps), sizeof(BackShared),
           ctx.gpu->stream(), matrix<T>(dy), states_of<T>(states), grads_of<T>(dstates),
           shares.f32(), normalize, partial, rows, C);
  });
  if (dw)
    launch(weighted_sum_dw_kernel, 1, 1024, sizeof(DwShared), ctx.gpu->stream(), partial, blocks,
           shares.f32(), L, dw.to.f32(), dw.add);
}

}  // namespace sft::cuda
