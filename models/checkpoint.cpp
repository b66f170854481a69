#include "models/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <memory>
#include <set>

#include "engine/formats/gguf.h"
#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "engine/io/hash.h"
#include "engine/nearest.h"
#include "models/encoder.h"
#include "models/huggingface.h"

namespace sft {
namespace {

namespace fs = std::filesystem;

TensorMap all_tensors(const std::shared_ptr<TensorFile>& file) {
  TensorMap map;
  map.keep.push_back(file);
  for (const TensorInfo& info : file->tensors()) {
    if (!file->viewable(info))
      fail(Kind::input, "{}: tensor {} is not aligned", file->path(), printable(info.name));
    map.tensors[info.name] = file->view(info);
  }
  return map;
}

// Our containers drop leading dimensions of 1 nowhere, but other writers of GGUF do (ggml): shapes
// with as many elements as the schema's are the schema's.
void restore_shapes(ModelFile& model) {
  for (const TensorSpec& spec : backbone_tensors(model.config)) {
    const auto it = model.tensors.tensors.find(spec.name);
    if (it == model.tensors.tensors.end() || it->second.shape == spec.shape) continue;
    Tensor& tensor = it->second;
    const auto squeezed = [](const Shape& shape) {
      std::vector<int64_t> dims;
      for (int64_t d : shape.dims())
        if (d != 1 || !dims.empty()) dims.push_back(d);
      return dims;
    };
    if (squeezed(tensor.shape) != squeezed(spec.shape)) continue;
    tensor = Tensor(tensor.data, spec.shape, tensor.dtype);
  }
}

void check_tensors(const ModelFile& model) {
  std::set<std::string, std::less<>> known;
  for (const TensorSpec& spec : backbone_tensors(model.config)) {
    const Tensor tensor = model.tensors.find(spec.name);
    if (!tensor.data)
      fail(Kind::input, "{}: tensor {} is missing (expected {})", model.path, spec.name,
           spec.shape);
    if (tensor.shape != spec.shape)
      fail(Kind::input, "{}: tensor {} is {} (expected {})", model.path, spec.name, tensor.shape,
           spec.shape);
    known.insert(spec.name);
  }
  for (const auto& [name, tensor] : model.tensors.tensors) {
    if (!is_backbone(name) || known.contains(name)) continue;
    const std::vector<std::string> names(known.begin(), known.end());
    fail(Kind::input, Hint{did_you_mean(name, names)},
         "{}: tensor {} {} is not one of this {} model", model.path, printable(name), tensor.shape,
         model.config.arch);
  }
}

ModelFile open_file(const std::string& path) {
  const auto file = std::make_shared<TensorFile>(open_tensor_file(path));
  const bool gguf =
      !file->metadata().has(kFormatNote) && file->metadata().has("general.architecture");
  if (!gguf && !file->metadata().has(kFormatNote))
    fail(Kind::input,
         Hint{"a Hugging Face model is read as its folder, with config.json beside the weights"},
         "{}: has no configuration of a model", path);
  ModelFile model{.path = path, .format = gguf ? "gguf" : "safetensors"};
  model.config = config_from_metadata(
      gguf ? file->metadata() : metadata_from_strings(file->metadata(), path), path);
  model.tensors = all_tensors(file);
  restore_shapes(model);
  return model;
}

// The name in a one-line file, which must be that of something beside it.
std::string pointed_to(const std::string& path) {
  std::string name = read_text(path);
  while (!name.empty() && name.back() == '\n') name.pop_back();
  if (name.empty() || name.find('/') != std::string::npos || name.starts_with("."))
    fail(Kind::input, "{}: {} is no checkpoint's name", path, printable(name));
  return name;
}

// A run: a folder with run.toml; BEST names its best checkpoint.
std::string best_checkpoint(const std::string& run, std::vector<std::string>& remarks) {
  const std::string best = run + "/ckpt/BEST";
  if (!fs::exists(best)) {
    std::string hint = "it has no checkpoint yet";
    if (fs::exists(run + "/ckpt/LAST"))
      hint = fmt::format("name a checkpoint: {}/ckpt/{}", run, pointed_to(run + "/ckpt/LAST"));
    fail(Kind::input, Hint{hint}, "{}: this run has no best checkpoint", run);
  }
  if (!fs::exists(run + "/done"))
    remarks.push_back(fmt::format("{}: this run is not finished", run));
  return run + "/ckpt/" + pointed_to(best);
}

}  // namespace

ModelFile open_model(const std::string& path) {
  std::vector<std::string> remarks;
  std::string at = path;
  if (fs::is_directory(at) && fs::exists(at + "/run.toml")) at = best_checkpoint(at, remarks);
  if (fs::is_directory(at) && fs::exists(at + "/model.gguf")) at += "/model.gguf";
  ModelFile model;
  if (is_huggingface_folder(at)) {
    model = open_huggingface(at);
    check_config(model.config, at);
  } else if (fs::is_directory(at)) {
    fail(Kind::input, "{}: this folder is no model (expected config.json, or a run)", path);
  } else {
    model = open_file(at);
  }
  model.path = path;
  model.remarks.insert(model.remarks.begin(), remarks.begin(), remarks.end());
  check_tensors(model);
  return model;
}

std::vector<TensorSpec> backbone_tensors(const Config& config) {
  Encoder encoder(config);
  return tensor_specs(encoder);
}

bool is_backbone(std::string_view name) {
  return !name.starts_with("pretrain.") && !name.starts_with("task.");
}

std::string model_id(const TensorMap& tensors) {
  Xxh3 hash;
  std::vector<float> values;
  for (const auto& [name, tensor] : tensors.tensors) {  // in name order
    if (!is_backbone(name)) continue;
    hash.update(name);
    const auto dims = tensor.shape.dims();
    hash.update(std::as_bytes(dims));
    if (tensor.dtype == Dtype::f32) {
      hash.update(
          {static_cast<const std::byte*>(tensor.data), static_cast<size_t>(tensor.bytes())});
      continue;
    }
    values.resize(tensor.count());
    to_f32(tensor.dtype, static_cast<const std::byte*>(tensor.data), values.data(), tensor.count());
    hash.update(std::as_bytes(std::span(values)));
  }
  return hash.digest();
}

std::string format_of_name(std::string_view path) {
  if (path.ends_with(".gguf")) return "gguf";
  if (path.ends_with(".safetensors")) return "safetensors";
  return "hf";
}

std::vector<std::string> save_model(const std::string& path, std::string_view format,
                                    const Config& config, const TensorMap& tensors,
                                    Existing existing) {
  if (format == "hf") return save_huggingface(path, config, tensors, existing);
  std::vector<TensorSpec> specs = backbone_tensors(config);  // q, k and v behind each other
  for (const auto& [name, tensor] : tensors.tensors)
    if (!is_backbone(name)) specs.push_back({name, tensor.shape, Dtype::f32});
  const Metadata metadata = metadata_from_config(config);
  TensorWriter writer =
      format == "gguf" ? create_gguf(path, metadata, specs, existing)
                       : create_safetensors(path, metadata_to_strings(metadata), specs, existing);
  for (const TensorSpec& spec : writer.tensors()) writer.write(spec.name, tensors.find(spec.name));
  writer.finish();
  return {};
}

void check_finite(const ModelFile& model) {
  for (const auto& [name, tensor] : model.tensors.tensors) {
    std::vector<float> values(tensor.count());
    to_f32(tensor.dtype, static_cast<const std::byte*>(tensor.data), values.data(), tensor.count());
    for (size_t i = 0; i < values.size(); ++i)
      if (!std::isfinite(values[i]))
        fail(Kind::input, "{}: tensor {}: element {} is {}", model.path, name, i, values[i]);
  }
}

}  // namespace sft
