// rel_gate.cu: the gate of WavLM's relative position bias, from slices of frames, and its way back.
//
// Layout   x, dx [T, C] f32 or bf16; weight [8, D], bias [8], scale [H], gate, dgate [H, T] f32,
//          D <= 128
// Work     a warp has 32 / Lanes neighbouring heads of kFrames frames, one after the other; a lane
// 8
//          columns of a head, and the two summed rows of the weight for them in registers. Sums
//          over frames stay there too: then over the warps, then over the blocks in fixed order
// Cost     reads x once (forward), x and dx once (backward): memory-bound
// Numbers  f32; the same bits every run
#include "engine/ops/rel_gate.h"

#include "engine/cuda/partials.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8, kFrames = 16;  // of a block, of a warp
constexpr int kRows = 8;                 // of the weight: four behind each of two logits

struct GateWeights {
  const float *weight, *bias, *scale;
  int H, D;
};

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + __expf(-x)); }

// A lane's share of one head.
template <int Lanes>
struct GateLane {
  int head, c;
  bool there;
  Float8 weight[2];  // summed rows
  float bias[2], scale;

  __device__ explicit GateLane(const GateWeights& w)
      : head(static_cast<int>(blockIdx.y) * (32 / Lanes) + lane() / Lanes),
        c(lane() % Lanes * 8),
        there(head < w.H && c < w.D),
        weight{},
        bias{},
        scale(head < w.H ? w.scale[head] : 0) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      bias[row / 4] += w.bias[row];
      if (there) add8(weight[row / 4], load_row(w.weight + row * w.D, c, w.D, false));
    }
  }
  // r and s of a frame's slice.
  __device__ __forceinline__ float2 gates(const Float8& x) const {
    float logits[2] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int k = 0; k < 8; ++k) logits[half] += weight[half].v[k] * x.v[k];
#pragma unroll
      for (int bit = Lanes / 2; bit > 0; bit /= 2)
        logits[half] += __shfl_xor_sync(~0u, logits[half], bit);
    }
    return make_float2(sigmoid(logits[0] + bias[0]), sigmoid(logits[1] + bias[1]));
  }
};

// The frames of a warp, clipped.
struct FrameRange {
  int64_t begin, end;
  __device__ explicit FrameRange(int64_t frames)
      : begin((blockIdx.x * int64_t{kWarps} + warp()) * kFrames),
        end(begin + kFrames < frames ? begin + kFrames : frames) {}
};

template <class T, int Lanes>
__global__ void rel_gate_kernel(Matrix<T> x, int64_t frames, GateWeights weights, float* gate) {
  const GateLane<Lanes> mine(weights);
  const FrameRange range(frames);
  for (int64_t t = range.begin; t < range.end; ++t) {
    Float8 value{};
    if (mine.there)
      value = load_row(x.row(t) + int64_t{mine.head} * weights.D, mine.c, weights.D, x.whole);
    const float2 rs = mine.gates(value);
    if (mine.there && mine.c == 0)
      gate[mine.head * frames + t] = rs.x * (rs.y * mine.scale - 1) + 2;
  }
}

template <int Lanes>
struct GateBackShared {
  float weight[kWarps][2][Lanes * 8];
  float bias[kWarps][2];
  float scale[kWarps][32 / Lanes];
};

// Of a block: what it adds to the gradients of weight [8, D], bias [8] and scale (of its heads).
struct GatePartials {
  float *weight, *bias;  // [gridDim.x * gridDim.y, 8 D], [.., 8]
  float* scale;          // [gridDim.x, H]
};

// Over the heads of a warp: lanes with the same columns.
template <int Lanes>
__device__ __forceinline__ float over_heads(float value) {
#pragma unroll
  for (int bit = 16; bit >= Lanes; bit /= 2) value += __shfl_xor_sync(~0u, value, bit);
  return value;
}

template <class T, int Lanes>
__global__ void rel_gate_back_kernel(const float* dgate, Matrix<T> x, int64_t frames,
                                     GateWeights weights, Matrix<T> dx, bool add,
                                     GatePartials partial) {
  const GateLane<Lanes> mine(weights);
  const FrameRange range(frames);
  Float8 dweight[2] = {};
  float dbias[2] = {}, dscale = 0;
  for (int64_t t = range.begin; t < range.end; ++t) {
    const int64_t column = int64_t{mine.head} * weights.D;
    Float8 value{};
    if (mine.there) value = load_row(x.row(t) + column, mine.c, weights.D, x.whole);
    const float2 rs = mine.gates(value);
    const float dy = mine.head < weights.H ? dgate[mine.head * frames + t] : 0;
    const float back[2] = {dy * (rs.y * mine.scale - 1) * rs.x * (1 - rs.x),
                           dy * rs.x * mine.scale * rs.y * (1 - rs.y)};
    dscale += dy * rs.x * rs.y;
    Float8 to{};
    if (mine.there && dx.data && add)
      to = load_row(dx.row(t) + column, mine.c, weights.D, dx.whole);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      dbias[half] += back[half];
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        dweight[half].v[k] += back[half] * value.v[k];
        to.v[k] += back[half] * mine.weight[half].v[k];
      }
    }
    if (mine.there && dx.data) store_row(dx.row(t) + column, mine.c, weights.D, dx.whole, to);
  }

  GateBackShared<Lanes>& shared = shared_memory<GateBackShared<Lanes>>();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float sum = over_heads<Lanes>(dweight[half].v[k]);
      if (lane() < Lanes) shared.weight[warp()][half][mine.c + k] = sum;
    }
    const float sum = over_heads<Lanes>(dbias[half]);
    if (lane() == 0) shared.bias[warp()][half] = sum;
  }
  if (mine.c == 0) shared.scale[warp()][lane() / Lanes] = dscale;
  __syncthreads();
  const auto over_warps = [](auto&& of) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += of(w);
    return sum;
  };
  const int i = static_cast<int>(threadIdx.x), D = weights.D;
  const int64_t block = blockIdx.x * int64_t{gridDim.y} + blockIdx.y;
  for (int k = i; k < kRows * D; k += 32 * kWarps)
    partial.weight[block * kRows * D + k] =
        over_warps([&](int w) { return shared.weight[w][k / (4 * D)][k % D]; });
  if (i < kRows)
    partial.bias[block * kRows + i] = over_warps([&](int w) { return shared.bias[w][i / 4]; });
  const int head = static_cast<int>(blockIdx.y) * (32 / Lanes) + i;
  if (i < 32 / Lanes && head < weights.H)
    partial.scale[int64_t{blockIdx.x} * weights.H + head] =
        over_warps([&](int w) { return shared.scale[w][i]; });
}

GateWeights gate_weights(Tensor weight, Tensor bias, Tensor scale) {
  return {weight.f32(), bias.f32(), scale.f32(), static_cast<int>(scale.count()),
          static_cast<int>(weight.width())};
}

// f.operator()<T, Lanes>() with the lanes that a head of D columns takes.
template <class F>
void with_gate_kernel(Dtype dtype, int D, F&& f) {
  with_element(dtype, [&]<class T>() {
    D <= 64 ? f.template operator()<T, 8>() : f.template operator()<T, 16>();
  });
}

dim3 grid(int64_t frames, const GateWeights& w) {
  return {static_cast<unsigned>(ceil_div(frames, kWarps * kFrames)),
          static_cast<unsigned>(ceil_div(w.H, w.D <= 64 ? 4 : 2))};
}

// Heads start at multiples of 16 bytes.
template <class T>
Matrix<T> head_matrix(const Tensor& t, int D) {
  Matrix<T> m = matrix<T>(t);
  m.whole = m.whole && D % 8 == 0;
  return m;
}

}  // namespace

void rel_gate_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, Tensor scale,
                      Tensor gate) {
  const GateWeights w = gate_weights(weight, bias, scale);
  with_gate_kernel(x.dtype, w.D, [&]<class T, int Lanes>() {
    launch(rel_gate_kernel<T, Lanes>, grid(x.rows(), w), dim3(32 * kWarps), 0, ctx.gpu->stream(),
           head_matrix<T>(x, w.D), x.rows(), w, gate.f32());
  });
}

void rel_gate_backward(Context& ctx, Tensor dgate, Tensor x, Tensor weight, Tensor bias,
                       Tensor scale, const RelGateGrads& grads) {
  ScratchScope scratch(ctx.scratch);
  const GateWeights w = gate_weights(weight, bias, scale);
  const dim3 blocks = grid(x.rows(), w);
  const int64_t rows = int64_t{blocks.x} * blocks.y, width = kRows * w.D;
  const GatePartials partial{ctx.temporary({rows * width}).f32(),
                             ctx.temporary({rows * kRows}).f32(),
                             ctx.temporary({int64_t{blocks.x} * w.H}).f32()};
  if (ctx.dry) return;
  with_gate_kernel(x.dtype, w.D, [&]<class T, int Lanes>() {
    launch(rel_gate_back_kernel<T, Lanes>, blocks, dim3(32 * kWarps), sizeof(GateBackShared<Lanes>),
           ctx.gpu->stream(), dgate.f32(), head_matrix<T>(x, w.D), x.rows(), w,
           head_matrix<T>(grads.x.to, w.D), grads.x.add, partial);
  });
  if (grads.weight) sum_partials(ctx, partial.weight, rows, width, width, grads.weight);
  if (grads.bias) sum_partials(ctx, partial.bias, rows, kRows, kRows, grads.bias);
  if (grads.scale) sum_partials(ctx, partial.scale, blocks.x, w.H, w.H, grads.scale);
}

}  // namespace sft::cuda
