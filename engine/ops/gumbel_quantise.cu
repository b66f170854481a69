// gumbel_quantise.cu: Gumbel-max over groups of codes, the picked rows of the codebook; going back
// as if they had been mixed by the softmax.
//
// Layout   x, dx [N, G V], code, dcode [N, G d] f32 or bf16; codebook, dcodebook [G V, d], soft
//          [N, G V] f32; picks [N, G] i32; temperature [1] f32
// Work     forward: a warp per group of a row, three passes over its V codes, a Philox call for
//          each (four neighbours make the same one). Backward: a product for each group and a warp
//          per group of a row; a warp per code and 32 columns finds the rows that picked it
// Cost     forward 3 NGV f32 written and read in L1, two logarithms and one exponential an element;
//          backward 2 NGVd FLOP in products and GVN picks read out of L2
// Numbers  f32; no atomics: rows are added in their order
#include "engine/ops/gumbel_quantise.h"

#include "engine/cuda/gemm.h"
#include "engine/cuda/runtime.h"
#include "engine/cuda/segments.cuh"
#include "engine/cuda/softmax.cuh"

namespace sft::cuda {
namespace {

struct Noise {
  double start, decay, floor;
  uint32_t site;
};

__global__ void temperature_kernel(Noise noise, const Rng* rng, float* temperature) {
  const double now = noise.start * pow(noise.decay, static_cast<double>(rng->update));
  *temperature = static_cast<float>(now > noise.floor ? now : noise.floor);
}

template <class T>
struct QuantisePass {
  Matrix<T> x, code;
  Matrix<float> soft;  // data null without noise
  const float *codebook, *temperature;
  int32_t* picks;
  DeviceSegments segments;
  const Rng* rng;
  uint32_t site;
  int64_t N;
  int G, V, d;
};

// -ln(-ln u) of column c of a row.
__device__ __forceinline__ float gumbel(const Rng& rng, uint32_t site, uint32_t utterance,
                                        uint32_t first_call, int c) {
  const PhiloxWords words = philox(rng.seed, first_call + c / 4, utterance, rng.update, site);
  const uint32_t low = c % 2 ? words[1] : words[0], high = c % 2 ? words[3] : words[2];
  const uint32_t word = c % 4 < 2 ? low : high;  // an index would put them into memory
  const float u = (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
  return -logf(-logf(u));
}

template <class T>
__global__ void gumbel_quantise_kernel(QuantisePass<T> p) {
  const int64_t i = SoftmaxGroup::number();
  if (i >= p.N * p.G) return;
  const auto [n, g] = SoftmaxGroup::of(i, p.G);
  uint32_t utterance = 0, first_call = 0;
  if (p.soft.data) {
    const int b = p.segments.of(n);
    utterance = static_cast<uint32_t>(p.segments.utterances[b]);
    first_call = static_cast<uint32_t>(n - p.segments.starts[b]) * ((p.G * p.V + 3) / 4);
  }
  const T* x = p.x.row(n) + g * p.V;
  float* soft = p.soft.data ? p.soft.row(n) + g * p.V : nullptr;
  float best = -__builtin_inff();
  int place = p.V;
  for (int v = lane(); v < p.V; v += 32) {
    float s = to_float(x[v]);
    if (soft) soft[v] = s += gumbel(*p.rng, p.site, utterance, first_call, g * p.V + v);
    if (s > best) best = s, place = v;
  }
  const float top = warp_max(best);
  const int first = -warp_max(best == top ? -place : -p.V);
  const int pick = first < p.V ? first : 0;  // nothing but NaN
  if (lane() == 0) p.picks[i] = pick;
  if (soft) warp_softmax(soft, p.V, top, *p.temperature);
  const float* from = p.codebook + (int64_t{g} * p.V + pick) * p.d;
  T* to = p.code.row(n) + g * p.d;
  for (int k = lane(); k < p.d; k += 32) to[k] = from_float<T>(from[k]);
}

template <class T>
__global__ void soft_gradient_kernel(Matrix<float> soft, Matrix<float> products,
                                     const float* temperature, Matrix<T> dx, bool add, int64_t N,
                                     int G, int V) {
  const int64_t i = SoftmaxGroup::number();
  if (i >= N * G) return;
  const auto [n, g] = SoftmaxGroup::of(i, G);
  warp_softmax_gradient(soft.row(n) + g * V, products.row(n) + g * V, V, 1 / *temperature,
                        dx.row(n) + g * V, add);
}

// A warp per code (blockIdx.x) and 32 columns (blockIdx.y).
template <class T>
__global__ void add_picked_kernel(Matrix<T> dcode, const int32_t* picks, int64_t N, int G, int V,
                                  int d, float* dcodebook, bool add) {
  const int g = blockIdx.x / V, v = blockIdx.x % V, c = blockIdx.y * 32 + lane();
  float sum = 0;
  for (int64_t first = 0; first < N; first += 32) {
    const int64_t own = first + lane();
    unsigned found = __ballot_sync(~0u, own < N && picks[own * G + g] == v);
    for (; found; found &= found - 1)
      if (c < d) sum += to_float(dcode.row(first + __ffs(static_cast<int>(found)) - 1)[g * d + c]);
  }
  float* to = dcodebook + blockIdx.x * int64_t{d};
  if (c < d) to[c] = add ? to[c] + sum : sum;
}

}  // namespace

void gumbel_quantise_forward(Context& ctx, Tensor x, Tensor codebook, int groups,
                             const GumbelNoise& noise, const Segments& segments,
                             const GumbelOut& out) {
  ScratchScope scratch(ctx.scratch);
  const DeviceSegments rows = on_device(ctx, segments);
  const Rng* rng = on_device(ctx, std::span<const Rng>(&ctx.rng, 1));
  if (ctx.dry) return;
  const Noise given{noise.start, noise.decay, noise.floor, noise.site};
  launch(temperature_kernel, dim3(1), dim3(1), 0, ctx.gpu->stream(), given, rng,
         out.temperature.f32());
  const int64_t N = x.rows();
  with_element(x.dtype, [&]<class T>() {
    const QuantisePass<T> pass{matrix<T>(x),
                               matrix<T>(out.code),
                               matrix<float>(out.soft),
                               codebook.f32(),
                               out.temperature.f32(),
                               out.picks.as<int32_t>(),
                               rows,
                               rng,
                               noise.site,
                               N,
                               groups,
                               static_cast<int>(codebook.rows() / groups),
                               static_cast<int>(codebook.width())};
    launch(gumbel_quantise_kernel<T>, softmax_grid(N, groups), dim3(32 * kSoftmaxWarps), 0,
           ctx.gpu->stream(), pass);
  });
}

void gumbel_quantise_backward(Context& ctx, Tensor dcode, Tensor codebook, int groups,
                              const GumbelOut& out, Grad dx, Grad dcodebook) {
  const int64_t N = dcode.rows(), codes = codebook.rows(), d = codebook.width(), V = codes / groups;
  ScratchScope scratch(ctx.scratch);
  const Tensor e = dx ? weight_as(ctx, codebook, dcode.dtype) : Tensor();
  const Tensor products = dx ? ctx.temporary({N, codes}) : Tensor();
  if (ctx.dry) return;
  with_element(dcode.dtype, [&]<class T>() {
    if (dcodebook)
      launch(add_picked_kernel<T>,
             dim3(static_cast<unsigned>(codes), static_cast<unsigned>(ceil_div(d, 32))), dim3(32),
             0, ctx.gpu->stream(), matrix<T>(dcode), out.picks.as<int32_t>(), N, groups,
             static_cast<int>(V), static_cast<int>(d), dcodebook.to.f32(), dcodebook.add);
    if (!dx) return;
    for (int g = 0; g < groups; ++g)
      matmul(ctx, dcode.columns(g * d, d), e.slice(g * V, V), products.columns(g * V, V));
    launch(soft_gradient_kernel<T>, softmax_grid(N, groups), dim3(32 * kSoftmaxWarps), 0,
           ctx.gpu->stream(), matrix<float>(out.soft), matrix<float>(products),
           out.temperature.f32(), matrix<T>(dx.to), dx.add, N, groups, static_cast<int>(V));
  });
}

}  // namespace sft::cuda
