// conv_stem.cu: the first convolution of a front end, from one channel, with its norm and GELU.
//
// Layout   samples [S] f32 in slots; y, dy [T0, C] f32 or bf16, C <= 512; weight [C, 1, K],
//          K <= 16, mean, rstd [B, C] and all other parameters f32
// Work     group norm: sums of products of the samples of each window, kParts blocks per utterance;
//          mean and variance of each channel from these. Then blocks of 256 threads, 16 rows at a
//          time: a thread convolves 4 channels x 8 rows (weights in registers, the norm folded into
//          them) into shared memory, and a warp per row norms over channels, applies GELU, stores.
//          backward: the same rows again; then a thread owns 2 channels and sums over the rows
// Cost     y is written once and nothing else is large: 2 T0 C bytes as bf16. About 140
//          instructions for 4 channels of a row (GELU 80, FMA 40): bound by issuing them
// Numbers  f64 statistics (a quiet signal on an offset keeps its bits), f32 sums in a fixed order
#include <algorithm>

#include "engine/cuda/conv_rows.cuh"
#include "engine/cuda/gelu.cuh"
#include "engine/cuda/partials.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/row_norm.cuh"
#include "engine/ops/conv_stem.h"

namespace sft::cuda {
namespace {

constexpr int kMaxTaps = 16, kMaxChannels = 512;
constexpr int kParts = 16;     // blocks that share the products of an utterance
constexpr int kWindows = 256;  // that such a block works on at a time
constexpr int kThreads = 256, kRows = 16;
constexpr int kTiles = 4;      // of kRows rows, of a forward block; backward: about twice as many
constexpr int kEntries = 288;  // room for (K + 1) K sums of products
constexpr int kLongest = kRows * kMaxTaps;  // samples of a tile of rows

// ---- statistics of the group norm

struct ProductsShared {
  double samples[kWindows * kMaxTaps + kMaxTaps];
  double slices[512];
};

// partial [B, kParts, kEntries]: entry k K + l is the sum of x[k] x[l] over windows, K K + l that
// of x[l]. A thread per entry and slice of the windows.
__global__ void stem_products_kernel(const float* samples, ConvRows rows, double* partial) {
  ProductsShared& shared = shared_memory<ProductsShared>();
  const int K = rows.kernel, stride = rows.stride, entries = (K + 1) * K;
  const int padded = (entries + 31) / 32 * 32, slices = blockDim.x / padded;
  const int entry = threadIdx.x % padded, slice = threadIdx.x / padded;
  const int k = entry / K, l = entry % K, b = blockIdx.y, count = rows.count(b);
  const float* x = samples + rows.starts[b];
  double sum = 0;
  for (int first = blockIdx.x * kWindows; first < count; first += kParts * kWindows) {
    const int windows = min(kWindows, count - first), there = (windows - 1) * stride + K;
    __syncthreads();
    for (int i = threadIdx.x; i < there; i += blockDim.x)
      shared.samples[i] = x[int64_t{first} * stride + i];
    __syncthreads();
    if (entry >= entries) continue;
    for (int w = slice; w < windows; w += slices) {
      const double* window = shared.samples + w * stride;
      sum += k < K ? window[k] * window[l] : window[l];
    }
  }
  shared.slices[threadIdx.x] = sum;
  __syncthreads();
  if (slice != 0) return;
  for (int s = 1; s < slices; ++s) sum += shared.slices[s * padded + entry];
  if (entry < kEntries) partial[(b * int64_t{kParts} + blockIdx.x) * kEntries + entry] = sum;
}

// sums [B, kEntries].
__global__ void stem_sums_kernel(const double* partial, int entries, double* sums) {
  const int entry = threadIdx.x;
  if (entry >= entries) return;
  double sum = 0;
  for (int part = 0; part < kParts; ++part)
    sum += partial[(blockIdx.x * int64_t{kParts} + part) * kEntries + entry];
  sums[blockIdx.x * int64_t{kEntries} + entry] = sum;
}

// Mean and rstd of a channel without its bias: w^T centre, w^T covariance w.
__global__ void stem_statistics_kernel(const double* sums, const float* weight, ConvRows rows,
                                       float eps, int C, float* mean, float* rstd) {
  const int c = blockIdx.x * kThreads + threadIdx.x, b = blockIdx.y, K = rows.kernel;
  if (c >= C) return;
  const double* of = sums + b * int64_t{kEntries};
  const double n = max(1, rows.count(b));
  double m = 0, square = 0;
  for (int k = 0; k < K; ++k) {
    const double wk = weight[c * K + k];
    m += wk * of[K * K + k];
    for (int l = 0; l < K; ++l) {
      const double covariance = of[k * K + l] / n - of[K * K + k] / n * (of[K * K + l] / n);
      square += wk * covariance * weight[c * K + l];
    }
  }
  mean[b * int64_t{C} + c] = static_cast<float>(m / n);
  rstd[b * int64_t{C} + c] = static_cast<float>(1 / sqrt(max(square, 0.0) + eps));
}

// ---- rows of the convolution

// v = u scale + shift. Group norm: scale = rstd (times weight), shift = -mean scale (+ bias), of
// the utterance; else scale = 1, shift = bias.
struct Fold {
  const float* mean;  // [B, C]; null: no group norm
  const float* rstd;
  const float* weight;  // [C], may be null
  const float* bias;    // [C], may be null
};

struct Affine {
  const float* weight;  // [C]; null: none
  const float* bias;
};

template <int kTaps>
struct Channels {  // of a thread: 4 neighbours
  float weight[4][kTaps];
  float shift[4];

  __device__ void load(const float* weights, const Fold& fold, int b, int c0, int C, int K) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int c = min(c0 + i, C - 1);
      float scale = 1;
      shift[i] = 0;
      if (fold.mean) {
        scale = fold.rstd[b * int64_t{C} + c] * (fold.weight ? fold.weight[c] : 1);
        shift[i] = -fold.mean[b * int64_t{C} + c] * scale;
      }
      if (fold.bias) shift[i] += fold.bias[c];
#pragma unroll
      for (int k = 0; k < kTaps; ++k) weight[i][k] = k < K ? weights[c * K + k] * scale : 0;
    }
  }
};

struct Tile {
  alignas(16) float u[kRows][kMaxChannels];
  float samples[kLongest];
};

// tile.samples = those from x[first] on, zeros behind the last one.
__device__ __forceinline__ void stage_samples(const float* x, int64_t first, int64_t end,
                                              int stride, Tile& tile) {
  for (int i = threadIdx.x; i < kRows * stride + kMaxTaps - stride; i += kThreads)
    tile.samples[i] = first + i < end ? x[first + i] : 0;
}

// tile.u of row r, channels c0 ... c0 + 3.
template <int kTaps>
__device__ __forceinline__ void convolve(const Channels<kTaps>& channels, int r, int stride, int c0,
                                         Tile& tile) {
  float sums[4] = {channels.shift[0], channels.shift[1], channels.shift[2], channels.shift[3]};
#pragma unroll
  for (int k = 0; k < kTaps; ++k) {
    const float x = tile.samples[r * stride + k];
#pragma unroll
    for (int i = 0; i < 4; ++i) sums[i] += channels.weight[i][k] * x;
  }
  *reinterpret_cast<float4*>(&tile.u[r][c0]) = make_float4(sums[0], sums[1], sums[2], sums[3]);
}

constexpr int kV = kMaxChannels / 256;  // vectors of 8 that a lane holds of a row

__device__ __forceinline__ void load_u(const Tile& tile, int r, int C, Float8 (&values)[kV]) {
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = (i * 32 + lane()) * 8;
    values[i] = load8(&tile.u[r][c]);
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (c + k >= C) values[i].v[k] = 0;
  }
}

// ---- forward

template <class T, int kTaps>
__global__ void stem_forward_kernel(const float* samples, int64_t end, const float* weight,
                                    Fold fold, Affine norm, float eps, ConvRows rows, int64_t count,
                                    int C, Matrix<T> y) {
  Tile& tile = shared_memory<Tile>();
  const int c0 = threadIdx.x % 128 * 4, half = threadIdx.x / 128 * (kRows / 2);
  Channels<kTaps> channels;
  int64_t next = -1;  // where another utterance begins
  for (int t = 0; t < kTiles; ++t) {
    const int64_t first = (blockIdx.x * int64_t{kTiles} + t) * kRows;
    if (first >= count) break;
    stage_samples(samples, first * rows.stride, end, rows.stride, tile);
    __syncthreads();
    for (int r = half; r < half + kRows / 2 && first + r < count && c0 < C; ++r) {
      if (first + r >= next) {
        const int b = rows.utterance(first + r);
        next = rows.first(b + 1);
        channels.load(weight, fold, b, c0, C, rows.kernel);
      }
      convolve(channels, r, rows.stride, c0, tile);
    }
    __syncthreads();
    for (int r = warp(); r < kRows && first + r < count; r += kThreads / 32) {
      Float8 values[kV];
      const bool valid = rows.is_valid(first + r);
      load_u(tile, r, C, values);
      const Moments m = norm.weight ? row_moments(values, C, eps) : Moments{0, 1};
#pragma unroll
      for (int i = 0; i < kV; ++i) {
        const int c = (i * 32 + lane()) * 8;
        if (c >= C) break;
#pragma unroll
        for (int k = 0; k < 8; ++k) {
          float v = values[i].v[k];
          if (norm.weight && c + k < C)
            v = (v - m.mean) * m.rstd * norm.weight[c + k] + norm.bias[c + k];
          values[i].v[k] = valid ? gelu(v) : 0;
        }
        store_row(y.row(first + r), c, C, y.whole, values[i]);
      }
    }
  }
}

// ---- backward

// Rows of a partial sum, each [C]: K of gradient * sample, then these.
enum Sum : int { kGradient, kNormWeight, kNormBias, kSums };

// What the gradient goes through on its way to u.
struct Back {
  Affine norm;
  bool group;  // the norm's own backward comes later, from sums over all rows
  float eps;
};

// tile.u of a row becomes the gradient of what the sums are multiplied with: of u; under a group
// norm of its output. sums: those for the norm's parameters.
template <class T>
__device__ __forceinline__ void stem_row_backward(const Matrix<T>& dy, int64_t row, int r,
                                                  const Back& back, int C, Tile& tile,
                                                  Float8 (&dweight)[kV], Float8 (&dbias)[kV]) {
  Float8 u[kV], d[kV] = {};
  load_u(tile, r, C, u);
  const bool layer = back.norm.weight && !back.group;
  const Moments m = layer ? row_moments(u, C, back.eps) : Moments{0, 1};
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = (i * 32 + lane()) * 8;
    if (c < C) d[i] = load_row(dy.row(row), c, C, dy.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const bool affine = back.norm.weight && c + k < C;
      const float normed = c + k < C ? (u[i].v[k] - m.mean) * m.rstd : 0;
      const float gamma = affine ? back.norm.weight[c + k] : 1;
      const float beta = affine ? back.norm.bias[c + k] : 0;
      const float slope = d[i].v[k] * gelu_slope(normed * gamma + beta);
      dweight[i].v[k] += slope * normed;
      dbias[i].v[k] += slope;
      u[i].v[k] = normed;
      d[i].v[k] = layer ? slope * gamma : slope;
    }
  }
  if (layer) row_norm_backward(d, u, C, m.rstd);
#pragma unroll
  for (int i = 0; i < kV; ++i) store8(&tile.u[r][(i * 32 + lane()) * 8], d[i]);
}

// partial [B, gridDim.x, K + kSums, C].
template <class T, int kTaps>
__global__ void stem_backward_kernel(Matrix<T> dy, const float* samples, int64_t end,
                                     const float* weight, Fold fold, Back back, ConvRows rows,
                                     int C, float* partial) {
  Tile& tile = shared_memory<Tile>();
  const int b = blockIdx.y, count = rows.count(b), K = rows.kernel, stride = rows.stride;
  const int c0 = threadIdx.x % 128 * 4, half = threadIdx.x / 128 * (kRows / 2);
  const int own = threadIdx.x * 2;
  float products[kTaps][2] = {}, total[2] = {};
  Float8 dweight[kV] = {}, dbias[kV] = {};
  Channels<kTaps> channels;
  channels.load(weight, fold, b, c0, C, K);
  for (int t = blockIdx.x * kRows; t < count; t += gridDim.x * kRows) {
    const int64_t first = rows.first(b) + t;
    stage_samples(samples, first * stride, end, stride, tile);
    __syncthreads();
    for (int r = half; r < half + kRows / 2; ++r) convolve(channels, r, stride, c0, tile);
    __syncthreads();
    for (int r = warp(); r < kRows && t + r < count; r += kThreads / 32)
      stem_row_backward(dy, first + r, r, back, C, tile, dweight, dbias);
    __syncthreads();
    for (int r = 0; r < kRows && t + r < count; ++r) {
      const float2 g = *reinterpret_cast<const float2*>(&tile.u[r][own]);
      total[0] += g.x, total[1] += g.y;
#pragma unroll
      for (int k = 0; k < kTaps; ++k) {
        const float x = tile.samples[r * stride + k];
        products[k][0] += g.x * x, products[k][1] += g.y * x;
      }
    }
    __syncthreads();
  }
  // The sums of the warps for the norm's parameters meet in the tile: rows 2 w and 2 w + 1.
  static_assert(kRows == 2 * kThreads / 32);
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    store8(&tile.u[2 * warp()][(i * 32 + lane()) * 8], dweight[i]);
    store8(&tile.u[2 * warp() + 1][(i * 32 + lane()) * 8], dbias[i]);
  }
  __syncthreads();
  float* to = partial + (b * int64_t{gridDim.x} + blockIdx.x) * (K + kSums) * C;
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const int c = own + i;
    if (c >= C) break;
#pragma unroll
    for (int k = 0; k < kTaps; ++k)
      if (k < K) to[k * C + c] = products[k][i];
    float norm_weight = 0, norm_bias = 0;
    for (int w = 0; w < kThreads / 32; ++w)
      norm_weight += tile.u[2 * w][c], norm_bias += tile.u[2 * w + 1][c];
    to[(K + kGradient) * C + c] = total[i];
    to[(K + kNormWeight) * C + c] = norm_weight;
    to[(K + kNormBias) * C + c] = norm_bias;
  }
}

// What dweight is made of.
struct Gathered {
  const float* partial;  // [B, parts, K + kSums, C]
  const double* sums;    // [B, kEntries]; null: no group norm
  int parts;

  __device__ double of(int b, int row, int c, int K, int C) const {
    double sum = 0;
    for (int part = 0; part < parts; ++part)
      sum += partial[((b * int64_t{parts} + part) * (K + kSums) + row) * C + c];
    return sum;
  }
};

// A thread per element. Under a group norm, with d the gradient of its output, n rows, xhat = rstd
// (u - mean):
//   du = weight rstd (d - sum(d) / n - xhat sum(d xhat) / n),  dw[k] = sum_t du[t] samples[.. + k].
__global__ void stem_dweight_kernel(Gathered from, const float* weight, Fold fold, ConvRows rows,
                                    int C, float* dweight, bool add) {
  const int i = blockIdx.x * kThreads + threadIdx.x, K = rows.kernel, c = i / K, k = i % K;
  if (c >= C) return;
  double total = 0;
  for (int b = 0; b < rows.batch; ++b) {
    const double n = rows.count(b);
    if (n == 0) continue;
    const double product = from.of(b, k, c, K, C);
    if (!from.sums) {
      total += product;
      continue;
    }
    const double* sums = from.sums + b * int64_t{kEntries};
    const double mean = fold.mean[b * int64_t{C} + c], rstd = fold.rstd[b * int64_t{C} + c];
    double u_sample = -mean * sums[K * K + k];
    for (int l = 0; l < K; ++l) u_sample += weight[c * K + l] * sums[l * K + k];
    total += fold.weight[c] * rstd *
             (product - from.of(b, K + kNormBias, c, K, C) / n * sums[K * K + k] -
              from.of(b, K + kNormWeight, c, K, C) / n * rstd * u_sample);
  }
  dweight[i] = static_cast<float>((add ? dweight[i] : 0) + total);
}

// ---- launchers

const float* data_of(Tensor t) { return static_cast<const float*>(t.data); }

// Sums of products of each utterance's samples, [B, kEntries]; null when dry.
const double* products_of(Context& ctx, Tensor samples, const ConvRows& rows) {
  const int64_t B = rows.batch;
  auto* partial = static_cast<double*>(ctx.scratch.take(B * kParts * kEntries * 8));
  auto* sums = static_cast<double*>(ctx.scratch.take(B * kEntries * 8));
  if (ctx.dry) return nullptr;
  const int entries = (rows.kernel + 1) * rows.kernel, padded = (entries + 31) / 32 * 32;
  launch(stem_products_kernel, dim3(kParts, B), dim3(std::max(1, 512 / padded) * padded),
         sizeof(ProductsShared), ctx.gpu->stream(), samples.f32(), rows, partial);
  launch(stem_sums_kernel, dim3(B), dim3(kEntries), 0, ctx.gpu->stream(), partial, entries, sums);
  return sums;
}

}  // namespace

void conv_stem_forward(Context& ctx, Tensor samples, Tensor weight, Tensor bias, Tensor norm_weight,
                       Tensor norm_bias, const ConvStem& stem, Slots slots,
                       const ConvStemOut& out) {
  const int64_t count = out.y.rows();
  const int C = static_cast<int>(weight.shape[0]), K = static_cast<int>(weight.width());
  ScratchScope scratch(ctx.scratch);
  const ConvRows rows = conv_rows(ctx, slots, K, stem.stride);
  const bool group = stem.norm == StemNorm::group;
  const double* sums = group ? products_of(ctx, samples, rows) : nullptr;
  if (ctx.dry) return;
  if (group)
    launch(stem_statistics_kernel, dim3(ceil_div(C, kThreads), slots.batch()), dim3(kThreads), 0,
           ctx.gpu->stream(), sums, weight.f32(), rows, stem.eps, C, out.mean.f32(),
           out.rstd.f32());
  const Fold fold{data_of(out.mean), data_of(out.rstd), group ? data_of(norm_weight) : nullptr,
                  data_of(group ? norm_bias : bias)};
  const Affine norm = group ? Affine{} : Affine{data_of(norm_weight), data_of(norm_bias)};
  with_element(out.y.dtype, [&]<class T>() {
    launch(K <= 10 ? stem_forward_kernel<T, 10> : stem_forward_kernel<T, kMaxTaps>,
           dim3(ceil_div(count, kTiles * kRows)), dim3(kThreads), sizeof(Tile), ctx.gpu->stream(),
           samples.f32(), samples.count(), weight.f32(), fold, norm, stem.eps, rows, count, C,
           matrix<T>(out.y));
  });
}

void conv_stem_backward(Context& ctx, Tensor dy, Tensor samples, Tensor weight, Tensor bias,
                        Tensor norm_weight, Tensor norm_bias, Tensor mean, Tensor rstd,
                        const ConvStem& stem, Slots slots, Grad dweight, Grad dbias,
                        Grad dnorm_weight, Grad dnorm_bias) {
  const int64_t C = weight.shape[0], K = weight.width(), B = slots.batch();
  ScratchScope scratch(ctx.scratch);
  const ConvRows rows = conv_rows(ctx, slots, K, stem.stride);
  const bool group = stem.norm == StemNorm::group;
  const double* sums = group ? products_of(ctx, samples, rows) : nullptr;
  const int64_t each = dy.rows() / std::max<int64_t>(B, 1);
  const int64_t parts = std::clamp<int64_t>(each / (2 * kTiles * kRows), 1, 32);
  const int64_t width = K + kSums;
  float* partial = ctx.temporary({B * parts * width * C}).f32();
  if (ctx.dry) return;
  // A group norm's weight comes after its sums: the kernel wants what it is multiplied with.
  const Fold fold{data_of(mean), data_of(rstd), nullptr, group ? nullptr : data_of(bias)};
  const Back back{{data_of(norm_weight), data_of(norm_bias)}, group, stem.eps};
  with_element(dy.dtype, [&]<class T>() {
    launch(K <= 10 ? stem_backward_kernel<T, 10> : stem_backward_kernel<T, kMaxTaps>,
           dim3(parts, B), dim3(kThreads), sizeof(Tile), ctx.gpu->stream(), matrix<T>(dy),
           samples.f32(), samples.count(), weight.f32(), fold, back, rows, static_cast<int>(C),
           partial);
  });
  if (dweight)
    launch(stem_dweight_kernel, dim3(ceil_div(C * K, kThreads)), dim3(kThreads), 0,
           ctx.gpu->stream(), Gathered{partial, sums, static_cast<int>(parts)}, weight.f32(),
           Fold{data_of(mean), data_of(rstd), data_of(norm_weight), nullptr}, rows,
           static_cast<int>(C), dweight.to.f32(), dweight.add);
  const auto sum = [&](Grad to, int64_t row) {
    if (to) sum_partials(ctx, partial + row * C, B * parts, width * C, C, to);
  };
  sum(dnorm_weight, K + kNormWeight);
  sum(dnorm_bias, K + kNormBias);
  if (!group) sum(dbias, K + kGradient);
  if (group && dbias && !dbias.add) ctx.gpu->fill(dbias.to.data, 0, dbias.to.bytes());
}

}  // namespace sft::cuda
