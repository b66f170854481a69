#include <algorithm>

#include "bench/ceilings.h"
#include "bench/spread.h"
#include "engine/arena.h"
#include "engine/formats/numbers.h"
#include "engine/rng.h"

namespace sft {
namespace {

constexpr int64_t kBlock = 1 << 16;  // random numbers, repeated

// [n, n] of random numbers.
Tensor random_matrix(cuda::Runtime& gpu, Arena& memory, int64_t n, Dtype dtype) {
  const Tensor to = memory.tensor({n, n}, dtype, /*dry=*/true);
  const int64_t count = std::min(kBlock, n * n), total = bytes_of(dtype, n * n);
  std::vector<float> numbers(count);
  Draws draws(0, 0, 0, fnv1a("bench.product"));
  for (float& x : numbers) x = static_cast<float>(draws.normal());
  std::vector<std::byte> bytes(bytes_of(dtype, count));
  from_f32(numbers.data(), dtype, bytes.data(), count);
  gpu.upload(to.data, bytes.data(), bytes_of(dtype, count));
  auto* begin = static_cast<std::byte*>(to.data);
  for (int64_t done = bytes_of(dtype, count); done < total; done *= 2)
    gpu.copy(begin + done, begin, std::min(done, total - done));
  return to;
}

// The best amount per second over regions of at least a hundredth of the time; f queues work.
template <class F>
double best_rate(cuda::Runtime& gpu, double seconds, double amount, F&& f) {
  f();  // libraries load, clocks rise
  double best = 0;
  int calls = 1;
  for (const Stopwatch all; all.seconds() < seconds;) {
    gpu.synchronize();
    const Stopwatch watch;
    for (int i = 0; i < calls; ++i) f();
    gpu.synchronize();
    const double region = watch.seconds();
    best = std::max(best, calls * amount / region);
    if (region < seconds / 100) calls *= 2;
  }
  return best;
}

double product(cuda::Runtime& gpu, const DeviceSizes& sizes, Dtype dtype) {
  const int64_t n = sizes.product;
  Arena memory(3 * bytes_of(dtype, (n + 64) * (n + 64)) + 4096, false, &gpu);
  const Tensor a = random_matrix(gpu, memory, n, dtype), b = random_matrix(gpu, memory, n, dtype),
               c = memory.tensor({n, n}, dtype, /*dry=*/true);
  const cuda::Gemm gemm{.M = n,
                        .N = n,
                        .K = n,
                        .A = a.data,
                        .lda = n,
                        .B = b.data,
                        .ldb = n,
                        .in = dtype,
                        .C = c.data,
                        .ldc = n,
                        .out = dtype};
  return best_rate(gpu, sizes.seconds, 2.0 * static_cast<double>(n * n * n),
                   [&] { gpu.gemm(gemm); });
}

double copy(cuda::Runtime& gpu, const DeviceSizes& sizes) {
  Arena memory(2 * sizes.copy + 4096, false, &gpu);
  void *from = memory.take(sizes.copy), *to = memory.take(sizes.copy);
  gpu.fill(from, 0x3f, sizes.copy);
  return best_rate(gpu, sizes.seconds, 2.0 * static_cast<double>(sizes.copy),
                   [&] { gpu.copy(to, from, sizes.copy); });
}

}  // namespace

double Ceilings::arithmetic() const {
  if (!device) return math == Math::exact ? fma_all : narrow_all;
  return device->math == Math::bf16 ? device->bf16 : device->f32;
}

double Ceilings::bandwidth() const { return device ? device->copy : copy; }

DeviceCeilings measure_device(cuda::Runtime& gpu, Math math, const DeviceSizes& sizes) {
  return {gpu.name(), math, product(gpu, sizes, Dtype::bf16), product(gpu, sizes, Dtype::f32),
          copy(gpu, sizes)};
}

}  // namespace sft
