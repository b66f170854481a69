#include "train/probe_fit.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/cpu/parallel.h"
#include "models/initialise.h"
#include "train/batch_plan.h"
#include "train/metrics.h"
#include "train/optimise.h"

namespace sft {
namespace {

constexpr double kClip = 1.0;

// Utterances in a new order every epoch, one epoch after the other.
class Order {
 public:
  Order(size_t utterances, uint64_t seed) : seed_(seed), order_(utterances) {}

  uint32_t next() {
    if (at_ % order_.size() == 0) shuffle(static_cast<uint32_t>(at_ / order_.size()));
    return order_[at_++ % order_.size()];
  }

 private:
  void shuffle(uint32_t epoch) {
    std::iota(order_.begin(), order_.end(), 0);
    Draws draws(seed_, 0, epoch, fnv1a("shuffle"));
    for (size_t i = order_.size(); i-- > 1;)
      std::swap(order_[i], order_[draws.below(static_cast<uint32_t>(i + 1))]);
  }

  uint64_t seed_;
  std::vector<uint32_t> order_;
  size_t at_ = 0;
};

// A head with its parameters, and the batch that it sees.
class Probe {
 public:
  Probe(const ProbeSettings& settings, const StateCache& like, uint64_t seed)
      : settings_(settings),
        task_{TaskHead(settings.head, like.width,
                       like.states.size() > 1 ? static_cast<int>(like.states.size()) : 0)},
        ctx_{.acts = acts_, .scratch = scratch_, .prepared = store_.prepared()},
        tape_(ctx_) {
    TensorMap initial;
    initialise_missing(initial, tensor_specs(task_), seed);
    store_.bind(param_requests(task_), initial, "probe", [](std::string_view) { return 0; },
                {"head"});
  }

  // False: no finite gradient, nothing changed.
  bool update(const ProbeSet& set, std::span<const uint32_t> batch, double lr) {
    acts_.rewind(), scratch_.rewind();
    store_.forget_gradients();
    take(set, batch);
    const Var logits = forward(tape_, set, batch);
    tape_.loss(losses(tape_, logits));
    tape_.backward();
    tape_.clear();
    double no_loss = 0, norm = 0;  // losses are not looked at
    const auto number = [](double& x) { return Tensor(&x, {1}, Dtype::f64); };
    optimise(ctx_, store_, {.lr = static_cast<float>(lr), .clip = kClip}, number(no_loss),
             number(norm));
    return std::isfinite(norm);
  }

  ProbeScore score(const ProbeSet& set) {
    ProbeScore sum;
    Edits edits;
    int64_t right = 0;
    std::vector<uint32_t> batch;
    const size_t count = set.cache.utterances(), most = static_cast<size_t>(settings_.batch);
    for (size_t begin = 0; begin < count; begin += most) {
      batch.resize(std::min(most, count - begin));
      std::iota(batch.begin(), batch.end(), static_cast<uint32_t>(begin));
      acts_.rewind(), scratch_.rewind();
      Tape tape(ctx_, /*recording=*/false);
      take(set, batch);
      const Tensor logits = forward(tape, set, batch);
      const Tensor each = losses(tape, {logits});
      for (size_t b = 0; b < batch.size(); ++b)
        sum.loss += each.f32()[b] * weights_[b] * static_cast<double>(batch.size());
      if (settings_.ctc())
        edits += edits_of(set, batch, logits);
      else
        right += right_of(logits);
    }
    sum.loss /= static_cast<double>(count);
    sum.value =
        settings_.ctc() ? edits.rate() : static_cast<double>(right) / static_cast<double>(count);
    return sum;
  }

  std::vector<float> weights() const {
    const Tensor master = store_.master();
    return {master.f32(), master.f32() + master.count()};
  }
  void set_weights(std::span<const float> weights) {
    const Tensor master = store_.master();
    CHECK(static_cast<int64_t>(weights.size()) == master.count(), "probe: {} weights, expected {}",
          weights.size(), master.count());
    std::memcpy(master.data, weights.data(), weights.size_bytes());
    store_.weights_changed(store_.ranges()[0]);
  }
  const TaskHead& head() const { return task_.head; }

 private:
  // What the ops want to know of a batch besides its states.
  void take(const ProbeSet& set, std::span<const uint32_t> batch) {
    starts_.assign(1, 0), utterances_.clear(), labels_.clear(), label_starts_.assign(1, 0);
    weights_.clear();
    for (uint32_t i : batch) {
      const std::vector<int32_t>& target = set.targets[i];
      starts_.push_back(starts_.back() + static_cast<int32_t>(set.cache.length(i)));
      utterances_.push_back(static_cast<int32_t>(i));
      labels_.insert(labels_.end(), target.begin(), target.end());
      label_starts_.push_back(static_cast<int32_t>(labels_.size()));
      const double labels = static_cast<double>(std::max<size_t>(1, target.size()));
      weights_.push_back(static_cast<float>(1 / (labels * static_cast<double>(batch.size()))));
    }
  }

  // [rows of the batch, C] of each state.
  Var forward(Tape& t, const ProbeSet& set, std::span<const uint32_t> batch) {
    const StateCache& cache = set.cache;
    states_.clear();
    for (const std::vector<float>& from : cache.states) {
      const Tensor to = ctx_.activation({starts_.back(), cache.width});
      cpu::parallel_for(static_cast<int64_t>(batch.size()), 4, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b)
          std::memcpy(to.row(starts_[b]), from.data() + cache.starts[batch[b]] * cache.width,
                      cache.length(batch[b]) * cache.width * sizeof(float));
      });
      states_.push_back({to});
    }
    return task_.head(t, std::span<const Var>(states_), segments());
  }

  Var losses(Tape& t, Var logits) {
    if (settings_.ctc())
      return ctc(t, logits, segments(), {labels_, label_starts_}, weights_, settings_.head.blank)
          .losses;
    return cross_entropy(t, logits, labels_, weights_);
  }

  Segments segments() const { return {starts_, utterances_}; }

  int64_t right_of(Tensor logits) const {
    int64_t right = 0;
    for (int64_t b = 0; b < logits.rows(); ++b) {
      const float* row = logits.row(b);
      right += std::max_element(row, row + logits.width()) - row == labels_[b];
    }
    return right;
  }

  Edits edits_of(const ProbeSet& set, std::span<const uint32_t> batch, Tensor logits) const {
    Edits edits;
    const Segments at = segments();
    for (size_t b = 0; b < batch.size(); ++b) {
      const Tensor frames = logits.slice(at.starts[b], at.length(static_cast<int>(b)));
      const std::vector<int32_t>& said = set.targets[batch[b]];
      const std::vector<int32_t> heard = greedy_ctc(frames, settings_.units->blank());
      edits += settings_.metric == ProbeMetric::per
                   ? count_edits(said, heard)
                   : word_edits(settings_.units->decode(said), settings_.units->decode(heard));
    }
    return edits;
  }

  const ProbeSettings& settings_;
  NamedTaskHead task_;
  ParamStore store_;
  Arena acts_, scratch_;
  Context ctx_;
  Tape tape_;
  std::vector<Var> states_;
  std::vector<int32_t> starts_, utterances_, labels_, label_starts_;  // of the batch
  std::vector<float> weights_;
};

}  // namespace

std::string_view name(ProbeMetric metric) {
  constexpr std::string_view kNames[] = {"accuracy", "per", "wer"};
  return kNames[static_cast<int>(metric)];
}

bool better(ProbeMetric metric, double a, double b) {
  return metric == ProbeMetric::accuracy ? a > b : a < b;
}

ProbeFit fit_probe(const ProbeSet& train, const ProbeSet& dev, const ProbeSettings& settings,
                   double lr, uint64_t seed, const std::function<void(int64_t step)>& progress) {
  Probe probe(settings, train.cache, seed);
  Order order(train.cache.utterances(), seed);
  std::vector<uint32_t> batch(std::min<size_t>(settings.batch, train.cache.utterances()));
  const int64_t every = std::max<int64_t>(1, settings.steps / 10);
  ProbeFit fit{.lr = lr, .seed = seed};
  int64_t skips_in_row = 0;
  for (int64_t step = 1; step <= settings.steps && !fit.diverged; ++step) {
    for (uint32_t& utterance : batch) utterance = order.next();
    const bool finite = probe.update(train, batch, lr);
    skips_in_row = finite ? 0 : skips_in_row + 1;
    fit.skipped += !finite;
    fit.diverged = skips_in_row >= kMaxProbeSkips;
    if (progress) progress(step);
    if (step % every != 0 && step != settings.steps && !fit.diverged) continue;
    const ProbeScore score = probe.score(dev);
    if (fit.step != 0 && !better(settings.metric, score.value, fit.dev.value)) continue;
    fit.dev = score, fit.step = step, fit.weights = probe.weights();
  }
  return fit;
}

ProbeScore score_probe(const ProbeSet& set, const ProbeSettings& settings, const ProbeFit& fit) {
  Probe probe(settings, set.cache, fit.seed);
  probe.set_weights(fit.weights);
  return probe.score(set);
}

std::vector<double> layer_shares(const ProbeSet& set, const ProbeSettings& settings,
                                 const ProbeFit& fit) {
  if (set.cache.states.size() == 1) return {1};
  Probe probe(settings, set.cache, fit.seed);
  probe.set_weights(fit.weights);
  const Tensor w = probe.head().layer_weights.var;
  std::vector<double> shares;
  double sum = 0;
  for (int64_t l = 0; l < w.count(); ++l) sum += shares.emplace_back(std::exp(w.f32()[l]));
  for (double& share : shares) share /= sum;
  return shares;
}

}  // namespace sft
