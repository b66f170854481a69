#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/ctc.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <hwy/contrib/math/math-inl.h>

#include "engine/cpu/simd-inl.h"
#include "engine/ops/ctc.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

using Doubles = hn::ScalableTag<double>;
using DVec = hn::Vec<Doubles>;

// log(exp(a) + exp(b)); -inf if both are.
HWY_INLINE DVec log_add(DVec a, DVec b) {
  const Doubles d;
  const DVec most = hn::Max(a, b), none = hn::Set(d, -HUGE_VAL);
  const DVec rest = hn::Exp(d, hn::Sub(hn::Min(a, b), most));
  const DVec sum = hn::Add(most, hn::Log(d, hn::Add(rest, hn::Set(d, 1))));
  return hn::IfThenElse(hn::Eq(most, none), none, sum);
}

// log(exp(a) + exp(b) + exp(c)); -inf if all are.
HWY_INLINE DVec log_add(DVec a, DVec b, DVec c) {
  const Doubles d;
  const DVec high = hn::Max(a, b), low = hn::Min(a, b), most = hn::Max(high, c);
  const DVec rest =
      hn::Add(hn::Exp(d, hn::Sub(low, most)), hn::Exp(d, hn::Sub(hn::Min(high, c), most)));
  const DVec none = hn::Set(d, -HUGE_VAL);
  const DVec sum = hn::Add(most, hn::Log(d, hn::Add(rest, hn::Set(d, 1))));
  return hn::IfThenElse(hn::Eq(most, none), none, sum);
}

// One frame on: the states that lead to each state, without the emission of the new frame.
// prev, next [2 P]: blank i stands before label i. skip [P]: 0 where label i may follow label i - 1
// directly, -inf where not. Padding behind the states keeps -inf; entry P - 1 always is padding.
void ctc_step(const double* prev, const double* skip, int64_t P, double* next) {
  const Doubles d;
  const double* label = prev + P;
  for (int64_t i = 0; i < P; i += static_cast<int64_t>(hn::Lanes(d))) {
    const DVec before = hn::LoadU(d, label + i - 1), blank = hn::LoadU(d, prev + i);
    hn::StoreU(log_add(blank, before), d, next + i);
    const DVec skipped = hn::Add(before, hn::LoadU(d, skip + i));
    hn::StoreU(log_add(hn::LoadU(d, label + i), blank, skipped), d, next + P + i);
  }
}

// x = exp(x + shift), in whole vectors: x has room for 7 more.
void ctc_exp(double* x, int64_t n, double shift) {
  const Doubles d;
  for (int64_t i = 0; i < n; i += static_cast<int64_t>(hn::Lanes(d)))
    hn::StoreU(hn::Exp(d, hn::Add(hn::LoadU(d, x + i), hn::Set(d, shift))), d, x + i);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(ctc_step);
HWY_EXPORT(ctc_exp);

constexpr double kNone = -std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int64_t kLanes = 8;  // of doubles, at most

int64_t whole_vectors(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

// One utterance, and its memory.
struct Utterance {
  Tensor logits;  // [T, V]
  std::span<const int32_t> labels;
  int blank;
  double* lse;     // [T]
  double* alphas;  // [T, 2 P]
  double* scratch;

  int64_t T() const { return logits.shape[0]; }
  int64_t V() const { return logits.shape[1]; }
  int64_t L() const { return static_cast<int64_t>(labels.size()); }
  int64_t P() const { return ctc_width(L()); }
  // Scratch: two rows of states, skips and emissions of labels, a row of the vocabulary,
  // posteriors.
  double* states(int i) const { return scratch + 2 * P() * i; }
  double* skips() const { return states(2); }
  double* emissions() const { return skips() + P(); }
  double* posteriors() const { return emissions() + P(); }
  double* row() const { return posteriors() + 2 * P(); }
};

int64_t scratch_doubles(int64_t labels, int64_t V) {
  return 8 * ctc_width(labels) + whole_vectors(V);
}

double log_add(double a, double b) {
  const double most = std::max(a, b);
  return most == kNone ? kNone : most + std::log(std::exp(a - most) + std::exp(b - most));
}

// NaN for a row with a NaN or +inf, or of -inf only: it has no softmax.
double log_sum_exp(const float* x, int64_t V, double* row) {
  bool good = true;
  double most = kNone, total = 0;
  for (int64_t v = 0; v < V; ++v) {
    row[v] = x[v];
    good = good && row[v] < -kNone;
    most = std::max(most, row[v]);
  }
  if (!good || most == kNone) return kNan;
  std::fill(row + V, row + whole_vectors(V), kNone);
  HWY_DYNAMIC_DISPATCH(ctc_exp)(row, V, -most);
  for (int64_t v = 0; v < V; ++v) total += row[v];
  return most + std::log(total);
}

// Alphas run over the labels as they stand, betas over labels (and time) backwards.
int32_t label(const Utterance& u, int64_t i, bool backwards) {
  return u.labels[backwards ? u.L() - 1 - i : i];
}

// Before the first frame: in front of the first blank.
double* first_states(const Utterance& u, bool backwards) {
  std::fill_n(u.states(0), 2 * u.P(), kNone);
  u.states(0)[0] = 0;
  std::fill_n(u.skips(), u.P(), kNone);
  for (int64_t i = 1; i < u.L(); ++i)
    if (label(u, i, backwards) != label(u, i - 1, backwards)) u.skips()[i] = 0;
  std::fill_n(u.emissions(), u.P(), kNone);
  return u.states(0);
}

void emit(const Utterance& u, int64_t t, bool backwards, double* states) {
  const float* x = u.logits.row(t);
  const int64_t P = u.P();
  for (int64_t i = 0; i < u.L(); ++i) u.emissions()[i] = x[label(u, i, backwards)] - u.lse[t];
  const double blank = x[u.blank] - u.lse[t];
  for (int64_t i = 0; i < P; ++i) states[i] += blank;
  for (int64_t i = 0; i < P; ++i) states[P + i] += u.emissions()[i];
}

// log p(labels); NaN if a frame has no softmax.
double forward(const Utterance& u) {
  bool good = true;
  for (int64_t t = 0; t < u.T(); ++t) {
    u.lse[t] = log_sum_exp(u.logits.row(t), u.V(), u.row());
    good = good && !std::isnan(u.lse[t]);
  }
  if (!good) return kNan;
  const double* prev = first_states(u, false);
  for (int64_t t = 0; t < u.T(); ++t) {
    double* next = u.alphas + t * 2 * u.P();
    HWY_DYNAMIC_DISPATCH(ctc_step)(prev, u.skips(), u.P(), next);
    emit(u, t, false, next);
    prev = next;
  }
  return log_add(prev[u.L()], u.L() ? prev[u.P() + u.L() - 1] : kNone);
}

// row = softmax - posteriors. betas: log p(frames after t | state at t), states backwards.
void gradient_row(const Utterance& u, int64_t t, const double* betas, double log_p) {
  const int64_t L = u.L(), P = u.P();
  const double* alphas = u.alphas + t * 2 * P;
  double* posterior = u.posteriors();  // of the L + 1 blanks, then of the L labels
  for (int64_t i = 0; i <= L; ++i) posterior[i] = alphas[i] + betas[L - i];
  for (int64_t i = 0; i < L; ++i) posterior[L + 1 + i] = alphas[P + i] + betas[P + L - 1 - i];
  HWY_DYNAMIC_DISPATCH(ctc_exp)(posterior, 2 * L + 1, -log_p);
  double* row = u.row();
  for (int64_t v = 0; v < u.V(); ++v) row[v] = u.logits.row(t)[v];
  HWY_DYNAMIC_DISPATCH(ctc_exp)(row, u.V(), -u.lse[t]);
  for (int64_t i = 0; i <= L; ++i) row[u.blank] -= posterior[i];
  for (int64_t i = 0; i < L; ++i) row[u.labels[i]] -= posterior[L + 1 + i];
}

void write_row(const double* row, double weight, int64_t V, float* to, bool add) {
  for (int64_t v = 0; v < V; ++v)
    to[v] = static_cast<float>(weight * row[v]) + (add ? to[v] : 0.0f);
}

// The same number everywhere: no path, or no loss.
void constant_gradient(const Utterance& u, double value, Grad grad) {
  std::fill_n(u.row(), u.V(), value);
  for (int64_t t = 0; t < u.T(); ++t) write_row(u.row(), 1, u.V(), grad.to.row(t), grad.add);
}

void backward(const Utterance& u, double log_p, double weight, Grad grad) {
  if (std::isnan(log_p)) return constant_gradient(u, kNan, grad);
  if (log_p == kNone) return constant_gradient(u, 0, grad);
  std::fill_n(u.posteriors(), 2 * u.P(), kNone);
  std::fill_n(u.row(), whole_vectors(u.V()), kNone);
  double *prev = first_states(u, true), *next = u.states(1);
  for (int64_t t = u.T() - 1; t >= 0; --t) {
    HWY_DYNAMIC_DISPATCH(ctc_step)(prev, u.skips(), u.P(), next);
    gradient_row(u, t, next, log_p);
    write_row(u.row(), weight, u.V(), grad.to.row(t), grad.add);
    emit(u, t, true, next);
    std::swap(prev, next);
  }
}

void check(const Tensor& logits, const Segments& segments, const CtcTargets& targets, int blank) {
  const int64_t V = logits.width();
  CHECK(logits.shape.rank() == 2 && logits.shape[0] == segments.total(),
        "ctc: logits are {}, the batch has {} frames", logits.shape, segments.total());
  CHECK(blank >= 0 && blank < V, "ctc: blank {} of {} units", blank, V);
  CHECK(std::ssize(targets.starts) == segments.batch() + 1,
        "ctc: labels of {} utterances, frames of {}", std::ssize(targets.starts) - 1,
        segments.batch());
  for (int b = 0; b < segments.batch(); ++b) {
    CHECK(targets.starts[b] >= 0 && targets.count(b) >= 0 &&
              targets.starts[b + 1] <= std::ssize(targets.labels),
          "ctc: labels [{}, {}) of {}", targets.starts[b], targets.starts[b + 1],
          targets.labels.size());
    for (int32_t label : targets.of(b))
      if (label < 0 || label >= V || label == blank)
        fail(Kind::input, "ctc: utterance {}: label {} (expected 0 to {}, and not the blank, {})",
             segments.utterances[b], label, V - 1, blank);
  }
}

// Utterances with fewer frames than their labels need, and a blank between repeats. Known without
// looking at a logit: a GPU need not be asked.
int32_t count_infeasible(const Segments& segments, const CtcTargets& targets) {
  int32_t count = 0;
  for (int b = 0; b < segments.batch(); ++b) {
    const std::span<const int32_t> labels = targets.of(b);
    int64_t needed = std::ssize(labels);
    for (size_t i = 1; i < labels.size(); ++i) needed += labels[i] == labels[i - 1];
    count += segments.length(b) < needed;
  }
  return count;
}

// Numbers in the alphas of the utterances before b.
int64_t alphas_before(const Segments& segments, const CtcTargets& targets, int b) {
  int64_t count = 0;
  for (int i = 0; i < b; ++i) count += segments.length(i) * 2 * ctc_width(targets.count(i));
  return count;
}

int64_t scratch_row(const Segments& segments, const CtcTargets& targets, int64_t V) {
  int64_t most = 0;
  for (int b = 0; b < segments.batch(); ++b) most = std::max(most, targets.count(b));
  return scratch_doubles(most, V);
}

// f(b, utterance b) in parallel, each with a row of scratch.
template <class F>
void for_utterances(Tensor logits, const Segments& segments, const CtcTargets& targets, int blank,
                    const CtcOut& out, Tensor scratch, F&& f) {
  cpu::parallel_for(segments.batch(), 1, [&](int64_t b, int64_t) {
    const int64_t first = segments.starts[b];
    const Utterance u{logits.slice(first, segments.length(b)),
                      targets.of(b),
                      blank,
                      out.lse.as<double>() + first,
                      out.alphas.as<double>() + alphas_before(segments, targets, b),
                      scratch.as<double>() + b * scratch.row_stride};
    f(b, u);
  });
}

// A guess for the profile: a state costs about 60 operations, an exponential 20.
double flops(Tensor logits, const CtcOut& out) {
  return 60.0 * out.alphas.count() + 20.0 * logits.count();
}

}  // namespace

CtcOut ctc_forward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                   int blank) {
  check(logits, segments, targets, blank);
  const int64_t B = segments.batch(), T = logits.shape[0];
  const CtcOut out{ctx.activation({B}), ctx.activation({B}, Dtype::f64),
                   ctx.activation({T}, Dtype::f64),
                   ctx.activation({alphas_before(segments, targets, B)}, Dtype::f64),
                   count_infeasible(segments, targets)};
  ProfileScope profile(ctx.profile, "ctc", flops(logits, out),
                       4.0 * logits.count() + 8.0 * out.alphas.count());
  if (ctx.device == Device::cuda)
    return cuda::ctc_forward(ctx, logits, segments, targets, blank, out), out;
  ScratchScope scope(ctx.scratch);
  const Tensor scratch =
      ctx.temporary({B, scratch_row(segments, targets, logits.width())}, Dtype::f64);
  if (ctx.dry) return out;
  double* log_p = out.log_p.as<double>();
  for_utterances(logits, segments, targets, blank, out, scratch, [&](int64_t b, const auto& u) {
    log_p[b] = forward(u);
    out.losses.f32()[b] = log_p[b] == kNone ? 0.0f : static_cast<float>(-log_p[b]);
  });
  return out;
}

void ctc_backward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                  std::span<const float> weights, int blank, const CtcOut& out, Grad dlogits) {
  const int64_t B = segments.batch();
  CHECK(std::ssize(weights) == B, "ctc: {} weights of {} utterances", weights.size(), B);
  if (!dlogits) return;
  ProfileScope profile(ctx.profile, "ctc.backward", 1.5 * flops(logits, out),
                       8.0 * logits.count() + 8.0 * out.alphas.count());
  if (ctx.device == Device::cuda)
    return cuda::ctc_backward(ctx, logits, segments, targets, weights, blank, out, dlogits);
  ScratchScope scope(ctx.scratch);
  const Tensor scratch =
      ctx.temporary({B, scratch_row(segments, targets, logits.width())}, Dtype::f64);
  if (ctx.dry) return;
  for_utterances(logits, segments, targets, blank, out, scratch, [&](int64_t b, const auto& u) {
    const Tensor rows = dlogits.to.slice(segments.starts[b], segments.length(b));
    backward(u, out.log_p.as<double>()[b], weights[b], {rows, dlogits.add});
  });
}

}  // namespace sft
#endif
