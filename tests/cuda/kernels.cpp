// What kernels are made of (tests/cuda/kernels.cu) against plain loops; where they are emulated, in
// every order of threads, which must give the same bits.
#include "tests/cuda/kernels.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <numbers>
#include <numeric>
#include <string>
#include <vector>

#include "engine/cuda/emulator/thread_order.h"
#include "engine/cuda/runtime.h"
#include "engine/rng.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

using cuda::emulator::set_thread_order;
using cuda::emulator::ThreadOrder;
using test::Bf16;

cuda::Runtime& gpu() { return shared_gpu(); }

// Skips the case where there is neither a device nor the emulator.
bool skipped() {
  const std::string why = no_gpu();
  if (!why.empty()) test::skip(why);
  return !why.empty();
}

template <class T>
class Buffer {
 public:
  explicit Buffer(const std::vector<T>& values)
      : count_(values.size()), data_(static_cast<T*>(gpu().allocate(bytes()))) {
    gpu().upload(data_, values.data(), bytes());
  }
  ~Buffer() { gpu().release(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() { return data_; }
  std::vector<T> read() const {
    std::vector<T> values(count_);
    gpu().download(values.data(), data_, bytes());
    return values;
  }

 private:
  int64_t bytes() const { return static_cast<int64_t>(count_ * sizeof(T)); }

  size_t count_;
  T* data_;
};

// What f writes into a buffer that holds `before`, in each order of threads.
template <class T>
std::vector<T> result(const std::vector<T>& before, const std::function<void(T*)>& f) {
  std::vector<T> first;
  for (ThreadOrder order : {ThreadOrder::forward, ThreadOrder::backward, ThreadOrder::shuffled}) {
    if (set_thread_order) set_thread_order(order);
    Buffer<T> out(before);
    f(out.data());
    const std::vector<T> now = out.read();
    if (order == ThreadOrder::forward) first = now;
    EXPECT(std::memcmp(first.data(), now.data(), now.size() * sizeof(T)) == 0);
  }
  if (set_thread_order) set_thread_order(ThreadOrder::forward);
  return first;
}

float wide(Bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest, ties to even, by looking at both neighbours.
Bf16 narrow(float x) {
  if (std::isnan(x)) return {0x7FFF};
  const uint32_t bits = std::bit_cast<uint32_t>(x), half = bits & 0xFFFFu;
  uint16_t upper = static_cast<uint16_t>(bits >> 16);
  if (half > 0x8000u || (half == 0x8000u && upper % 2)) ++upper;
  return {upper};
}

std::vector<float> random_floats(int count, uint32_t site) {
  Draws draws(3, 0, 0, site);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& v : values) v = static_cast<float>(draws.normal());
  return values;
}

std::vector<Bf16> random_bf16(int count, uint32_t site) {
  std::vector<Bf16> values;
  for (float v : random_floats(count, site)) values.push_back(narrow(v));
  return values;
}

}  // namespace

TEST_CASE("cuda kernels: sums and maxima of a warp and a block") {
  if (skipped()) return;
  for (int threads : {32, 96, 1024}) {
    const int rows = 3, count = 777;
    const std::vector<float> x = random_floats(rows * count, 1);
    Buffer<float> from(x);
    const auto out = result<double>(std::vector<double>(rows * 3), [&](double* to) {
      test::launch_row_sums(gpu().stream(), from.data(), rows, count, threads, to);
    });
    for (int r = 0; r < rows; ++r) {
      const auto row = x.begin() + r * count;
      const double sum = std::accumulate(row, row + count, 0.0);
      EXPECT(std::abs(out[r * 3] - sum) < 1e-4);
      EXPECT(out[r * 3 + 1] == *std::max_element(row, row + count));
      EXPECT(std::abs(out[r * 3 + 2] - sum) < 1e-12 * count);
    }
  }
}

TEST_CASE("cuda kernels: shuffles and votes") {
  if (skipped()) return;
  const auto out = result<uint32_t>(
      std::vector<uint32_t>(448), [](uint32_t* to) { test::launch_shuffles(gpu().stream(), to); });
  for (uint32_t l = 0; l < 32; ++l) {
    EXPECT(out[l] == 30);
    EXPECT(out[32 + l] == (l == 0 ? 0 : l - 1) * 10);
    EXPECT(out[64 + l] == (l >= 30 ? l : l + 2) * 10);
    EXPECT(out[96 + l] == (l ^ 5) * 10);
    EXPECT(out[128 + l] == 0xAAAAAAAAu);
    EXPECT(out[160 + l] == 0);
    EXPECT(out[192 + l] == 1);
    EXPECT(out[224 + l] == (l < 8 ? 280 : l * 10));
    EXPECT(out[256 + l] == 496);
    EXPECT(static_cast<int>(out[288 + l]) == -26);
    EXPECT(out[320 + l] == 31);
    EXPECT(out[352 + l] == 6);
    EXPECT(out[384 + l] == 10);
    EXPECT(out[416 + l] == 0x11111111u << l % 4);
  }
}

TEST_CASE("cuda kernels: votes of a block") {
  if (skipped()) return;
  for (int holding : {0, 5, 50}) {
    const int threads = 50;
    std::vector<int> x(threads);
    std::fill_n(x.begin(), holding, 1);
    Buffer<int> from(x);
    const auto out = result<int>(std::vector<int>(threads * 3), [&](int* to) {
      test::launch_block_votes(gpu().stream(), from.data(), threads, to);
    });
    for (int t = 0; t < threads; ++t) {
      EXPECT(out[t * 3] == holding);
      EXPECT((out[t * 3 + 1] != 0) == (holding > 0));
      EXPECT((out[t * 3 + 2] != 0) == (holding == threads));
    }
  }
}

TEST_CASE("cuda kernels: atomics in shared and global memory") {
  if (skipped()) return;
  const int count = 1000, bins = 7;
  Draws draws(1, 0, 0, 0);
  std::vector<int> values(count), wanted(bins);
  for (int& v : values) ++wanted[v = static_cast<int>(draws.below(bins))];
  Buffer<int> from(values);
  Buffer<int> largest({-1});
  Buffer<float> sum({0});
  const auto counts = result<int>(std::vector<int>(bins), [&](int* to) {
    test::launch_histogram(gpu().stream(), from.data(), count, bins, to, largest.data(),
                           sum.data());
  });
  EXPECT(counts == wanted);
  EXPECT(largest.read()[0] == 6);
  EXPECT(sum.read()[0] == 3.f * std::accumulate(values.begin(), values.end(), 0));
}

TEST_CASE("cuda kernels: vectors of 8 elements, and the rounding of bf16") {
  if (skipped()) return;
  const std::vector<float> x = random_floats(1000, 2);
  Buffer<float> from(x);
  const auto y = result<float>(
      x, [&](float* to) { test::launch_scale(gpu().stream(), from.data(), 3, 1000, to); });
  for (size_t i = 0; i < x.size(); ++i) EXPECT(y[i] == 3 * x[i]);

  std::vector<Bf16> halves = random_bf16(1000, 3);
  const float infinity = std::numeric_limits<float>::infinity();
  const float special[] = {0.f, -0.f, infinity, -infinity, NAN, 3e38f, 1e-39f, 1.0078125f};
  std::transform(std::begin(special), std::end(special), halves.begin(), narrow);
  Buffer<Bf16> from_halves(halves);
  // Products on both sides of ties (1 + 2^-8), and on ties between even and odd neighbours (1.5).
  for (float factor : {1.00390625f, 1.5f}) {
    const auto z = result<Bf16>(halves, [&](Bf16* to) {
      test::launch_scale(gpu().stream(), from_halves.data(), factor, 1000, to);
    });
    for (size_t i = 0; i < z.size(); ++i)
      EXPECT(z[i].bits == narrow(factor * wide(halves[i])).bits);
  }
}

TEST_CASE("cuda kernels: a pipeline of cp.async, ldmatrix and mma") {
  if (skipped()) return;
  struct Size {
    int M, N, K;
  };
  for (const Size& size : {Size{64, 64, 32}, Size{24, 136, 72}, Size{200, 8, 104}}) {
    const auto [M, N, K] = size;
    const std::vector<Bf16> a = random_bf16(M * K, 4), b = random_bf16(K * N, 5);
    for (int form = 0; form < 4; ++form) {
      const bool a_by_k = form % 2, b_by_k = form / 2;
      std::vector<Bf16> stored_a(a.size()), stored_b(b.size());
      for (int k = 0; k < K; ++k) {
        for (int m = 0; m < M; ++m) stored_a[a_by_k ? k * M + m : m * K + k] = a[m * K + k];
        for (int n = 0; n < N; ++n) stored_b[b_by_k ? k * N + n : n * K + k] = b[k * N + n];
      }
      Buffer<Bf16> A(stored_a), B(stored_b);
      const auto c = result<float>(std::vector<float>(M * N), [&](float* to) {
        test::launch_matmul(gpu().stream(), A.data(), B.data(), M, N, K, a_by_k, b_by_k, to);
      });
      double worst = 0;
      for (int m = 0; m < M; ++m)
        for (int n = 0; n < N; ++n) {
          double sum = 0;
          for (int k = 0; k < K; ++k) sum += double{wide(a[m * K + k])} * wide(b[k * N + n]);
          worst = std::max(worst, std::abs(c[m * N + n] - sum));
        }
      EXPECT(worst < 1e-5 * K);
    }
  }
}

TEST_CASE("cuda kernels: named barriers between warps") {
  if (skipped()) return;
  const std::vector<float> x = random_floats(32 * 9, 6);
  Buffer<float> from(x);
  const auto y = result<float>(std::vector<float>(x.size()), [&](float* to) {
    test::launch_relay(gpu().stream(), from.data(), 9, to);
  });
  for (size_t i = 0; i < x.size(); ++i) EXPECT(y[i] == 2 * x[i]);
}

TEST_CASE("cuda kernels: GELU and its slope") {
  if (skipped()) return;
  std::vector<float> x{0, INFINITY, -INFINITY, NAN};
  for (int i = -1600; i <= 1600; ++i) x.push_back(static_cast<float>(i) / 100 + 0.003f);
  const auto count = static_cast<int>(x.size());
  Buffer<float> from(x);
  const auto out = result<float>(std::vector<float>(x.size() * 2), [&](float* to) {
    test::launch_gelu(gpu().stream(), from.data(), count, to);
  });
  EXPECT((out[0] == 0 && out[2] == INFINITY && std::abs(out[4]) < 1e-30));
  EXPECT((std::isnan(out[6]) && std::isnan(out[7])));
  for (size_t i = 4; i < x.size(); ++i) {
    const double t = x[i], phi = std::erfc(-t / std::sqrt(2.0)) / 2;
    const double slope = phi + t * std::exp(-t * t / 2) / std::sqrt(2 * std::numbers::pi);
    EXPECT(std::abs(out[2 * i] - t * phi) < 3e-7 * std::max(1.0, std::abs(t)));
    EXPECT(std::abs(out[2 * i + 1] - slope) < 6e-7);
  }
}

TEST_CASE("cuda kernels: the random numbers of the CPU") {
  if (skipped()) return;
  const uint64_t seed = 0x123456789ABCDEFu;
  const auto out = result<uint32_t>(std::vector<uint32_t>(300), [&](uint32_t* to) {
    test::launch_philox(gpu().stream(), seed, 5, 6, 7, 300, to);
  });
  for (int t = 0; t < 300; ++t)
    EXPECT(out[t] == bits16(philox(seed, static_cast<uint32_t>(t / 8), 5, 6, 7), t % 8));
}

}  // namespace sft
