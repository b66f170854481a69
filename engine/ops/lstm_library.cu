// lstm_library.cu: what lies around a library's call for an LSTM layer.
//
// Layout   packed [T, C] <-> padded [longest, B, C] of x's type, zeros behind an utterance's end;
//          weights f32 <-> the library's places for them (LstmPlan::places), of x's type
// Work     rows: a warp per row of the padded matrix. Weights: a block row per gate's matrix or
//          bias, 1024 elements a block
// Cost     memory-bound; 16 utterances of 300 frames, K = 512, H = 256, two directions, bf16: 5 MB
//          each for x and y, 3 MB of weights, a few microseconds beside a scan of 300 steps
// Numbers  rounded to x's type; gradients of weights are rounded to it by the library
#include "engine/cuda/lists.h"
#include "engine/cuda/lstm_pass.h"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/lstm_library.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256, kRowsOfBlock = kThreads / 32;
constexpr int kEach = 4;  // elements of a thread

template <class T>
struct Rows {
  Matrix<T> packed, padded;
  const int32_t* starts;
  int batch, width, count;  // rows of the padded matrix

  // The packed row of a padded one; -1: behind the end.
  __device__ int64_t source(int row) const {
    const int b = row % batch, t = row / batch;
    return t < starts[b + 1] - starts[b] ? starts[b] + t : -1;
  }
};

template <class T>
__global__ void pad_kernel(Rows<T> rows) {
  const int row = blockIdx.x * kRowsOfBlock + warp();
  if (row >= rows.count) return;
  const int64_t source = rows.source(row);
  for (int c = lane() * 8; c < rows.width; c += 256) {
    Float8 values{};
    if (source >= 0) values = load_row(rows.packed.row(source), c, rows.width, rows.packed.whole);
    store_row(rows.padded.row(row), c, rows.width, rows.padded.whole, values);
  }
}

template <class T>
__global__ void unpad_kernel(Rows<T> rows, bool add) {
  const int row = blockIdx.x * kRowsOfBlock + warp();
  const int64_t source = row < rows.count ? rows.source(row) : -1;
  if (source < 0) return;
  for (int c = lane() * 8; c < rows.width; c += 256) {
    Float8 values = load_row(rows.padded.row(row), c, rows.width, rows.padded.whole);
    T* to = rows.packed.row(source);
    if (add) add8(values, load_row(to, c, rows.width, rows.packed.whole));
    store_row(to, c, rows.width, rows.packed.whole, values);
  }
}

// A gate's matrix or bias: of the weights or of their gradients, and its place in the library's.
struct Part {
  float* weight;
  int64_t place;
  int count;
  bool add;
};
template <class T>
struct Parts {
  T* space;
  int count = 0, largest = 0;
  Part parts[2 * 2 * 8];

  void push(Part part) {
    if (!part.weight) return;
    parts[count++] = part;
    largest = part.count > largest ? part.count : largest;
  }
  dim3 grid() const { return dim3(ceil_div(largest, kThreads * kEach), count); }
};

template <class T>
__global__ void place_weights_kernel(Parts<T> all) {
  const Part part = all.parts[blockIdx.y];
  int i = blockIdx.x * kThreads * kEach + threadIdx.x;
  for (int n = 0; n < kEach && i < part.count; ++n, i += kThreads)
    all.space[part.place + i] = from_float<T>(part.weight[i]);
}

template <class T>
__global__ void take_gradients_kernel(Parts<T> all) {
  const Part part = all.parts[blockIdx.y];
  int i = blockIdx.x * kThreads * kEach + threadIdx.x;
  for (int n = 0; n < kEach && i < part.count; ++n, i += kThreads) {
    const float value = to_float(all.space[part.place + i]);
    part.weight[i] = part.add ? part.weight[i] + value : value;
  }
}

Grad place_of(const Tensor& weight) { return {weight}; }
Grad place_of(const Grad& gradient) { return gradient; }

// directions: LstmWeights or LstmGrads.
template <class T, class Direction>
Parts<T> make_parts(const LstmPlan& plan, const Tensor& space, std::span<Direction> directions) {
  Parts<T> all{.space = static_cast<T*>(space.data), .parts = {}};
  const auto push = [&](Grad to, int gate, int64_t count, int64_t place) {
    all.push({to ? to.to.f32() + gate * count : nullptr, place, static_cast<int>(count), to.add});
  };
  const int64_t H = plan.shape.units;
  for (int64_t d = 0; d < plan.shape.directions; ++d)
    for (int gate = 0; gate < 4; ++gate) {
      const Direction& w = directions[d];
      const LstmPlan::Place &input = plan.places[d][gate], &state = plan.places[d][4 + gate];
      push(place_of(w.w_ih), gate, H * plan.shape.inputs, input.matrix);
      push(place_of(w.b_ih), gate, H, input.bias);
      push(place_of(w.w_hh), gate, H * H, state.matrix);
      push(place_of(w.b_hh), gate, H, state.bias);
    }
  return all;
}

// A layer's call: its plan, and scratch for everything that the library wants otherwise than us.
template <class T>
struct Call {
  Context& ctx;
  std::shared_ptr<const LstmPlan> plan;
  const int32_t* starts;
  Tensor weights, work;

  Call(Context& ctx, Tensor x, std::span<const LstmWeights> directions, const Segments& segments)
      : ctx(ctx),
        plan(ctx.gpu->lstm_plan({x.dtype, x.width(), directions[0].w_hh.width(),
                                 static_cast<int64_t>(directions.size())},
                                segments.starts)),
        starts(on_device(ctx, segments.starts)),
        weights(ctx.temporary(Shape{plan->weight_bytes}, Dtype::u8)),
        work(ctx.temporary(Shape{plan->work_bytes}, Dtype::u8)) {
    if (ctx.dry) return;
    ctx.gpu->fill(weights.data, 0, plan->weight_bytes);  // between the places
    const Parts<T> parts = make_parts<T>(*plan, weights, directions);
    launch(place_weights_kernel<T>, parts.grid(), dim3(kThreads), 0, ctx.gpu->stream(), parts);
  }
  Tensor padded(int64_t width, Dtype dtype) {
    return ctx.temporary(Shape{plan->longest(), plan->batch(), width}, dtype);
  }
  Rows<T> rows(Tensor packed, Tensor padded) {
    const int64_t count = plan->longest() * plan->batch();
    return {matrix<T>(packed),
            matrix<T>(padded),
            starts,
            static_cast<int>(plan->batch()),
            static_cast<int>(packed.width()),
            static_cast<int>(count)};
  }
  Tensor pad(Tensor packed) {
    const Tensor to = padded(packed.width(), packed.dtype);
    if (ctx.dry) return to;
    const Rows<T> r = rows(packed, to);
    launch(pad_kernel<T>, dim3(ceil_div(r.count, kRowsOfBlock)), dim3(kThreads), 0,
           ctx.gpu->stream(), r);
    return to;
  }
  LstmPass pass(Tensor x, Tensor y, Tensor saved) const {  // forward
    LstmPass made;
    made.plan = plan;
    made.weights = weights.data, made.work = work.data, made.saved = saved.data;
    made.x = x.data, made.y = y.data;
    return made;
  }
  void unpad(Tensor from, Grad packed) {
    const Rows<T> r = rows(packed.to, from);
    launch(unpad_kernel<T>, dim3(ceil_div(r.count, kRowsOfBlock)), dim3(kThreads), 0,
           ctx.gpu->stream(), r, packed.add);
  }
};

template <class T>
void forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
             const Segments& segments, LstmOut& out) {
  ScratchScope scratch(ctx.scratch);
  Call<T> call(ctx, x, directions, segments);
  out.saved = ctx.activation(Shape{call.plan->saved_bytes}, Dtype::u8);
  const Tensor padded = call.pad(x), y = call.padded(out.y.width(), x.dtype);
  if (ctx.dry) return;
  ctx.gpu->lstm(call.pass(padded, y, out.saved));
  call.unpad(y, {out.y});
}

template <class T>
void backward(Context& ctx, Tensor dy, Tensor x, std::span<const LstmWeights> directions,
              const Segments& segments, const LstmOut& out, Grad dx,
              std::span<const LstmGrads> grads) {
  ScratchScope scratch(ctx.scratch);
  Call<T> call(ctx, x, directions, segments);
  const LstmPlan& plan = *call.plan;
  const Tensor dweights = ctx.temporary(Shape{plan.weight_bytes}, Dtype::u8);
  const Parts<T> wanted = make_parts<T>(plan, dweights, grads);
  const Tensor padded_x = call.pad(x), padded_y = call.pad(out.y), padded_dy = call.pad(dy);
  const Tensor padded_dx = call.padded(x.width(), x.dtype);
  if (ctx.dry) return;
  if (wanted.count) ctx.gpu->fill(dweights.data, 0, plan.weight_bytes);
  LstmPass pass = call.pass(padded_x, padded_y, out.saved);
  pass.dy = padded_dy.data, pass.dx = padded_dx.data;
  pass.dweights = wanted.count ? dweights.data : nullptr;
  ctx.gpu->lstm(pass);
  if (dx) call.unpad(padded_dx, dx);
  launch(take_gradients_kernel<T>, wanted.grid(), dim3(kThreads), 0, ctx.gpu->stream(), wanted);
}

}  // namespace

void library_lstm_forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                          const Segments& segments, LstmOut& out) {
  with_element(x.dtype, [&]<class T>() { forward<T>(ctx, x, directions, segments, out); });
}

void library_lstm_backward(Context& ctx, Tensor dy, Tensor x,
                           std::span<const LstmWeights> directions, const Segments& segments,
                           const LstmOut& out, Grad dx, std::span<const LstmGrads> grads) {
  with_element(x.dtype,
               [&]<class T>() { backward<T>(ctx, dy, x, directions, segments, out, dx, grads); });
}

}  // namespace sft::cuda
