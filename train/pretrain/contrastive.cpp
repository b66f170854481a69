#include "train/pretrain/contrastive.h"

#include <algorithm>
#include <cmath>

#include "engine/check.h"
#include "engine/ops/add_losses.h"
#include "engine/ops/right_rows.h"
#include "engine/transfer.h"

namespace sft {

ContrastiveHead::ContrastiveHead(const Config& config, int64_t code_width)
    : proj(config.width, config.pretrain.dim),
      vq_proj(config.conv_dims.back(), config.pretrain.vq_groups * config.pretrain.vq_vars),
      codebook{{config.pretrain.vq_groups * config.pretrain.vq_vars,
                code_width / config.pretrain.vq_groups}},
      vq_out(code_width, config.pretrain.dim) {}

ContrastiveLosses contrastive(Tape& t, const ContrastiveModel& model, Var features,
                              const ContrastiveBatch& batch, ContrastiveOptions options,
                              const RunConfig& config) {
  const auto& p = config.pretrain;
  const ContrastiveHead& head = model.pretrain;
  const Config& c = model.encoder.config;
  const auto groups = static_cast<int>(c.pretrain.vq_groups);
  const std::span<const int32_t> masked = batch.hidden.masked;
  const Var x = scale_grad(t, features, static_cast<float>(p.feature_grad_mult));
  ContrastiveLosses out;
  out.penalty = feature_penalty(t, x, batch.hidden.segments, batch.hidden.penalty_weights);
  Var u = take_rows(t, x, masked);
  if (c.feat_norm) u = model.encoder.feat_norm(t, u, static_cast<float>(c.norm_eps));
  if (options.feature_dropout > 0)
    u = dropout(t, u, Dropout{options.feature_dropout, fnv1a("pretrain.vq.dropout")}, batch.masked);
  const Var scores = head.vq_proj(t, u);
  out.diversity = code_diversity(t, scores, groups, batch.diversity);
  const GumbelCode code =
      gumbel_quantise(t, scores, head.codebook, groups, options.noise, batch.masked);
  out.picks = code.picks, out.temperature = code.temperature;
  out.targets = head.vq_out(t, code.code);

  options.encode.masked = masked;
  const Var hidden = model.encoder.encode(t, x, batch.hidden.segments, options.encode).last();
  out.predictions = head.proj(t, take_rows(t, hidden, masked));
  out.logits = contrastive_logits(t, out.predictions, out.targets, code.picks, batch.negatives,
                                  static_cast<float>(p.temperature));
  out.contrastive = cross_entropy(t, out.logits, batch.positives, batch.hidden.weights);
  return out;
}

GumbelNoise gumbel_noise(const RunConfig& config) {
  const auto& p = config.pretrain;
  return {p.gumbel_start, p.gumbel_decay, p.gumbel_floor, fnv1a("gumbel")};
}

void draw_negatives(Draws& draws, int32_t M, int64_t each, int32_t first,
                    std::vector<int32_t>& rows) {
  CHECK(M >= 2, "negatives: {} masked frames, expected two or more", M);
  for (int32_t m = 0; m < M; ++m)
    for (int64_t k = 0; k < each; ++k) {
      const auto r = static_cast<int32_t>(draws.below(static_cast<uint32_t>(M - 1)));
      rows.push_back(first + r + (r >= m ? 1 : 0));
    }
}

namespace {

// Where the own target is the only largest, and how many a guess among what is left would get.
struct Hits {
  int64_t right = 0;
  double by_chance = 0;
};

Hits hits(Tensor logits) {
  Hits out;
  for (int64_t n = 0; n < logits.rows(); ++n) {
    const float *row = logits.row(n), *end = row + logits.width();
    out.right += std::all_of(row + 1, end, [&](float x) { return x < row[0]; });
    const auto left = std::count_if(row, end, [](float x) { return std::isfinite(x); });
    out.by_chance += 1 / static_cast<double>(std::max<int64_t>(left, 1));
  }
  return out;
}

// Sum over groups, of shares that need not add up to 1 yet.
double perplexity(std::span<const double> use, int64_t groups) {
  const size_t V = use.size() / static_cast<size_t>(groups);
  double sum = 0;
  for (size_t first = 0; first < use.size(); first += V) {
    double total = 0, entropy = 0;
    for (double x : use.subspan(first, V)) total += x;
    for (double x : use.subspan(first, V))
      if (x > 0) entropy -= x / total * std::log(x / total);
    sum += total > 0 ? std::exp(entropy) : 0;
  }
  return sum;
}

class ContrastiveObjective : public MaskedObjective {
 public:
  ContrastiveObjective(const RunConfig& config, const ContrastiveModel& model, const Split& train,
                       const Split& dev, const FrameBudget& frames)
      : MaskedObjective(config, model.encoder, train, dev, /*least=*/2, frames), model_(model) {
    training_ = {options_, static_cast<float>(model.encoder.config.train.feature_dropout),
                 gumbel_noise(config)};
  }

  std::vector<std::string> details() const override {
    return {"accuracy", "contrastive", "diversity", "penalty", "perplexity", "temperature"};
  }

  void add_numbers(Context& ctx, Tensor numbers) override {
    const auto add = [&](Tensor losses, std::span<const float> weights, int64_t number) {
      add_losses(ctx, losses, weights, numbers.slice(number, 1));
    };
    const HiddenFrames& hidden = batch_.hidden;
    ScratchScope acts(ctx.acts);
    for (const int64_t number : {0, 2}) add(losses_.contrastive, hidden.weights, number);
    for (const int64_t number : {0, 3}) add(losses_.diversity.loss, batch_.diversity, number);
    for (const int64_t number : {0, 4}) add(losses_.penalty, hidden.penalty_weights, number);
    add(right_rows(ctx, losses_.logits, batch_.positives), hidden.weights, 1);
    add(losses_.diversity.perplexity, {&share_, 1}, 5);
    add(losses_.temperature, {&share_, 1}, 6);
  }

  Scores evaluate(Context& ctx, const std::string& folder) override {
    const int64_t groups = model_.encoder.config.pretrain.vq_groups,
                  V = model_.encoder.config.pretrain.vq_vars;
    std::vector<double> soft(groups * V), picked(groups * V);
    int64_t masked = 0;
    double loss = 0, right = 0, chance = 0;
    for_each_dev_batch(ctx, [&] {
      const auto M = static_cast<int64_t>(batch_.hidden.masked.size());
      if (M == 0) return;
      ScratchScope host(host_);
      loss += sum_of_losses(batch_.hidden.weights, on_host(ctx, losses_.contrastive, host_));
      const Hits found = hits(on_host(ctx, losses_.logits, host_));
      right += static_cast<double>(found.right), chance += found.by_chance;
      const float* mean = on_host(ctx, losses_.diversity.mean, host_).f32();
      for (size_t v = 0; v < soft.size(); ++v) soft[v] += static_cast<double>(M) * mean[v];
      std::vector<int32_t> picks(M * groups);
      read(ctx, losses_.picks, picks.data());
      for (int64_t i = 0; i < M * groups; ++i) ++picked[i % groups * V + picks[i]];
      masked += M;
    });
    const auto n = static_cast<double>(std::max<int64_t>(masked, 1));
    return scored({{"loss", loss / n},
                   {"accuracy", right / n},
                   {"chance", chance / n},
                   {"perplexity", perplexity(soft, groups)},
                   {"code_perplexity", perplexity(picked, groups)}},
                  folder);
  }

 protected:
  void train_losses(Tape& t, Var features, const Batch& rows, uint32_t update) override {
    batch_ = place(train_, rows, update, update_masked_);
    losses_ = contrastive(t, model_, features, batch_, training_, config_);
    t.loss(losses_.contrastive);
    t.loss(losses_.diversity.loss);
    t.loss(losses_.penalty);
  }
  void dev_losses(Tape& t, Var features, const Batch& rows) override {
    batch_ = place(dev_, rows, 0, 1);
    losses_ = contrastive(t, model_, features, batch_, {}, config_);
  }

 private:
  // Good until the next call.
  ContrastiveBatch place(MaskedSplit& split, const Batch& rows, uint32_t update, int64_t n) {
    const auto& p = config_.pretrain;
    lengths_.clear(), utterances_.clear(), rows_.clear();
    int32_t first = 0;
    const HiddenFrames hidden =
        split.hide(rows, update, n, [&](uint32_t row, std::span<const int32_t> frames) {
          if (frames.empty()) return;
          const auto M = static_cast<int32_t>(frames.size());
          const uint32_t utterance = split.utterance(row);
          Draws draws(static_cast<uint64_t>(config_.run.seed), utterance, update,
                      fnv1a("negatives"));
          draw_negatives(draws, M, p.negatives, first, rows_);
          lengths_.push_back(M), utterances_.push_back(static_cast<int32_t>(utterance));
          first += M;
        });
    masked_ = SegmentList(lengths_, utterances_);
    negatives_.assign(first, p.negatives, rows_);
    positives_.assign(first, 0);
    share_ = static_cast<float>(first) / static_cast<float>(std::max<int64_t>(n, 1));
    diversity_ = static_cast<float>(p.diversity) * share_;
    return {hidden, masked_.view(), negatives_.view(), positives_, {&diversity_, 1}};
  }

  const ContrastiveModel& model_;
  ContrastiveOptions training_;
  std::vector<int32_t> lengths_, utterances_, rows_, positives_;
  SegmentList masked_;
  NegativeList negatives_;
  float share_ = 0;  // of the masked frames of the update
  float diversity_ = 0;
  ContrastiveBatch batch_;
  ContrastiveLosses losses_;
};

}  // namespace

std::unique_ptr<Objective> contrastive_objective(const RunConfig& config,
                                                 const ContrastiveModel& model, const Split& train,
                                                 const Split& dev, const FrameBudget& frames) {
  return std::make_unique<ContrastiveObjective>(config, model, train, dev, frames);
}

}  // namespace sft
