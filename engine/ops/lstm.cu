// lstm.cu: an LSTM over packed utterances, one direction or two.
//
// Layout   x [T, K], y, dy [T, D H] f32 or bf16; gates [T, 4H], cells [T, H] f32; weights and their
//          gradients f32; going back dgates [T, 4H] in x's type; any H
// Work     products over all frames are GEMMs; the recurrence is a launch per time step, for both
//          directions at once: a block takes 4 units (16 rows of w_hh) and 16 utterances, a thread
//          one product of a row and an h (going back: of one gate's rows and dgates). A grid cannot
//          wait for itself here, and the other way, a block that keeps a direction and steps by
//          itself, leaves it with all of w_hh to read out of L2 at every step (H = 256: 1 MB, 9 us
//          at the 64 bytes a cycle of one multiprocessor), where 128 blocks read 16 kB each in a
//          fraction of the 2 to 3 us of a launch
// Cost     H = 256, 16 utterances, two directions: 17 MFLOP, 2.1 MB out of L2 a step: bound by the
//          latency of launches; the products before and after are compute-bound
// Numbers  f32 sums in the order of units; h is rounded to x's type before it is used, as in the
//          products with it; the same bits every run
#include "engine/ops/lstm.h"

#include "engine/cuda/gemm.h"
#include "engine/cuda/lists.h"
#include "engine/cuda/rows.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kUnits = 4, kRows = 4 * kUnits;  // of a block
constexpr int kUtterances = 16;
constexpr int kThreads = kRows * kUtterances;
constexpr int kDepth = 256;     // of a tile of the sum going forward
constexpr int kGateDepth = 64;  // going back, of each gate

// One direction. Row t of a matrix is frame t of the pack.
template <class T>
struct Direction {
  const float *w_hh, *b_ih, *b_hh;
  float *gates, *cells;
  Matrix<T> y;       // going back: dy
  Matrix<T> dgates;  // going back
  float* dcells;     // [B, H] going back: what reaches c_(t-1)
};
template <class T>
struct Scan {
  Direction<T> directions[2];
  const int32_t* starts;
  int B, H;
};

// The utterances of a block at a step.
struct Frames {
  int now[kUtterances];     // frame, or -1: it is over
  int before[kUtterances];  // -1: none
  int after[kUtterances];   // -1: none
};

// False if none of them is running.
template <class T>
__device__ bool find_frames(const Scan<T>& s, int step, Frames& frames) {
  bool running = false;
  if (threadIdx.x < kUtterances) {
    const int b = blockIdx.y * kUtterances + threadIdx.x, forth = blockIdx.z ? -1 : 1;
    const int first = b < s.B ? s.starts[b] : 0, length = b < s.B ? s.starts[b + 1] - first : 0;
    running = step < length;
    const int t = blockIdx.z ? first + length - 1 - step : first + step;
    frames.now[threadIdx.x] = running ? t : -1;
    frames.before[threadIdx.x] = running && step ? t - forth : -1;
    frames.after[threadIdx.x] = step + 1 < length ? t + forth : -1;
  }
  return __syncthreads_or(running);
}

// Elements [0, depth) of each row of `rows` to shared memory, zeros where source(row) is null or
// its end is near.
template <int kTileRows, int kTileDepth, class T, class Source>
__device__ void load_tile(float (&to)[kTileRows][kTileDepth + 4], int depth, bool whole,
                          Source&& source) {
  for (int i = threadIdx.x; i < kTileRows * (kTileDepth / 8); i += kThreads) {
    const int row = i / (kTileDepth / 8), k = i % (kTileDepth / 8) * 8;
    const T* from = source(row);
    Float8 values{};
    if (from && k < depth) values = load_row(from, k, depth, whole && k + 8 <= depth);
    store8(&to[row][k], values);
  }
}

// Sum over k < depth, a multiple of 4, of two rows in shared memory.
template <int kWidth>
__device__ float dot(const float (&a)[kWidth], const float (&b)[kWidth], int depth) {
  float sum = 0;
  for (int k = 0; k < depth; k += 4) {
    const float4 x = *reinterpret_cast<const float4*>(&a[k]);
    const float4 y = *reinterpret_cast<const float4*>(&b[k]);
    sum += x.x * y.x;
    sum += x.y * y.y;
    sum += x.z * y.z;
    sum += x.w * y.w;
  }
  return sum;
}

__device__ __forceinline__ float sigmoid(float x) { return 1 / (1 + expf(-x)); }

struct ForwardShared {
  alignas(16) float w[kRows][kDepth + 4];
  alignas(16) float h[kUtterances][kDepth + 4];
  float sums[kRows][kUtterances];
  Frames frames;
};

// Row q of a block's 16 is gate q / 4 of its unit q % 4.
template <class T>
__global__ void lstm_forward_kernel(Scan<T> s, int step, bool aligned) {
  ForwardShared& shared = shared_memory<ForwardShared>();
  if (!find_frames(s, step, shared.frames)) return;
  const Direction<T>& d = s.directions[blockIdx.z];
  const int H = s.H, unit0 = blockIdx.x * kUnits;
  const int q = threadIdx.x / kUtterances, r = threadIdx.x % kUtterances;
  float sum = 0;
  for (int k = 0; k < H && step; k += kDepth) {
    const int depth = min(kDepth, H - k);
    load_tile<kRows, kDepth, float>(shared.w, depth, aligned, [&](int row) -> const float* {
      const int unit = unit0 + row % kUnits;
      return unit < H ? d.w_hh + (row / kUnits * int64_t{H} + unit) * H + k : nullptr;
    });
    load_tile<kUtterances, kDepth, T>(shared.h, depth, d.y.whole, [&](int row) -> const T* {
      const int t = shared.frames.before[row];
      return t >= 0 ? d.y.row(t) + k : nullptr;
    });
    __syncthreads();
    sum += dot(shared.w[q], shared.h[r], depth + (-depth & 3));
    __syncthreads();
  }
  const int t = shared.frames.now[r], unit = unit0 + q % kUnits;
  if (t >= 0 && unit < H) {
    const int row = q / kUnits * H + unit;
    sum += d.gates[t * 4 * int64_t{H} + row] + (d.b_ih[row] + d.b_hh[row]);
  }
  shared.sums[q][r] = sum;
  __syncthreads();
  if (q >= kUnits || t < 0 || unit >= H) return;
  const float i = sigmoid(shared.sums[q][r]), f = sigmoid(shared.sums[q + kUnits][r]);
  const float g = tanhf(shared.sums[q + 2 * kUnits][r]);
  const float o = sigmoid(shared.sums[q + 3 * kUnits][r]);
  const int before = shared.frames.before[r];
  const float c = (before >= 0 ? f * d.cells[before * int64_t{H} + unit] : 0) + i * g;
  float* gates = d.gates + t * 4 * int64_t{H} + unit;
  gates[0] = i, gates[H] = f, gates[2 * int64_t{H}] = g, gates[3 * int64_t{H}] = o;
  d.cells[t * int64_t{H} + unit] = c;
  d.y.row(t)[unit] = from_float<T>(o * tanhf(c));
}

struct BackwardShared {
  alignas(16) float w[kRows][kGateDepth + 4];  // transposed: row q, column k of w_hh's gate
  alignas(16) float dgates[4 * kUtterances][kGateDepth + 4];  // gate beside gate
  float sums[kRows][kUtterances];
  Frames frames;
};

// dgates of unit `unit`, utterance r of the block, whose h has the gradient dh.
template <class T>
__device__ void cell_backward(const Scan<T>& s, const Frames& frames, int r, int unit, float dh) {
  const Direction<T>& d = s.directions[blockIdx.z];
  const int64_t H = s.H, t = frames.now[r];
  const float* gates = d.gates + t * 4 * H + unit;
  const float i = gates[0], f = gates[H], g = gates[2 * H], o = gates[3 * H];
  const float squashed = tanhf(d.cells[t * H + unit]);
  const float old = frames.before[r] >= 0 ? d.cells[frames.before[r] * H + unit] : 0;
  float* dcell = d.dcells + (blockIdx.y * kUtterances + r) * H + unit;
  const float dc = dh * o * (1 - squashed * squashed) + (frames.after[r] >= 0 ? *dcell : 0);
  T* to = d.dgates.row(t) + unit;
  to[0] = from_float<T>(dc * g * i * (1 - i));
  to[H] = from_float<T>(dc * old * f * (1 - f));
  to[2 * H] = from_float<T>(dc * i * (1 - g * g));
  to[3 * H] = from_float<T>(dh * squashed * o * (1 - o));
  *dcell = dc * f;
}

template <class T>
__global__ void lstm_backward_kernel(Scan<T> s, int step) {
  BackwardShared& shared = shared_memory<BackwardShared>();
  if (!find_frames(s, step, shared.frames)) return;
  const Direction<T>& d = s.directions[blockIdx.z];
  const int H = s.H, unit0 = blockIdx.x * kUnits;
  const int q = threadIdx.x / kUtterances, r = threadIdx.x % kUtterances;
  const bool going = __syncthreads_or(shared.frames.after[r] >= 0);
  float sum = 0;
  for (int k = 0; k < H && going; k += kGateDepth) {
    const int depth = min(kGateDepth, H - k);
    // a thread, one row of w_hh, 4 units: as many rows as there are threads
    const int gate = threadIdx.x / kGateDepth, row = threadIdx.x % kGateDepth;
    const float* w = d.w_hh + (gate * int64_t{H} + k + row) * H + unit0;
    for (int u = 0; u < kUnits; ++u)
      shared.w[gate * kUnits + u][row] = row < depth && unit0 + u < H ? w[u] : 0;
    load_tile<4 * kUtterances, kGateDepth, T>(
        shared.dgates, depth, d.dgates.whole && H % 8 == 0, [&](int row) -> const T* {
          const int t = shared.frames.after[row % kUtterances];
          return t >= 0 ? d.dgates.row(t) + row / kUtterances * int64_t{H} + k : nullptr;
        });
    __syncthreads();
    sum += dot(shared.w[q], shared.dgates[q / kUnits * kUtterances + r], depth + (-depth & 3));
    __syncthreads();
  }
  shared.sums[q][r] = sum;
  __syncthreads();
  const int t = shared.frames.now[r], unit = unit0 + q;
  if (q >= kUnits || t < 0 || unit >= H) return;
  float dh = to_float(d.y.row(t)[unit]);
  for (int gate = 0; gate < 4; ++gate) dh += shared.sums[gate * kUnits + q][r];
  cell_backward(s, shared.frames, r, unit, dh);
}
static_assert(kThreads == 4 * kGateDepth);

// to_t = h_(t-1), zero at the first frame of each utterance; a warp per frame.
template <class T>
__global__ void shift_kernel(Matrix<T> h, const int32_t* starts, bool backwards, Matrix<T> to,
                             int H) {
  const int first = starts[blockIdx.y], last = starts[blockIdx.y + 1] - 1;
  const int t = first + blockIdx.x * 8 + warp();
  if (t > last) return;
  const bool border = t == (backwards ? last : first);
  for (int c = lane() * 8; c < H; c += 256) {
    Float8 values{};
    if (!border) values = load_row(h.row(backwards ? t + 1 : t - 1), c, H, h.whole);
    store_row(to.row(t), c, H, to.whole, values);
  }
}

dim3 step_grid(int H, const Segments& segments, size_t directions) {
  return dim3(ceil_div(H, kUnits), ceil_div(segments.batch(), kUtterances), directions);
}

// A launch for each frame of the longest utterance, and some that find none: so many for all
// lengths that have the same room, for the graphs of steps.
int steps_of(const Segments& segments) { return static_cast<int>(bucket_rows(segments.longest())); }

template <class T>
Scan<T> make_scan(Context& ctx, std::span<const LstmWeights> directions, const Segments& segments,
                  const LstmOut& out, Tensor y) {
  const int64_t H = directions[0].w_hh.width();
  Scan<T> scan{{}, on_device(ctx, segments.starts), segments.batch(), static_cast<int>(H)};
  for (size_t d = 0; d < directions.size(); ++d) {
    const LstmWeights& w = directions[d];
    scan.directions[d] = {.w_hh = w.w_hh.f32(),
                          .b_ih = w.b_ih.f32(),
                          .b_hh = w.b_hh.f32(),
                          .gates = out.gates[d].f32(),
                          .cells = out.cells[d].f32(),
                          .y = matrix<T>(y.columns(static_cast<int64_t>(d) * H, H)),
                          .dgates = {},
                          .dcells = nullptr};
  }
  return scan;
}

bool rows_aligned(std::span<const LstmWeights> directions) {
  bool aligned = directions[0].w_hh.width() % 8 == 0;
  for (const LstmWeights& w : directions) aligned = aligned && matrix<float>(w.w_hh).whole;
  return aligned;
}

// Products with dgates, after the scan.
template <class T>
void products_backward(Context& ctx, Tensor x, const LstmWeights& w, Tensor dgates, Tensor h,
                       const Segments& segments, const int32_t* starts, bool backwards, Grad dx,
                       const LstmGrads& grads) {
  const int H = static_cast<int>(h.width());
  ScratchScope scratch(ctx.scratch);
  const Tensor w_ih = dx ? weight_as(ctx, w.w_ih, x.dtype) : w.w_ih;
  const ColumnSums sums = column_sums(ctx, dgates.rows(), dgates.width(), grads.b_ih || grads.b_hh);
  const Tensor before = grads.w_hh ? ctx.temporary(h.shape, h.dtype) : Tensor();
  if (ctx.dry) return;
  if (sums.partial) spread_rows(ctx, dgates, {}, {}, {}, sums);
  add_up(ctx, sums, grads.b_ih);
  add_up(ctx, sums, grads.b_hh);
  matmul_dx(ctx, dgates, w_ih, dx);
  matmul_dweight(ctx, dgates, x, grads.w_ih);
  if (!grads.w_hh) return;
  launch(shift_kernel<T>, dim3(ceil_div(segments.longest(), 8), segments.batch()), dim3(256), 0,
         ctx.gpu->stream(), matrix<T>(h), starts, backwards, matrix<T>(before), H);
  matmul_dweight(ctx, dgates, before, grads.w_hh);
}

template <class T>
void backward(Context& ctx, Tensor dy, Tensor x, std::span<const LstmWeights> directions,
              const Segments& segments, const LstmOut& out, Grad dx,
              std::span<const LstmGrads> grads) {
  const int64_t D = static_cast<int64_t>(directions.size()), H = directions[0].w_hh.width();
  ScratchScope scratch(ctx.scratch);
  Scan<T> scan = make_scan<T>(ctx, directions, segments, out, dy);
  std::array<Tensor, 2> dgates;
  for (int64_t d = 0; d < D; ++d) {
    dgates[d] = ctx.temporary({x.rows(), 4 * H}, x.dtype);
    scan.directions[d].dgates = matrix<T>(dgates[d]);
    scan.directions[d].dcells = ctx.temporary({segments.batch(), H}).f32();
  }
  for (int step = steps_of(segments) - 1; step >= 0 && !ctx.dry; --step)
    launch(lstm_backward_kernel<T>, step_grid(scan.H, segments, D), dim3(kThreads),
           sizeof(BackwardShared), ctx.gpu->stream(), scan, step);
  for (int64_t d = 0; d < D; ++d)
    products_backward<T>(ctx, x, directions[d], dgates[d], out.y.columns(d * H, H), segments,
                         scan.starts, d == 1, {dx.to, dx.add || d == 1}, grads[d]);
}

}  // namespace

void lstm_forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                  const Segments& segments, const LstmOut& out) {
  const size_t D = directions.size();
  ScratchScope scratch(ctx.scratch);
  std::array<Tensor, 2> w_ih;
  for (size_t d = 0; d < D; ++d) w_ih[d] = weight_as(ctx, directions[d].w_ih, x.dtype);
  with_element(x.dtype, [&]<class T>() {
    const Scan<T> scan = make_scan<T>(ctx, directions, segments, out, out.y);
    if (ctx.dry) return;
    for (size_t d = 0; d < D; ++d) matmul(ctx, x, w_ih[d], out.gates[d]);
    for (int step = 0; step < steps_of(segments); ++step)
      launch(lstm_forward_kernel<T>, step_grid(scan.H, segments, D), dim3(kThreads),
             sizeof(ForwardShared), ctx.gpu->stream(), scan, step, rows_aligned(directions));
  });
}

void lstm_backward(Context& ctx, Tensor dy, Tensor x, std::span<const LstmWeights> directions,
                   const Segments& segments, const LstmOut& out, Grad dx,
                   std::span<const LstmGrads> grads) {
  with_element(x.dtype,
               [&]<class T>() { backward<T>(ctx, dy, x, directions, segments, out, dx, grads); });
}

}  // namespace sft::cuda
