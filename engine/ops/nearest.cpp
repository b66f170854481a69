#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/nearest.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cstdint>
#include <limits>

#include "engine/cpu/simd-inl.h"
#include "engine/ops/nearest.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

using Integers = hn::RebindToSigned<Lanes>;
using IntVec = hn::Vec<Integers>;

constexpr int kBlockRows = 6;  // 12 sums + 2 weights + 1 sample: the 16 registers of AVX2

// [K, C] -> panels of two vectors of centroids, each [C, 2 lanes], zeros behind K; and |c|^2 / 2,
// infinite behind K. What they take: K rounded up to 2 lanes.
void pack_centroids(const float* centroids, int64_t K, int64_t C, float* panels,
                    float* half_square) {
  const int64_t width = 2 * lanes();
  for (int64_t k = 0; k < (K + width - 1) / width * width; ++k) {
    double square = 0;
    for (int64_t c = 0; c < C; ++c) {
      const float value = k < K ? centroids[k * C + c] : 0;
      panels[(k / width * C + c) * width + k % width] = value;
      square += double{value} * value;
    }
    half_square[k] =
        k < K ? static_cast<float>(square / 2) : std::numeric_limits<float>::infinity();
  }
}

// The lowest index among the lanes that hold the least score.
int32_t index_of_least(Vec score, IntVec index) {
  const Integers di;
  const auto least = hn::RebindMask(di, hn::Eq(score, hn::MinOfLanes(Lanes(), score)));
  const IntVec most = hn::Set(di, std::numeric_limits<int32_t>::max());
  const int32_t found = hn::GetLane(hn::MinOfLanes(di, hn::IfThenElse(least, index, most)));
  return found == std::numeric_limits<int32_t>::max() ? 0 : found;  // NaN equals nothing
}

template <int R>
void nearest_block(const float* x, int64_t stride, int64_t C, const float* panels,
                   const float* half_square, int64_t K, int32_t* label) {
  const Lanes d;
  const Integers di;
  const int64_t n = lanes();
  Vec best[R];
  IntVec index[R];
  for (int r = 0; r < R; ++r) {
    best[r] = set(std::numeric_limits<float>::infinity());
    index[r] = hn::Zero(di);
  }
  for (int64_t k = 0; k < K; k += 2 * n) {
    const float* panel = panels + k * C;
    Vec low[R], high[R];
    for (int r = 0; r < R; ++r) low[r] = high[r] = zero();
    for (int64_t c = 0; c < C; ++c) {
      const Vec w0 = hn::LoadU(d, panel + c * 2 * n), w1 = hn::LoadU(d, panel + (c * 2 + 1) * n);
      for (int r = 0; r < R; ++r) {
        const Vec v = set(x[r * stride + c]);
        low[r] = hn::MulAdd(v, w0, low[r]);
        high[r] = hn::MulAdd(v, w1, high[r]);
      }
    }
    const auto take = [&](Vec* product, int64_t first) {
      const Vec half = hn::LoadU(d, half_square + first);
      const IntVec here = hn::Iota(di, static_cast<int32_t>(first));
      for (int r = 0; r < R; ++r) {
        const Vec score = hn::Sub(half, product[r]);
        const auto less = hn::Lt(score, best[r]);
        best[r] = hn::IfThenElse(less, score, best[r]);
        index[r] = hn::IfThenElse(hn::RebindMask(di, less), here, index[r]);
      }
    };
    take(low, k);
    take(high, k + n);
  }
  for (int r = 0; r < R; ++r) label[r] = index_of_least(best[r], index[r]);
}

void nearest_rows(const float* x, int64_t stride, int64_t rows, int64_t C, const float* panels,
                  const float* half_square, int64_t K, int32_t* label) {
  int64_t t = 0;
  for (; t + kBlockRows <= rows; t += kBlockRows)
    nearest_block<kBlockRows>(x + t * stride, stride, C, panels, half_square, K, label + t);
  for (; t < rows; ++t)
    nearest_block<1>(x + t * stride, stride, C, panels, half_square, K, label + t);
}

float squared_distance(const float* a, const float* b, int64_t C) {
  Vec total = zero();
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec difference = hn::Sub(load(a + i, n), load(b + i, n));
    total = hn::MulAdd(difference, difference, total);
  });
  return sum(total);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(pack_centroids);
HWY_EXPORT(nearest_rows);
HWY_EXPORT(squared_distance);

constexpr int64_t kRows = 96;         // of a chunk
constexpr int64_t kWidestPanel = 32;  // two vectors of AVX-512

void check_shapes(Tensor x, Tensor centroids) {
  CHECK(centroids.rows() >= 1 && centroids.width() == x.width() && centroids.dense(),
        "nearest: centroids are {}, expected dense [K, {}] for x {}", text(centroids.shape),
        x.width(), text(x.shape));
}

}  // namespace

NearestOut nearest(Context& ctx, Tensor x, Tensor centroids) {
  const int64_t T = x.rows(), C = x.width(), K = centroids.rows();
  check_shapes(x, centroids);
  const NearestOut out{ctx.activation({T}, Dtype::i32), ctx.activation({T})};
  ScratchScope scratch(ctx.scratch);
  const int64_t room = (K + kWidestPanel - 1) / kWidestPanel * kWidestPanel;
  float* panels = ctx.temporary({room * C}).f32();
  float* half_square = ctx.temporary({room}).f32();
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "nearest", 4.0 * (T + K) * C, 2.0 * T * K * C);
  HWY_DYNAMIC_DISPATCH(pack_centroids)(centroids.f32(), K, C, panels, half_square);
  int32_t* label = out.label.as<int32_t>();
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(nearest_rows)
    (x.row(begin), x.row_stride, end - begin, C, panels, half_square, K, label + begin);
    for (int64_t t = begin; t < end; ++t)
      out.distance.f32()[t] =
          HWY_DYNAMIC_DISPATCH(squared_distance)(x.row(t), centroids.row(label[t]), C);
  });
  return out;
}

Tensor squared_distances(Context& ctx, Tensor x, Tensor centroids) {
  check_shapes(x, centroids);
  const int64_t T = x.rows(), C = x.width(), K = centroids.rows();
  const Tensor out = ctx.activation({T, K});
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "squared_distances", 4.0 * T * (C + K), 3.0 * T * K * C);
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t k = 0; k < K; ++k)
        out.row(t)[k] = HWY_DYNAMIC_DISPATCH(squared_distance)(x.row(t), centroids.row(k), C);
  });
  return out;
}

}  // namespace sft
#endif
