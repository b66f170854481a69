// conv_taps.cu: weights of convolutions in another order. A thread per element; one side of it is
// read or written in steps of the taps. Once per update.
#include "engine/cuda/conv_taps.h"

#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void lay_taps_kernel(const float* weight, TapLayout l, T* to) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= l.rows * l.taps * l.columns) return;
  const int64_t c = i % l.columns, q = i / l.columns % l.taps, r = i / l.columns / l.taps;
  to[i] = from_float<T>(weight[r / l.group * l.group_step + r % l.group * l.row_step + l.first +
                               q * l.tap_step + c * l.column_step]);
}

__global__ void sum_taps_kernel(const float* sums, int64_t rows, int64_t group_rows, int splits,
                                int64_t taps, int64_t columns, float* dweight, bool add) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x, width = taps * columns;
  if (i >= rows * width) return;
  const int64_t r = i / width, n = i % width, group = r / group_rows;
  float* to = dweight + (r * columns + n % columns) * taps + n / columns;
  float sum = add ? *to : 0;
  for (int s = 0; s < splits; ++s)
    sum += sums[((group * splits + s) * group_rows + r % group_rows) * width + n];
  *to = sum;
}

template <class T>
void lay(Context& ctx, const float* weight, const TapLayout& layout, T* to) {
  launch(lay_taps_kernel<T>, dim3(ceil_div(layout.count(), kThreads)), dim3(kThreads), 0,
         ctx.gpu->stream(), weight, layout, to);
}

}  // namespace

void lay_taps(Context& ctx, const float* weight, const TapLayout& layout, float* to) {
  lay(ctx, weight, layout, to);
}
void lay_taps(Context& ctx, const float* weight, const TapLayout& layout, bf16* to) {
  lay(ctx, weight, layout, to);
}

void sum_taps(Context& ctx, const float* sums, int64_t rows, int64_t groups, int splits,
              int64_t taps, int64_t columns, Grad dweight) {
  launch(sum_taps_kernel, dim3(ceil_div(rows * taps * columns, kThreads)), dim3(kThreads), 0,
         ctx.gpu->stream(), sums, rows, rows / groups, splits, taps, columns, dweight.to.f32(),
         dweight.add);
}

}  // namespace sft::cuda
