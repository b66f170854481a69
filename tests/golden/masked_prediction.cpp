// HuBERT's loss and its gradients against PyTorch in float64 (tests/golden/README.md).
#include "train/pretrain/masked_prediction.h"

#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"

using namespace sft;
using test::GoldenFile;

namespace {

// The two utterances of the golden file, their masks and labels.
struct Hidden {
  std::vector<int32_t> lengths, utterances{0, 1}, masked, labels;
  std::vector<float> weights, penalty_weights;
  std::vector<std::vector<float>> waves;

  explicit Hidden(const GoldenFile& values) {
    std::vector<size_t> counts;
    int32_t start = 0;
    for (int b = 0; b < 2; ++b) {
      const std::string prefix = fmt::format("utterance.{}.", b);
      waves.push_back(test::golden_signal(static_cast<uint32_t>(values.integer(prefix + "seed")),
                                          values.integer(prefix + "samples")));
      lengths.push_back(static_cast<int32_t>(waves[b].size()));
      const auto mask = values.integers(prefix + "mask"), all = values.integers(prefix + "labels");
      for (size_t t = 0; t < mask.size(); ++t)
        if (mask[t]) masked.push_back(start + static_cast<int32_t>(t)), labels.push_back(all[t]);
      start += static_cast<int32_t>(mask.size());
      counts.push_back(masked.size() - (b ? counts[0] : 0));
    }
    const auto n = static_cast<float>(masked.size());
    weights.assign(masked.size(), 1 / n);
    for (size_t count : counts) penalty_weights.push_back(10 * static_cast<float>(count) / n);
  }
};

double dot(const std::vector<float>& weights, Tensor losses) {
  double sum = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    sum += static_cast<double>(weights[i]) * losses.f32()[i];
  return sum;
}

}  // namespace

TEST_CASE("golden: masked prediction and its gradients equal PyTorch's in float64") {
  const GoldenFile values("masked-prediction.safetensors");
  ModelFile file = open_model(test::golden("models/hubert-group"));
  file.config.pretrain.dim = values.shape("pretrain.label_emb")[1];
  for (const char* name : {"pretrain.proj.weight", "pretrain.proj.bias", "pretrain.label_emb"})
    file.tensors.add_owned(name, values.shape(name), values.values(name));
  PretrainModel model{Encoder(file.config),
                      PretrainHead(file.config, values.shape("pretrain.label_emb")[0] - 4)};
  ParamStore store;
  store.bind(param_requests(model), file.tensors, "golden", [](std::string_view) { return 0; },
             {"all"});
  Arena acts(int64_t{1} << 36, true), scratch(int64_t{1} << 36, true);
  Context ctx{.acts = acts, .scratch = scratch, .prepared = store.prepared()};
  Tape tape(ctx);

  const Hidden batch(values);
  WavePack pack;
  pack.assign(file.config, batch.lengths, batch.utterances);
  const Tensor wave = pack.wave(ctx);
  for (int b = 0; b < 2; ++b) pack.place(ctx, wave, b, batch.waves[b]);
  const Var features = model.encoder.features(tape, wave, pack);
  const RunConfig config;
  const MaskedLosses losses = masked_prediction(
      tape, model, features,
      {pack.frames(), batch.masked, batch.labels, batch.weights, batch.penalty_weights}, {},
      config);
  tape.loss(losses.cross_entropy);
  tape.loss(losses.penalty);
  tape.backward();
  store.zero_unwritten();

  const double expected = values.values("loss")[0];
  const double loss =
      dot(batch.weights, losses.cross_entropy) + dot(batch.penalty_weights, losses.penalty);
  EXPECT_MESSAGE(std::abs(loss - expected) < 1e-6 * expected,
                 fmt::format("loss {} (expected {})", loss, expected));
  const std::vector<float> squares = values.values("mean_square");
  EXPECT(test::relative_error(losses.penalty.value.f32(), squares.data(), 2) < 1e-6);
  for (const ParamStore::Named& named : store.named()) {
    const float* ours = store.grad().f32() + (named.value.f32() - store.master().f32());
    const std::vector<float> theirs = values.values("grad." + named.name);
    double error = 0;
    const bool zero = named.name.ends_with("attn.k.bias");  // in theory: compared absolutely
    if (zero)
      for (size_t i = 0; i < theirs.size(); ++i)
        error = std::max(error, std::abs(static_cast<double>(ours[i]) - theirs[i]));
    else
      error = test::relative_error(ours, theirs.data(), named.value.count());
    EXPECT_MESSAGE(error < (zero ? 1e-6 : 1e-4), fmt::format("{}: {:.3g}", named.name, error));
  }
}
