#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ceilings.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/conv_tile-inl.h"
#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

constexpr int kChains = 12;  // independent sums: latency times units, within 16 registers

// FLOPs of `steps` rounds of fused multiply-adds on registers; the result goes to `sink`.
double multiply_add(int64_t steps, float a, float b, float* sink) {
  const Vec factor = set(a), term = set(b);
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = set(static_cast<float>(i));
  for (int64_t s = 0; s < steps; ++s)
    for (int i = 0; i < kChains; ++i) sums[i] = hn::MulAdd(sums[i], factor, term);
  for (int i = 1; i < kChains; ++i) sums[0] = hn::Add(sums[0], sums[i]);
  *sink = sum(sums[0]);
  return 2.0 * static_cast<double>(steps * kChains * lanes());
}

constexpr int kTileDepth = 128, kTileStep = kTileDepth + 16;

// FLOPs of `times` products of a tile: 12 rows (or what the registers hold) and two vectors.
double multiply_tile(int64_t times, float* memory) {
  constexpr int kRows = kConvTileRows<2>;
  const int64_t width = 2 * lanes();
  float *b = memory, *a = b + kTileDepth * width, *c = a + kRows * kTileStep;
  for (int64_t i = 0; i < times; ++i)
    conv_tile<2, kTileStep>(a, b, {1, kTileDepth, 0, 1, width}, c, width, true);
  return 2.0 * static_cast<double>(times * kRows * width * kTileDepth);
}

float read_all(const float* from, int64_t n) {
  Vec sums[4] = {zero(), zero(), zero(), zero()};
  const int64_t step = lanes();
  for (int64_t i = 0; i + 4 * step <= n; i += 4 * step)
    for (int k = 0; k < 4; ++k) sums[k] = hn::Add(sums[k], load(from + i + k * step, step));
  return sum(hn::Add(hn::Add(sums[0], sums[1]), hn::Add(sums[2], sums[3])));
}

void copy_all(const float* from, int64_t n, float* to) {
  for_vectors(n, [&](int64_t i, int64_t count) { store(load(from + i, count), to + i, count); });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <omp.h>

#include <algorithm>
#include <vector>

#include "bench/ceilings.h"
#include "bench/spread.h"
#include "engine/arena.h"
#include "engine/cpu/narrow.h"
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(multiply_add);
HWY_EXPORT(multiply_tile);
HWY_EXPORT(read_all);
HWY_EXPORT(copy_all);

constexpr double kSeconds = 0.25;                // for each rate
constexpr double kMoment = 0.02;                 // for each rate of a moment
constexpr int64_t kSteps = 500'000;              // 1 ms and more
constexpr int64_t kBuffer = int64_t{128} << 20;  // bytes, two of them
constexpr int64_t kGrain = int64_t{1} << 20;     // elements

// The highest amount per second, over many short runs of f: a busy machine leaves some alone.
template <class F>
double best_rate(F&& f) {
  double best = 0;
  for (const Stopwatch all; all.seconds() < kSeconds;) {
    const Stopwatch watch;
    const double amount = f();
    best = std::max(best, amount / watch.seconds());
  }
  return best;
}

// The amount per second over a moment, and per second of processor time.
template <class F>
std::pair<double, double> rates_now(F&& f) {
  double amount = 0;
  const double cpu_start = process_cpu_seconds();
  const Stopwatch watch;
  while (watch.seconds() < kMoment) amount += f();
  const double seconds = watch.seconds(), cpu = process_cpu_seconds() - cpu_start;
  return {amount / seconds, amount / std::max(cpu, 1e-3)};
}

double multiply_adds(int threads) {
  double flops = 0;
#pragma omp parallel num_threads(threads) reduction(+ : flops)
  {
    float sink = 0;
    flops += HWY_DYNAMIC_DISPATCH(multiply_add)(kSteps, 0.999f, 0.25f, &sink);
    CHECK(sink > 0, "the sum of positive numbers is {}", sink);
  }
  return flops;
}

double f32_tiles() {
  constexpr int64_t kTimes = 2000, kFloats = 1 << 14;
  double flops = 0;
#pragma omp parallel reduction(+ : flops)
  {
    std::vector<float> memory(kFloats, 0.5f);
    flops += HWY_DYNAMIC_DISPATCH(multiply_tile)(kTimes, memory.data());
  }
  return flops;
}

// A tile that stays in the L1 cache: what the kernels of such products reach at most.
double narrow_tiles(Math math) {
  namespace narrow = cpu::narrow;
  constexpr int64_t kTimes = 4000, kDepth = narrow::kBlock * 2;
  double operations = 0;
#pragma omp parallel reduction(+ : operations)
  {
    Arena memory(1 << 20);
    const narrow::Rows rows = narrow::rows_in(
        memory.take(narrow::row_bytes(narrow::kTileRows, kDepth)), math, narrow::kTileRows, kDepth);
    const narrow::Panels panels =
        narrow::panels_in(memory.take(narrow::panel_bytes(narrow::kTileColumns, kDepth)), math,
                          narrow::kTileColumns, kDepth);
    const std::vector<float> ones(narrow::kTileColumns * kDepth, 1.0f);
    narrow::pack_tile(cpu::ProductRows{ones.data(), ones.data() + ones.size(), kDepth, kDepth},
                      narrow::kTileRows, 0, rows);
    narrow::pack_panel({ones.data(), narrow::kTileColumns, kDepth, kDepth, 1}, 0, panels);
    std::vector<float> sums(narrow::kTileRows * narrow::kTileColumns);
    for (int64_t i = 0; i < kTimes; ++i)
      narrow::multiply(rows, 0, panels, 0, sums.data(), narrow::kTileColumns);
    operations += 2.0 * kTimes * kDepth * narrow::kTileRows * narrow::kTileColumns;
  }
  return operations;
}

double tiles(Math math) { return math == Math::exact ? f32_tiles() : narrow_tiles(math); }

}  // namespace

Ceilings measure_ceilings(Math math) {
  const int all = omp_get_max_threads();
  Ceilings c{best_rate([] { return multiply_adds(1); }),
             best_rate([&] { return multiply_adds(all); })};
  Arena memory(2 * kBuffer);
  constexpr int64_t kCount = kBuffer / static_cast<int64_t>(sizeof(float));
  const Tensor from = memory.tensor({kCount}), to = memory.tensor({kCount});
  cpu::parallel_for(kCount, kGrain, [&](int64_t begin, int64_t end) {
    std::fill(from.f32() + begin, from.f32() + end, 1.0f);
    std::fill(to.f32() + begin, to.f32() + end, 0.0f);
  });
  c.math = math;
  (math == Math::exact ? c.f32_tile_all : c.narrow_all) = best_rate([&] { return tiles(math); });
  c.copy = best_rate([&] {
    cpu::parallel_for(kCount, kGrain, [&](int64_t begin, int64_t end) {
      HWY_DYNAMIC_DISPATCH(copy_all)(from.f32() + begin, end - begin, to.f32() + begin);
    });
    return 2.0 * kBuffer;
  });
  c.read = best_rate([&] {
    cpu::parallel_for(kCount, kGrain, [&](int64_t begin, int64_t end) {
      // the sum is kept, or the loop would go
      to.f32()[begin] = HWY_DYNAMIC_DISPATCH(read_all)(from.f32() + begin, end - begin);
    });
    return 1.0 * kBuffer;
  });
  return c;
}

void MomentProbe::operator()() {
  fma_.push_back(rates_now([] { return multiply_adds(omp_get_max_threads()); }).first);
  const auto [tile, busy] = rates_now([&] { return tiles(ceilings_.math); });
  tile_.push_back(tile), tile_busy_.push_back(busy);
}

void MomentProbe::settle() {
  ceilings_.moments = {spread_of(fma_), spread_of(tile_), spread_of(tile_busy_)};
  double& tile = ceilings_.narrow_all > 0 ? ceilings_.narrow_all : ceilings_.f32_tile_all;
  ceilings_.fma_all = std::max(ceilings_.fma_all, ceilings_.moments.fma.max);
  tile = std::max(tile, ceilings_.moments.tile.max);
}

}  // namespace sft
#endif
