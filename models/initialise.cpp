#include "models/initialise.h"

#include <cmath>
#include <string>

#include "engine/rng.h"

namespace sft {
namespace {

class Values {
 public:
  Values(std::string_view name, const Shape& shape, uint64_t seed)
      : values_(shape.count()), draws_(seed, 0, 0, fnv1a(name, fnv1a("init."))) {}

  std::vector<float> constant(float value) {
    values_.assign(values_.size(), value);
    return values_;
  }
  std::vector<float> uniform(double low, double high) {
    for (float& x : values_) x = static_cast<float>(low + (high - low) * draws_.uniform());
    return values_;
  }
  std::vector<float> normal(double deviation) {
    for (float& x : values_) x = static_cast<float>(deviation * draws_.normal());
    return values_;
  }

 private:
  std::vector<float> values_;
  Draws draws_;
};

// Inputs behind one output: [out, in, taps...].
double fan_in(const Shape& shape) {
  return static_cast<double>(shape.count()) / static_cast<double>(shape[0]);
}

// Of the weight that a bias stands beside, whose fan-in a bias of PyTorch's layers is drawn with.
double weight_fan_in(std::string_view name, const Shape& shape,
                     const std::vector<TensorSpec>& specs) {
  const std::string weight = std::string(name.substr(0, name.size() - 4)) + "weight";
  for (const TensorSpec& spec : specs)
    if (spec.name == weight) return fan_in(spec.shape);
  return static_cast<double>(shape[0]);
}

std::vector<float> values_of(std::string_view name, const Shape& shape, uint64_t seed,
                             double inputs) {
  Values values(name, shape, seed);
  const bool bias = name.ends_with(".bias");
  const double bound = 1 / std::sqrt(inputs);
  if (name.find("norm.") != std::string_view::npos) return values.constant(bias ? 0 : 1);
  if (name == "mask_emb" || name == "pretrain.label_emb" || name == "pretrain.vq.codebook")
    return values.uniform(0, 1);
  if (name.starts_with("pretrain.vq.proj.")) return bias ? values.constant(0) : values.normal(1);
  if (name == "task.layer_weights") return values.constant(0);
  if (name.ends_with("rel_gate.scale")) return values.constant(1);
  if (name.starts_with("conv."))
    return bias ? values.uniform(-bound, bound) : values.normal(std::sqrt(2 / inputs));
  if (name.starts_with("pos_conv.")) {
    if (bias) return values.constant(0);
    if (!name.ends_with("weight_v")) return values.uniform(-bound, bound);
    const double taps = static_cast<double>(shape.back()), width = static_cast<double>(shape[0]);
    return values.normal(std::sqrt(4 / (taps * width)));
  }
  if (name.starts_with("enc.")) return bias ? values.constant(0) : values.normal(0.02);
  return values.uniform(-bound, bound);
}

// g of a weight-normalised convolution: the norm of each tap of v.
std::vector<float> tap_norms(const Tensor& v) {
  const int64_t taps = v.shape.back();
  std::vector<double> sums(taps);
  for (int64_t i = 0; i < v.count(); ++i)
    sums[i % taps] += static_cast<double>(v.f32()[i]) * v.f32()[i];
  std::vector<float> norms;
  for (double sum : sums) norms.push_back(static_cast<float>(std::sqrt(sum)));
  return norms;
}

double lstm_width(const Shape& shape) { return static_cast<double>(shape[0]) / 4; }

}  // namespace

void initialise_missing(TensorMap& tensors, const std::vector<TensorSpec>& specs, uint64_t seed) {
  for (const TensorSpec& spec : specs) {
    if (tensors.find(spec.name).data || spec.name.ends_with("weight_g")) continue;
    const bool bias = spec.name.ends_with(".bias"), rnn = spec.name.starts_with("task.rnn.");
    const bool sets = spec.name.starts_with("pretrain.distill.1.");  // [set, in, out], [set, out]
    const double inputs = rnn    ? lstm_width(spec.shape)
                          : sets ? static_cast<double>(spec.shape[1])
                          : bias ? weight_fan_in(spec.name, spec.shape, specs)
                                 : fan_in(spec.shape);
    tensors.add_owned(spec.name, spec.shape, values_of(spec.name, spec.shape, seed, inputs));
  }
  for (const TensorSpec& spec : specs) {
    if (tensors.find(spec.name).data || !spec.name.ends_with("weight_g")) continue;
    std::string v = spec.name;
    v.back() = 'v';
    tensors.add_owned(spec.name, spec.shape, tap_norms(tensors.find(v)));
  }
}

}  // namespace sft
