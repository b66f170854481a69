// 16-bit arithmetic at the widths of released models, at their initial values: gradients keep their
// direction, tensor by tensor. (The tiny golden models are drawn far from initial values, and their
// sharp attention makes much more of a rounding, in PyTorch as well.)
#include "engine/cpu/narrow.h"
#include "models/initialise.h"
#include "tests/ctc_model.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"

using namespace sft;

namespace {

constexpr int kClasses = 11;
constexpr double kLeastCosine = 0.9995;

// Base with two blocks in place of twelve, with a quarter of the convolutions: they are
// what an emulator takes its time for.
Config two_blocks(std::string_view arch) {
  Config config = preset(arch);
  config.layers = 2;
  config.conv_dims.assign(7, 128), config.pos_kernel = 32;
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

// Zero in theory, or nearly: every key's score gets the same; gates' slopes cancel over the keys
// (PyTorch's autocast is off by 1e-2 and more in both).
bool cancels(const std::string& name) {
  return name.ends_with("attn.k.bias") || name.ends_with("rel_gate.bias");
}

void check(std::string_view arch, Where where) {
  const Config config = two_blocks(arch);
  const TensorMap tensors = initial(config);
  constexpr int64_t kDeviceBytes = int64_t{1} << 29;
  test::CtcModel exact(config, kClasses, tensors, true, {});
  test::CtcModel rounded(config, kClasses, tensors, true, where, kDeviceBytes);
  exact.backward(batch()), rounded.backward(batch());
  const Tensor truth = exact.gradients(), ours = rounded.gradients();
  int compared = 0;
  for (size_t i = 0; i < exact.store.named().size(); ++i) {
    const ParamStore::Named &a = exact.store.named()[i], &b = rounded.store.named()[i];
    if (a.name == "mask_emb" || cancels(a.name)) continue;
    const double cosine =
        test::cosine(rounded.gradient_of(b, ours), exact.gradient_of(a, truth), a.value.count());
    EXPECT_MESSAGE(cosine >= kLeastCosine,
                   fmt::format("{} grad {}: cosine 1 - {:.2g}", arch, a.name, 1 - cosine));
    ++compared;
  }
  EXPECT(compared > 40);
}

}  // namespace

TEST_CASE("real width: gradients of CTC in 16 bits on the CPU have the direction of exact ones") {
  for (const Math math : {Math::fast16, Math::bf16}) {
    if (!cpu::narrow::available(math)) return test::skip("needs AVX-512 with VNNI and BF16");
    for (const char* arch : {"hubert-base", "wavlm-base"}) check(arch, {Device::cpu, math});
  }
}
TEST_CASE("real width: gradients of CTC in bf16 on cuda have the direction of exact ones") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  for (const char* arch : {"hubert-base", "wavlm-base"}) check(arch, {Device::cuda, Math::bf16});
}
