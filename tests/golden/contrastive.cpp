// wav2vec 2.0's loss and its gradients against transformers in float64 (tests/golden/README.md).
#include "train/pretrain/contrastive.h"

#include "engine/transfer.h"
#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/op_spec.h"

using namespace sft;
using test::GoldenFile;

namespace {

constexpr uint64_t kSeed = 0x123456789ABCDEF0;
constexpr uint32_t kUpdate = 7;

// The two utterances of the golden file, what is hidden of them and what it is told from.
struct Given {
  std::vector<int32_t> lengths, counts, utterances{0, 1}, masked, rows, positives;
  std::vector<float> weights, penalty_weights, diversity{0.1f};
  std::vector<std::vector<float>> waves;
  SegmentList by_utterance;
  NegativeList negatives;

  explicit Given(const GoldenFile& values) {
    int32_t start = 0;
    for (int b = 0; b < 2; ++b) {
      const std::string prefix = fmt::format("utterance.{}.", b);
      waves.push_back(test::golden_signal(static_cast<uint32_t>(values.integer(prefix + "seed")),
                                          values.integer(prefix + "samples")));
      lengths.push_back(static_cast<int32_t>(waves[b].size()));
      const auto first = static_cast<int32_t>(masked.size());
      for (const int32_t r : values.integers(prefix + "negatives")) rows.push_back(first + r);
      const auto mask = values.integers(prefix + "mask");
      for (size_t t = 0; t < mask.size(); ++t)
        if (mask[t]) masked.push_back(start + static_cast<int32_t>(t));
      start += static_cast<int32_t>(mask.size());
      counts.push_back(static_cast<int32_t>(masked.size()) - first);
    }
    const auto n = static_cast<float>(masked.size());
    weights.assign(masked.size(), 1 / n);
    for (int32_t count : counts) penalty_weights.push_back(10 * static_cast<float>(count) / n);
    positives.assign(masked.size(), 0);
    by_utterance = SegmentList(counts, utterances);
    negatives.assign(static_cast<int64_t>(masked.size()),
                     static_cast<int64_t>(rows.size() / masked.size()), rows);
  }

  ContrastiveBatch batch(Segments frames) const {
    return {{frames, masked, weights, penalty_weights},
            by_utterance.view(),
            negatives.view(),
            positives,
            diversity};
  }
};

// Relative; where the exact value is zero, a hundred times the absolute one.
double error_of(std::string_view name, const float* ours, const std::vector<float>& theirs) {
  if (!name.ends_with("attn.k.bias") && name != "conv.0.bias")
    return test::relative_error(ours, theirs.data(), static_cast<int64_t>(theirs.size()));
  double worst = 0;
  for (size_t i = 0; i < theirs.size(); ++i)
    worst = std::max(worst, std::abs(static_cast<double>(ours[i]) - theirs[i]));
  return 100 * worst;
}

void check_contrastive(Where where) {
  const GoldenFile values("contrastive.safetensors");
  const ModelFile file = open_model(test::golden("models/wav2vec2-group"));
  ContrastiveModel model{Encoder(file.config), ContrastiveHead(file.config, 16)};
  OpRun run(/*poison=*/true, kSeed, kUpdate, where);
  ParamStore store(run.ctx.gpu);
  store.bind(param_requests(model), file.tensors, "golden", [](std::string_view) { return 0; },
             {"all"});
  Context ctx{.device = where.device,
              .acts = run.acts,
              .scratch = run.scratch,
              .prepared = store.prepared(),
              .rng = {kSeed, kUpdate},
              .gpu = run.ctx.gpu};
  Tape tape(ctx);
  const Given given(values);
  WavePack pack;
  pack.assign(file.config, given.lengths, given.utterances);
  const Tensor wave = pack.wave(ctx);
  for (int b = 0; b < 2; ++b) pack.place(ctx, wave, b, given.waves[b]);
  const Var features = model.encoder.features(tape, wave, pack);
  RunConfig config;
  config.pretrain.gumbel_decay = 0.9;
  const ContrastiveLosses losses = contrastive(tape, model, features, given.batch(pack.frames()),
                                               {.noise = gumbel_noise(config)}, config);
  tape.loss(losses.contrastive);
  tape.loss(losses.diversity.loss);
  tape.loss(losses.penalty);
  tape.backward();
  store.zero_unwritten();

  Arena host;
  const auto here = [&](Tensor t) { return on_host(ctx, t, host); };
  const auto close = [&](const char* name, double ours, double tolerance) {
    const double theirs = values.values(name)[0];
    EXPECT_MESSAGE(std::abs(ours - theirs) < tolerance * std::abs(theirs),
                   fmt::format("{} is {} (expected {})", name, ours, theirs));
  };
  const double nats = sum_of_losses(given.weights, here(losses.contrastive));
  const double diversity = *here(losses.diversity.loss).f32();
  const double penalty = sum_of_losses(given.penalty_weights, here(losses.penalty));
  close("contrastive", nats, 1e-5);
  close("diversity", diversity, 1e-5);
  close("perplexity", *here(losses.diversity.perplexity).f32(), 1e-5);
  close("loss", nats + 0.1 * diversity + penalty, 1e-5);
  EXPECT(*here(losses.temperature).f32() == doctest::Approx(2 * std::pow(0.9, 7)));
  const auto same = [&](const char* name, Tensor ours) {
    const std::vector<float> theirs = values.values(name);
    EXPECT(test::relative_error(here(ours).f32(), theirs.data(), ours.count()) < 1e-5);
  };
  same("mean_square", losses.penalty.value);
  same("targets", losses.targets.value);
  same("predictions", losses.predictions.value);
  const Tensor gradients = store.on_host(store.grad(), host);
  for (const ParamStore::Named& named : store.named()) {
    const float* ours = gradients.f32() + (named.value.f32() - store.master().f32());
    const double error = error_of(named.name, ours, values.values("grad." + named.name));
    EXPECT_MESSAGE(error < 1e-4, fmt::format("{}: {:.3g}", named.name, error));
  }
}

}  // namespace

TEST_CASE("golden: contrastive pre-training and its gradients equal transformers' in float64") {
  check_contrastive({});
}
TEST_CASE("golden: contrastive pre-training and its gradients on cuda, exact") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check_contrastive({Device::cuda, Math::exact});
}
