// 16-bit arithmetic at the widths of released models, at their initial values: hidden states stay
// near, gradients keep their direction, tensor by tensor. (The tiny golden models are drawn far
// from initial values, and their sharp attention makes much more of a rounding, in PyTorch as
// well.)
#include "engine/cpu/narrow.h"
#include "models/initialise.h"
#include "tests/ctc_model.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"

using namespace sft;

namespace {

constexpr int kClasses = 11;
constexpr double kLeastCosine = 0.9995;

// Two blocks, with a quarter of the convolutions: they are what an emulator takes its time for.
Config two_blocks(std::string_view name) {
  Config config = preset(name);
  config.layers = 2;
  if (!config.log_mel()) config.conv_dims.assign(7, 128);
  if (!config.stacked_positions()) config.pos_kernel = 32;
  return config;
}

TensorMap initial(Config config) {
  TensorMap tensors;
  FineTuneModel model = test::CtcModel::with_head(config, kClasses);
  initialise_missing(tensors, backbone_tensors(config), 0);
  initialise_missing(tensors, tensor_specs(model.task), 0);
  return tensors;
}

test::CtcUtterances batch() {
  return {{test::golden_signal(3, 6000), test::golden_signal(4, 3000)},
          {{4, 1, 1, 9, 2, 5}, {8, 2, 2}}};
}

double norm(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double{values[i]} * values[i];
  return std::sqrt(sum);
}

// A model in f32 on the CPU, and in 16 bits.
struct Pair {
  TensorMap tensors;
  test::CtcModel exact, rounded;

  Pair(const Config& config, Where where)
      : tensors(initial(config)),
        exact(config, kClasses, tensors, true, {}),
        rounded(config, kClasses, tensors, true, where) {}
};

void check_states(Pair& models) {
  Tape a(models.exact.ctx, false), b(models.rounded.ctx, false);
  WavePack pack, same;
  const HiddenStates expected = models.exact.states(a, pack, batch().waves);
  const HiddenStates got = models.rounded.states(b, same, batch().waves);
  for (int l = 0; l < got.count; ++l) {
    const Tensor ours = on_host(models.rounded.ctx, got.states[l].value, models.rounded.host);
    const double error =
        test::relative_error(ours.f32(), expected.states[l].value.f32(), ours.count());
    EXPECT_MESSAGE(error <= 1.5e-2, fmt::format("state {}: {:.3g}", l, error));
  }
}

// Every tensor that a gradient reaches. That of a key's bias is zero in theory, since every key's
// score gets the same: it is small beside that of the query's.
void check_gradients(std::string_view model, Pair& models) {
  test::CtcModel &exact = models.exact, &rounded = models.rounded;
  exact.backward(batch()), rounded.backward(batch());
  const Tensor truth = exact.gradients(), ours = rounded.gradients();
  double query_bias = 0;
  int compared = 0;
  for (size_t i = 0; i < exact.store.named().size(); ++i) {
    const ParamStore::Named &a = exact.store.named()[i], &b = rounded.store.named()[i];
    const float *expected = exact.gradient_of(a, truth), *got = rounded.gradient_of(b, ours);
    const int64_t count = a.value.count();
    if (norm(expected, count) == 0) {
      EXPECT_MESSAGE(norm(got, count) == 0, fmt::format("{} {}", model, a.name));
      continue;
    }
    if (a.name.ends_with("attn.q.bias")) query_bias = norm(expected, count);
    if (a.name.ends_with("attn.k.bias")) {
      EXPECT_MESSAGE(norm(got, count) <= 1e-2 * query_bias, fmt::format("{} {}", model, a.name));
      continue;
    }
    const double cosine = test::cosine(got, expected, count);
    EXPECT_MESSAGE(cosine >= kLeastCosine,
                   fmt::format("{} grad {}: cosine 1 - {:.2g}", model, a.name, 1 - cosine));
    ++compared;
  }
  EXPECT(compared > 35);
}

// Every architecture, and every order of norms; the other presets compute what one of these does.
const char* const kModels[] = {"unispeech-sat-large", "wav2vec2-large", "wavlm-base", "wavlm-large",
                               "data2vec-audio-base", "distilhubert",   "decoar2"};

}  // namespace

TEST_CASE("real width: gradients of CTC in 16 bits on the CPU have the direction of exact ones") {
  for (const Math math : {Math::fast16, Math::bf16}) {
    if (!cpu::narrow::available(math)) return test::skip("needs AVX-512 with VNNI and BF16");
    for (const char* model : {"hubert-base", "wavlm-base"}) {
      Pair models(two_blocks(model), {Device::cpu, math});
      check_gradients(model, models);
    }
  }
}
TEST_CASE("real width: gradients of CTC in bf16 on cuda have the direction of exact ones") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  for (const char* model : kModels) {
    Pair models(two_blocks(model), {Device::cuda, Math::bf16});
    check_gradients(model, models);
  }
}
TEST_CASE("real width: HuBERT Base, whole, in bf16 on cuda") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  Pair models(preset("hubert-base"), {Device::cuda, Math::bf16});
  check_states(models);
  check_gradients("hubert-base", models);
}
