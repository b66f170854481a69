// Small models with random weights, written for tests of merging.
#pragma once

#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tests/temporary_folder.h"

namespace sft::test {

inline Config tiny_config() {
  Config c;
  c.layers = 2, c.width = 24, c.ffn = 40, c.heads = 2;
  c.conv_dims = {8, 8, 16}, c.conv_kernels = {10, 3, 2}, c.conv_strides = {5, 2, 2};
  c.pos_kernel = 6, c.pos_groups = 2, c.pretrain.dim = 8;
  c.provenance.set("general.name", std::string("tiny"));
  return c;
}

inline TensorMap initial_tensors(const Config& config, uint64_t seed) {
  TensorMap map;
  std::vector<TensorSpec> specs = backbone_tensors(config);
  specs.push_back({"pretrain.proj.weight", {config.pretrain.dim, config.width}});
  initialise_missing(map, specs, seed);
  return map;
}

// base + scale * (random - base), tensor by tensor.
inline TensorMap tuned_tensors(const TensorMap& base, const Config& config, uint64_t seed,
                               float scale = 0.03f) {
  TensorMap random = initial_tensors(config, seed), map;
  for (const auto& [name, tensor] : base.tensors) {
    std::vector<float> values(tensor.f32(), tensor.f32() + tensor.count());
    const float* other = random.find(name).f32();
    for (size_t i = 0; i < values.size(); ++i) values[i] += scale * (other[i] - values[i] + 0.01f);
    map.add_owned(name, tensor.shape, std::move(values));
  }
  return map;
}

// A base and three models that record it, in a folder of their own.
struct TinyModels {
  TemporaryFolder folder;
  Config config = tiny_config();
  TensorMap base_tensors = initial_tensors(config, 1);
  std::string base = folder / "base.gguf", base_id = model_id(base_tensors);
  std::vector<std::string> tuned;

  TinyModels() {
    save_model(base, "gguf", config, base_tensors);
    for (uint64_t i = 0; i < 3; ++i) {
      tuned.push_back(folder / ("tuned" + std::to_string(i) + ".gguf"));
      save_model(tuned[i], "gguf", tuned_config(), tuned_tensors(base_tensors, config, 10 + i));
    }
  }
  Config tuned_config() const {
    Config c = config;
    c.provenance.set("sft.base.id", base_id);
    return c;
  }
};

}  // namespace sft::test
