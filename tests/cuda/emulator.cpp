// Faults planted in kernels, and what the emulator says of each.
#include <sys/wait.h>
#include <unistd.h>

#include <bit>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "engine/cuda/device.cuh"
#include "engine/cuda/driver.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/runtime.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft::cuda {
namespace {

using emulator::ThreadOrder;

struct Floats {
  float x[64];
};

int self() { return static_cast<int>(threadIdx.x); }

// ---- barriers

constexpr unsigned kDivergentLine = __LINE__ + 3;
void divergent_barrier(float*) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

void early_return(float* out) {
  if (threadIdx.x == 5) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

void half_shuffles(float* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = __shfl_sync(~0u, 1.f, 0);
  } else {
    __syncthreads();
  }
}

void waits_for_nobody(float*) { named_barrier(3, 64); }

void miscounted_barrier(float*) { named_barrier(3, warp() == 0 ? 64 : 96); }

void mixed_functions(float* out) {
  if (threadIdx.x % 2) {
    __syncwarp();
  } else {
    out[threadIdx.x] = static_cast<float>(__ballot_sync(~0u, 1));
  }
}

void mask_without_self(float* out) { out[threadIdx.x] = __shfl_sync(0xFFFF0000u, 1.f, 16); }

// ---- shared memory

void reads_before_writing(float* out) { out[threadIdx.x] = shared_memory<Floats>().x[threadIdx.x]; }

template <bool kBarrier>
void neighbour(float* out) {
  Floats& s = shared_memory<Floats>();
  s.x[threadIdx.x] = static_cast<float>(threadIdx.x);
  if constexpr (kBarrier) __syncthreads();
  out[threadIdx.x] = s.x[(threadIdx.x + 1) % blockDim.x];
}

// Right before the loop closes: the next round overwrites what others still read.
template <bool kSecondBarrier>
void rounds(float* out) {
  Floats& s = shared_memory<Floats>();
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    s.x[threadIdx.x] = static_cast<float>(i * 100 + self());
    __syncthreads();
    sum += s.x[blockDim.x - 1 - threadIdx.x];
    if constexpr (kSecondBarrier) __syncthreads();
  }
  out[threadIdx.x] = sum;
}

void past_global(float* out) { out[threadIdx.x + 32] = 1; }

void unordered_sum(float* out) { atomicAdd(out, std::ldexp(1.f, self())); }

// ---- addresses

void misaligned_load(float* out) { store8(out, load8(out + 1)); }

struct Tile {
  alignas(16) bf16 x[16 * 16];
};

void misaligned_row(float* out) {
  uint32_t r[4];
  ldmatrix_x4(r, shared_memory<Tile>().x + lane());
  out[threadIdx.x] = static_cast<float>(r[0]);
}

void row_in_global(float* out) {
  uint32_t r[2];
  ldmatrix_x2(r, out);
  out[threadIdx.x] = static_cast<float>(r[0]);
}

// ---- cp.async

void never_awaited(float* out) {
  cp_async_16(&shared_memory<Floats>(), out, true);
  cp_async_commit();
}

void never_committed(float* out) {
  cp_async_16(&shared_memory<Floats>(), out, true);
  cp_async_wait<0>();
}

// Two groups on their way, one awaited.
template <int kLeft>
void awaits(float* out) {
  Floats& s = shared_memory<Floats>();
  for (int i = 0; i < 2; ++i) {
    cp_async_16(s.x + i * 4, out, i == 0);
    cp_async_commit();
  }
  cp_async_wait<kLeft>();
  const float seen[2] = {s.x[0], s.x[4]};
  cp_async_wait<0>();
  out[4] = seen[0], out[5] = seen[1];
}

void* stream() { return shared_gpu().stream(); }

std::vector<float> run(void (*kernel)(float*), unsigned threads = 32,
                       size_t shared = sizeof(Floats)) {
  std::vector<float> out(64, 7.f);
  launch(kernel, 1, threads, shared, stream(), out.data());
  return out;
}

std::string error_in(void (*kernel)(float*), unsigned threads = 32,
                     size_t shared = sizeof(Floats)) {
  const Error error = test::error_of([&] { run(kernel, threads, shared); });
  EXPECT(error.kind == Kind::internal);
  return error.message;
}

bool has(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  DOCTEST_MESSAGE("not in it: ", part, "\n", text);
  return false;
}

// The results of the three orders of threads.
std::vector<std::vector<float>> orders(const std::function<std::vector<float>()>& f) {
  std::vector<std::vector<float>> all;
  for (ThreadOrder order : {ThreadOrder::forward, ThreadOrder::backward, ThreadOrder::shuffled}) {
    emulator::set_thread_order(order);
    all.push_back(f());
  }
  emulator::set_thread_order(ThreadOrder::forward);
  return all;
}

bool same(const std::vector<std::vector<float>>& all) {
  return all[0] == all[1] && all[0] == all[2];
}

}  // namespace

TEST_CASE("cuda emulator: barriers that not all threads reach") {
  const std::string divergent = error_in(divergent_barrier);
  const std::string file = "tests/cuda/emulator.cpp:";
  EXPECT(has(divergent, "divergent barrier"));
  EXPECT(has(divergent, "kernel launched at " + file));
  EXPECT(has(divergent, "block (0,0,0)"));
  EXPECT(has(divergent, "[0..15] in __syncthreads at " + file + std::to_string(kDivergentLine)));
  EXPECT(
      has(divergent, "[16..31] in __syncthreads at " + file + std::to_string(kDivergentLine + 2)));
  EXPECT(has(divergent, "divergent_barrier(float*)"));

  const std::string returned = error_in(early_return);
  EXPECT(has(returned, "[0..4] in __syncthreads"));
  EXPECT(has(returned, "[5..5] returned, [6..31] in __syncthreads"));
}

TEST_CASE("cuda emulator: threads that wait for each other") {
  const std::string half = error_in(half_shuffles);
  EXPECT(has(half, "wait for each other"));
  EXPECT(has(half, "[0..15] in __shfl_sync at"));
  EXPECT(has(half, "half_shuffles(float*), [16..31] in __syncthreads at"));
  EXPECT(has(error_in(waits_for_nobody), "deadlock, the threads wait for each other"));
  EXPECT(has(error_in(miscounted_barrier, 64), "others came for 64"));
  EXPECT(has(error_in(mixed_functions), "while other lanes of its mask 0xffffffff are in"));
  EXPECT(has(error_in(mask_without_self), "__shfl_sync with the mask 0xffff0000, in which lane 0"));
}

TEST_CASE("cuda emulator: after an error the next launch is right") {
  for (ThreadOrder order : {ThreadOrder::backward, ThreadOrder::shuffled, ThreadOrder::forward}) {
    emulator::set_thread_order(order);
    for (auto* wrong : {divergent_barrier, early_return, half_shuffles, misaligned_load}) {
      EXPECT(!error_in(wrong).empty());
      const std::vector<float> out = run(neighbour<true>);
      for (int i = 0; i < 32; ++i) EXPECT(out[i] == static_cast<float>((i + 1) % 32));
    }
  }
}

TEST_CASE("cuda emulator: shared memory is NaN until written, and in each block again") {
  for (int again = 0; again < 2; ++again) {
    const std::vector<float> out = run(reads_before_writing);
    for (int i = 0; i < 32; ++i) EXPECT(std::isnan(out[i]));
    run(neighbour<true>);
  }
  EXPECT(has(error_in(reads_before_writing, 32, 16), "the launch gives 16 bytes"));
}

TEST_CASE("cuda emulator: missing barriers give other bits in another order of threads") {
  EXPECT(same(orders([] { return run(neighbour<true>, 64); })));
  EXPECT(!same(orders([] { return run(neighbour<false>, 64); })));
  EXPECT(same(orders([] { return run(rounds<true>, 64); })));
  EXPECT(!same(orders([] { return run(rounds<false>, 64); })));
  EXPECT(!same(orders([] { return run(unordered_sum, 32); })));
}

TEST_CASE("cuda emulator: addresses") {
  EXPECT(has(error_in(misaligned_load), "is not a multiple of 16"));
  EXPECT(has(error_in(misaligned_load), "misaligned_load(float*)"));
  EXPECT(has(error_in(misaligned_row, 32, sizeof(Tile)), "is not a multiple of 16"));
  EXPECT(has(error_in(misaligned_row, 48, sizeof(Tile)), "is not a multiple of 16"));
  EXPECT(has(error_in(row_in_global), "are not in the shared memory of 256 bytes"));
}

TEST_CASE("cuda emulator: cp.async") {
  EXPECT(has(error_in(never_awaited), "1 copies never awaited"));
  EXPECT(has(error_in(never_committed), "1 copies never awaited"));
  EXPECT(has(error_in(never_awaited), "never_awaited(float*)"));
  const std::vector<float> both = run(awaits<0>, 1), first = run(awaits<1>, 1),
                           none = run(awaits<2>, 1);
  EXPECT(both[4] == 7);
  EXPECT(both[5] == 0);  // not valid: zero
  EXPECT(first[4] == 7);
  EXPECT(std::isnan(first[5]));
  EXPECT(std::isnan(none[4]));
}

TEST_CASE("cuda emulator: launches that a GPU refuses") {
  EXPECT(has(error_in(reads_before_writing, 1025), "a block of 1025 threads"));
  EXPECT(has(error_in(reads_before_writing, 0), "a block of 0 threads"));
  EXPECT(has(error_in(reads_before_writing, 32, 228 << 10), "bytes of shared memory"));
  const auto tall = [] { launch(past_global, {1, 65536}, 1, 0, stream(), nullptr); };
  EXPECT(has(test::error_of(tall).message, "y and z are at most 65535"));
  const uint64_t before = emulator::launches().launches;
  launch(past_global, 0, 32, 0, stream(), nullptr);  // an empty grid
  EXPECT(emulator::launches().launches == before);
  run(neighbour<true>);
  EXPECT(emulator::launches().launches == before + 1);
}

TEST_CASE("cuda emulator: what lies behind the rows of a product's sums") {
  Runtime gpu(open_driver());
  float dy[] = {1, 2, 0}, x[] = {3, 4, 5}, dweight = 0;
  const auto product = [&] {
    gpu.gemm({.transpose_a = true,
              .M = 1,
              .N = 1,
              .K = 3,
              .A = dy,
              .lda = 1,
              .B = x,
              .ldb = 1,
              .C = &dweight,
              .ldc = 1,
              .padding = 1});
  };
  product();
  EXPECT(dweight == 11);
  dy[2] = 1;
  EXPECT(has(test::error_of(product).message, "row 2 behind dy is not zero"));
  dy[2] = 0, x[2] = INFINITY;
  EXPECT(has(test::error_of(product).message, "row 2 is not finite"));
}

namespace {

void faults_above_zero(const float* x) {
  if (*x > 0 && threadIdx.x == 0) return;
  __syncthreads();
}

}  // namespace

TEST_CASE("cuda emulator: a fault of a replayed step names the kernel") {
  float x = 0;
  Runtime gpu(open_driver());
  unsigned line = 0;
  const auto step = [&] {
    StepScope scope(&gpu);
    line = __LINE__ + 1;
    launch(faults_above_zero, 1, 32, 0, gpu.stream(), &x);
    scope.end();
  };
  step(), step(), step();
  EXPECT(gpu.step_counts().replayed == 1);
  x = 1;
  const Error error = test::error_of(step);
  EXPECT(has(error.message, fmt::format("kernel launched at tests/cuda/emulator.cpp:{}", line)));
  EXPECT(has(error.message, "faults_above_zero"));
  x = 0;
  step();
  EXPECT(gpu.step_counts().replayed == 2);
}

#if defined(__SANITIZE_ADDRESS__)
namespace {

void past_shared(float* out) { out[threadIdx.x] = shared_memory<Floats>().x[threadIdx.x + 33]; }

// What a child process prints that runs the kernel and dies.
std::string dying_words(void (*kernel)(float*)) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], STDERR_FILENO);
    std::vector<float> out(32);
    launch(kernel, 1, 32, sizeof(Floats), stream(), out.data());
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  char part[4096];
  for (ssize_t n = 0; (n = read(ends[0], part, sizeof part)) > 0;)
    text.append(part, static_cast<size_t>(n));
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT(status != 0);
  return text;
}

}  // namespace

TEST_CASE("cuda emulator: accesses outside a buffer") {
  const std::string shared = dying_words(past_shared);
  EXPECT(has(shared, "heap-buffer-overflow"));
  EXPECT(has(shared, "in the emulated kernel"));
  EXPECT(has(shared, "past_shared"));
  EXPECT(has(shared, "block (0,0,0), thread (31,0,0)"));
  const std::string global = dying_words(past_global);
  EXPECT(has(global, "heap-buffer-overflow"));
  EXPECT(has(global, "past_global"));
  EXPECT(has(global, "thread (0,0,0)"));
}
#else
TEST_CASE("cuda emulator: accesses outside a buffer") {
  test::skip("needs AddressSanitizer (meson setup -Db_sanitize=address)");
}
#endif

}  // namespace sft::cuda
