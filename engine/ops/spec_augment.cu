// spec_augment.cu: rows warped in time, then bands of columns and spans of frames set to zero.
//
// Layout   x, y, dy, dx [T, C] f32 or bf16, any C; plan [B, 2 + 2 masks] i32
// Work     a thread draws an utterance's plan: on the device, because it differs from update to
//          update, which a replayed step must see. Forward: a warp per row adds up to four rows.
//          Backward: a warp per row of dx gathers from the rows that read it, at most 2 x 4 (a warp
//          at most doubles the number of frames)
// Cost     2TC elements forward (rows are read again out of L2 where they are warped), 2TC going
//          back (3TC when added to): memory-bound
// Numbers  f32 sums in the order of frames; weights in f64, rounded; the same bits every run
#include <algorithm>

#include "engine/cuda/lists.h"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/spec_augment_plan.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;  // rows of a block

// A batch as kernels take it.
struct Batch {
  SpecAugment options;
  int32_t* plans;
  const int32_t* starts;  // [B + 1]
  int B, C;

  __device__ SpecPlan plan(int b) const {
    return {options, plans + b * SpecPlan::width(options), starts[b + 1] - starts[b], C};
  }
};

__global__ void draw_plans_kernel(Batch batch, const int32_t* utterances, const Rng* rng,
                                  uint32_t site) {
  const int b = blockIdx.x * 32 + lane();
  if (b >= batch.B) return;
  batch.plan(b).draw(Draws(rng->seed, utterances[b], rng->update, site));
}

// to += weight row, elements [c, c + 8).
template <class T>
__device__ __forceinline__ void add_weighted(Matrix<T> x, int64_t row, float weight, int c, int C,
                                             Float8& to) {
  const Float8 value = load_row(x.row(row), c, C, x.whole);
#pragma unroll
  for (int k = 0; k < 8; ++k) to.v[k] += weight * value.v[k];
}

__device__ __forceinline__ void hide_columns(const SpecPlan& plan, int c, Float8& values) {
#pragma unroll
  for (int k = 0; k < 8; ++k)
    if (plan.hidden_column(c + k)) values.v[k] = 0;
}

template <class T>
__global__ void spec_augment_forward_kernel(Matrix<T> x, Batch batch, Matrix<T> y) {
  const SpecPlan plan = batch.plan(blockIdx.y);
  const int t = blockIdx.x * kWarps + warp(), C = batch.C;
  if (t >= plan.T) return;
  const int64_t first = batch.starts[blockIdx.y];
  const bool hidden = plan.hidden(t);
  const ResampleTaps taps = plan.taps(t);
  for (int c = lane() * 8; c < C; c += 256) {
    Float8 sum{};
#pragma unroll
    for (int k = 0; k < 4; ++k)  // without a warp three weights are zero
      if (taps.weights[k] != 0 && !hidden)
        add_weighted(x, first + taps.rows[k], taps.weights[k], c, C, sum);
    hide_columns(plan, c, sum);
    store_row(y.row(first + t), c, C, y.whole, sum);
  }
}

// Frames that may read frame r: those of its side of the warp, at most 2.5 frames of the source
// away.
struct Readers {
  int begin, end;
};
__device__ __forceinline__ Readers readers(const SpecPlan& plan, int r) {
  const bool right = r >= plan.centre();
  const int before = right ? plan.moved() : 0, after = right ? plan.T : plan.moved();
  const int source = r - (right ? plan.centre() : 0);
  const int m = right ? plan.T - plan.centre() : plan.centre();
  const double ratio = static_cast<double>(after - before) / m;
  const int begin = before + static_cast<int>(floor((source - 1.5) * ratio - 0.5)) - 1;
  const int end = before + static_cast<int>(floor((source + 2.5) * ratio - 0.5)) + 2;
  return {max(begin, before), min(end, after)};
}

template <class T>
__global__ void spec_augment_backward_kernel(Matrix<T> dy, Batch batch, Matrix<T> dx, bool add) {
  const SpecPlan plan = batch.plan(blockIdx.y);
  const int r = blockIdx.x * kWarps + warp(), C = batch.C;
  if (r >= plan.T) return;
  const int64_t first = batch.starts[blockIdx.y];
  const Readers from = readers(plan, r);
  for (int c = lane() * 8; c < C; c += 256) {
    Float8 sum{};
    for (int t = from.begin; t < from.end; ++t) {
      if (plan.hidden(t)) continue;
      const ResampleTaps taps = plan.taps(t);
      float weight = 0;
      for (int k = 0; k < 4; ++k) weight += taps.rows[k] == r ? taps.weights[k] : 0;
      if (weight != 0) add_weighted(dy, first + t, weight, c, C, sum);
    }
    hide_columns(plan, c, sum);
    if (add) add_weighted(dx, first + r, 1, c, C, sum);
    store_row(dx.row(first + r), c, C, dx.whole, sum);
  }
}

Batch batch(Context& ctx, const SpecAugment& options, Tensor plan, const Segments& segments,
            int64_t C) {
  return {options, plan.as<int32_t>(), on_device(ctx, segments.starts), segments.batch(),
          static_cast<int>(C)};
}

dim3 rows_grid(const Segments& segments) {
  return dim3(ceil_div(segments.longest(), kWarps), segments.batch());
}

}  // namespace

void spec_augment_forward(Context& ctx, Tensor x, const SpecAugment& options,
                          const Segments& segments, const SpecAugmentOut& out) {
  ScratchScope scratch(ctx.scratch);
  const Batch all = batch(ctx, options, out.plan, segments, x.width());
  const int32_t* utterances = on_device(ctx, segments.utterances);
  const Rng* rng = on_device(ctx, std::span<const Rng>(&ctx.rng, 1));
  if (ctx.dry) return;
  launch(draw_plans_kernel, dim3(ceil_div(all.B, 32)), dim3(32), 0, ctx.gpu->stream(), all,
         utterances, rng, fnv1a("specaugment"));
  with_element(x.dtype, [&]<class T>() {
    launch(spec_augment_forward_kernel<T>, rows_grid(segments), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<T>(x), all, matrix<T>(out.y));
  });
}

void spec_augment_backward(Context& ctx, Tensor dy, Tensor plan, const SpecAugment& options,
                           const Segments& segments, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const Batch all = batch(ctx, options, plan, segments, dy.width());
  if (ctx.dry) return;
  with_element(dy.dtype, [&]<class T>() {
    launch(spec_augment_backward_kernel<T>, rows_grid(segments), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<T>(dy), all, matrix<T>(dx.to), dx.add);
  });
}

}  // namespace sft::cuda
