// ctc.cu: -log p(labels | logits) summed over all paths, log-softmax inside.
//
// Layout   logits, dlogits [T, V] f32 or bf16, any V; log_p [B], lse [T], alphas and betas f64, of
//          each utterance [T_b, 2 P_b]: blanks 0 to L in front of the labels, labels from P_b on
// Work     forward: a block per utterance; a warp per frame for lse, then the scan: a thread owns
//          blank i and label i (and those blockDim further on). Going back the scan of the betas is
//          as that of the alphas and writes every frame's; then a warp per frame turns both into
//          posteriors and adds them up by unit, so that all multiprocessors take part in what is
//          not a recurrence
// Cost     forward 2 P_b exponentials and logarithms in f64 a frame, T_b frames one after the
//          other: bound by their latency and by a barrier per frame; a frame's states go through L1
//          and L2 (16 P_b bytes), so that any number of labels fits
// Numbers  f64 as on the CPU; sums of a unit in the order of its states: the same bits every run
#include "engine/ops/ctc.h"

#include <algorithm>

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kMostThreads = 512;  // of a scan: room for 128 registers
constexpr int kFrames = 8;         // of a block, where a warp takes a frame
constexpr double kNone = -__builtin_inf();
constexpr double kNan = __builtin_nan("");

// A batch as kernels take it.
template <class T>
struct Batch {
  Matrix<T> logits;
  int V, blank;
  const int32_t* frames;  // [B + 1] cu_seqlens
  const int32_t* labels;
  const int32_t* starts;  // [B + 1] of labels
  double* lse;            // [T]
};

template <class T>
struct Utterance {
  Matrix<T> logits;  // from its first frame on
  int T_b, L;
  int64_t P;
  const int32_t* labels;
  double* lse;
  int64_t states;  // of all utterances before it: where its alphas and betas start

  __device__ double emission(int t, int unit) const {
    return double{to_float(logits.row(t)[unit])} - lse[t];
  }
};

// Called by whole warps.
template <class T>
__device__ Utterance<T> utterance(const Batch<T>& batch, int b) {
  int64_t states = 0;
  for (int i = lane(); i < b; i += 32)
    states += (batch.frames[i + 1] - batch.frames[i]) * 2 *
              ctc_width(batch.starts[i + 1] - batch.starts[i]);
  const int first = batch.frames[b], L = batch.starts[b + 1] - batch.starts[b];
  return {{batch.logits.row(first), batch.logits.stride, batch.logits.whole},
          batch.frames[b + 1] - first,
          L,
          ctc_width(L),
          batch.labels + batch.starts[b],
          batch.lse + first,
          warp_sum(states)};
}

// log(exp(a) + exp(b)); -inf if both are.
__device__ double log_add(double a, double b) {
  const double most = max(a, b);
  return most == kNone ? kNone : most + log(1 + exp(min(a, b) - most));
}
__device__ double log_add(double a, double b, double c) {
  const double high = max(a, b), most = max(high, c);
  if (most == kNone) return kNone;
  return most + log(1 + exp(min(a, b) - most) + exp(min(high, c) - most));
}

// Of a warp. NaN for a row with a NaN or +inf, or of -inf only: it has no softmax.
template <class T>
__device__ double log_sum_exp(const T* x, int V) {
  float most = -__builtin_inff();
  bool good = true;
  for (int v = lane(); v < V; v += 32) {
    good = good && to_float(x[v]) < __builtin_inff();
    most = fmaxf(most, to_float(x[v]));
  }
  const double top = warp_max(most);
  if (!__all_sync(~0u, good) || top == kNone) return kNan;
  double sum = 0;
  for (int v = lane(); v < V; v += 32) sum += exp(to_float(x[v]) - top);
  return top + log(warp_sum(sum));
}

template <class T>
__global__ void ctc_forward_kernel(Batch<T> batch, double* alphas, double* log_p, float* losses) {
  const int b = blockIdx.x;
  const Utterance<T> u = utterance(batch, b);
  bool good = true;
  for (int t = warp(); t < u.T_b; t += warps()) {
    const double sum = log_sum_exp(u.logits.row(t), batch.V);
    if (lane() == 0) u.lse[t] = sum;
    good = good && sum == sum;
  }
  good = __syncthreads_and(good);
  const int frames = good ? u.T_b : 0;
  alphas += u.states;
  for (int t = 0; t < frames; ++t) {
    double* now = alphas + t * 2 * u.P;
    const double* old = now - 2 * u.P;
    const double blank = u.emission(t, batch.blank);
    for (int i = threadIdx.x; i <= u.L; i += blockDim.x) {
      // before the first frame: in front of the first blank
      const double stay = t ? old[i] : i ? kNone : 0;
      const double before = t && i ? old[u.P + i - 1] : kNone;
      now[i] = log_add(stay, before) + blank;
      if (i == u.L) break;
      const bool skips = i && u.labels[i] != u.labels[i - 1];
      const double label = t ? old[u.P + i] : kNone;
      now[u.P + i] = log_add(label, stay, skips ? before : kNone) + u.emission(t, u.labels[i]);
    }
    __syncthreads();
  }
  if (threadIdx.x) return;
  const double* last = alphas + (u.T_b - 1) * 2 * u.P;
  double total = u.L ? kNone : 0;  // without frames
  if (u.T_b) total = good ? log_add(last[u.L], u.L ? last[u.P + u.L - 1] : kNone) : kNan;
  log_p[b] = total;
  losses[b] = total == kNone ? 0 : static_cast<float>(-total);
}

// betas: log p(frames after t | state at t).
template <class T>
__global__ void ctc_betas_kernel(Batch<T> batch, const double* log_p, double* betas) {
  const Utterance<T> u = utterance(batch, blockIdx.x);
  if (!(log_p[blockIdx.x] > kNone)) return;
  betas += u.states;
  for (int t = u.T_b - 1; t >= 0; --t) {
    double* now = betas + t * 2 * u.P;
    const double* next = now + 2 * u.P;
    const bool last = t == u.T_b - 1;
    const double blank = last ? 0 : u.emission(t + 1, batch.blank);
    // going on to the blank or the label i; after the last frame there is nothing to go on to
    const auto to_blank = [&](int i) { return last ? (i == u.L ? 0 : kNone) : next[i] + blank; };
    const auto to_label = [&](int i) {
      if (i >= u.L) return kNone;
      return last ? (i == u.L - 1 ? 0 : kNone) : next[u.P + i] + u.emission(t + 1, u.labels[i]);
    };
    for (int i = threadIdx.x; i <= u.L; i += blockDim.x) {
      const double label = to_label(i);
      now[i] = last ? to_blank(i) : log_add(to_blank(i), label);
      if (i == u.L) break;
      const bool skips = i + 1 < u.L && u.labels[i] != u.labels[i + 1];
      now[u.P + i] =
          last ? label : log_add(label, to_blank(i + 1), skips ? to_label(i + 1) : kNone);
    }
    __syncthreads();
  }
}

// A warp, a frame. Posteriors of labels take the place of its betas.
template <class T>
__global__ void ctc_gradient_kernel(Batch<T> batch, const double* alphas, const double* log_p,
                                    const float* weights, double* betas, Matrix<T> dlogits,
                                    bool add) {
  const int b = blockIdx.y, t = blockIdx.x * kFrames + warp();
  if (t >= batch.frames[b + 1] - batch.frames[b]) return;
  const Utterance<T> u = utterance(batch, b);
  const double total = log_p[b], weight = weights[b];
  const bool path = total > kNone;
  alphas += u.states + t * 2 * u.P;
  betas += u.states + t * 2 * u.P;
  double blanks = 0;
  for (int i = lane(); i <= u.L && path; i += 32) {
    blanks += exp(alphas[i] + betas[i] - total);
    if (i < u.L) betas[u.P + i] = exp(alphas[u.P + i] + betas[u.P + i] - total);
  }
  blanks = warp_sum(blanks);
  __syncwarp();
  const T* x = u.logits.row(t);
  T* to = dlogits.row(batch.frames[b] + t);
  for (int v = lane(); v < batch.V; v += 32) {
    double p = path ? exp(to_float(x[v]) - u.lse[t]) : total == kNone ? 0 : kNan;
    if (path && v == batch.blank) p -= blanks;
    for (int i = 0; i < u.L && path; ++i)
      if (u.labels[i] == v) p -= betas[u.P + i];
    const float value = static_cast<float>(path ? weight * p : p);
    to[v] = from_float<T>(value + (add ? to_float(to[v]) : 0));
  }
}

template <class T>
Batch<T> batch_on_device(Context& ctx, Tensor logits, const Segments& segments,
                         const CtcTargets& targets, int blank, const CtcOut& out) {
  return {matrix<T>(logits),
          static_cast<int>(logits.width()),
          blank,
          on_device(ctx, segments.starts),
          on_device(ctx, targets.labels),
          on_device(ctx, targets.starts),
          static_cast<double*>(out.lse.data)};
}

// Threads of a scan: a thread a pair of states, as far as a block goes.
int scan_threads(const CtcTargets& targets, int B) {
  int most = 0;
  for (int b = 0; b < B; ++b) most = std::max<int>(most, targets.count(b));
  return static_cast<int>(std::clamp<int64_t>(ceil_div(most + 1, 32) * 32, 128, kMostThreads));
}

}  // namespace

void ctc_forward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                 int blank, const CtcOut& out) {
  const int B = segments.batch();
  ScratchScope scratch(ctx.scratch);
  with_element(logits.dtype, [&]<class T>() {
    const Batch<T> batch = batch_on_device<T>(ctx, logits, segments, targets, blank, out);
    if (ctx.dry) return;
    launch(ctc_forward_kernel<T>, dim3(B), dim3(scan_threads(targets, B)), 0, ctx.gpu->stream(),
           batch, out.alphas.as<double>(), out.log_p.as<double>(), out.losses.f32());
  });
}

void ctc_backward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                  std::span<const float> weights, int blank, const CtcOut& out, Grad dlogits) {
  const int B = segments.batch();
  ScratchScope scratch(ctx.scratch);
  const float* factors = on_device(ctx, weights);
  double* betas = ctx.temporary({out.alphas.count()}, Dtype::f64).as<double>();
  with_element(logits.dtype, [&]<class T>() {
    const Batch<T> batch = batch_on_device<T>(ctx, logits, segments, targets, blank, out);
    if (ctx.dry) return;
    const double* log_p = out.log_p.as<double>();
    launch(ctc_betas_kernel<T>, dim3(B), dim3(scan_threads(targets, B)), 0, ctx.gpu->stream(),
           batch, log_p, betas);
    launch(ctc_gradient_kernel<T>, dim3(ceil_div(segments.longest(), kFrames), B),
           dim3(32 * kFrames), 0, ctx.gpu->stream(), batch, out.alphas.as<double>(), log_p, factors,
           betas, matrix<T>(dlogits.to), dlogits.add);
  });
}

}  // namespace sft::cuda
