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

// Our containers drop leading dimensions of 1 nowhere, but other writers of GGUF do (ggml): shapes
// with as many elements as the schema's are the schema's.
bool same_but_for_ones(const Shape& a, const Shape& b) {
  const auto squeezed = [](const Shape& shape) {
    std::vector<int64_t> dims;
    for (int64_t d : shape.dims())
      if (d != 1 || !dims.empty()) dims.push_back(d);
    return dims;
  };
  return squeezed(a) == squeezed(b);
}

void check_tensors(StoredModel& model) {
  std::set<std::string, std::less<>> known;
  for (const TensorSpec& spec : backbone_tensors(model.config)) {
    const auto it = model.tensors.find(spec.name);
    if (it == model.tensors.end())
      fail(Kind::input, "{}: tensor {} is missing (expected {})", model.path, spec.name,
           spec.shape);
    StoredTensor& tensor = it->second;
    if (!is_real(tensor.dtype))
      fail(Kind::input, "{}: tensor {} holds {} (expected real numbers)", model.path, spec.name,
           tensor.dtype);
    if (model.format == "gguf" && same_but_for_ones(tensor.shape, spec.shape))
      tensor.shape = spec.shape;
    if (tensor.shape != spec.shape)
      fail(Kind::input, "{}: tensor {} is {} (expected {})", model.path, spec.name, tensor.shape,
           spec.shape);
    known.insert(spec.name);
  }
  for (const auto& [name, tensor] : model.tensors) {
    if (!is_backbone(name) || known.contains(name)) continue;
    const std::vector<std::string> names(known.begin(), known.end());
    fail(Kind::input, Hint{did_you_mean(name, names)},
         "{}: tensor {} {} is not one of this {} model", model.path, printable(name), tensor.shape,
         model.config.arch);
  }
}

StoredModel open_file(const std::string& path) {
  const auto file = std::make_shared<TensorFile>(open_tensor_file(path));
  const bool gguf =
      !file->metadata().has(kFormatNote) && file->metadata().has("general.architecture");
  if (!gguf && !file->metadata().has(kFormatNote))
    fail(Kind::input,
         Hint{"a Hugging Face model is read as its folder, with config.json beside the weights"},
         "{}: has no configuration of a model", path);
  StoredModel model{.path = path, .format = gguf ? "gguf" : "safetensors"};
  model.config = config_from_metadata(
      gguf ? file->metadata() : metadata_from_strings(file->metadata(), path), path);
  for (const TensorInfo& info : file->tensors())
    model.tensors[info.name] = {file, info, info.shape, info.dtype};
  return model;
}

// Mapped; copied where it is not aligned.
Tensor mapped(const StoredTensor& stored, TensorMap& map) {
  if (stored.file && stored.file->viewable(stored.info))
    return Tensor(stored.file->view(stored.info).data, stored.shape, stored.dtype);
  const auto bytes = std::make_shared<std::vector<double>>(
      bytes_of(stored.dtype, stored.count()) / sizeof(double) + 1);  // aligned for any type
  stored.read(std::as_writable_bytes(std::span(*bytes))
                  .first(static_cast<size_t>(bytes_of(stored.dtype, stored.count()))),
              0);
  map.keep.push_back(bytes);
  return Tensor(bytes->data(), stored.shape, stored.dtype);
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

void StoredTensor::read(std::span<std::byte> to, uint64_t first) const {
  if (file)
    file->read(info, to, first);
  else
    std::fill(to.begin(), to.end(), std::byte{0});
}

StoredModel open_stored_model(const std::string& path) {
  std::vector<std::string> remarks;
  std::string at = path;
  if (fs::is_directory(at) && fs::exists(at + "/run.toml")) at = best_checkpoint(at, remarks);
  if (fs::is_directory(at) && fs::exists(at + "/model.gguf")) at += "/model.gguf";
  StoredModel model;
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

ModelFile open_model(const std::string& path) {
  const StoredModel stored = open_stored_model(path);
  ModelFile model{
      .path = path, .format = stored.format, .config = stored.config, .remarks = stored.remarks};
  for (const auto& [name, tensor] : stored.tensors) {
    if (tensor.file) model.tensors.keep.push_back(tensor.file);
    model.tensors.tensors[name] = mapped(tensor, model.tensors);
  }
  return model;
}

std::vector<TensorSpec> backbone_tensors(const Config& config) {
  Encoder encoder(config);
  return tensor_specs(encoder);
}

bool is_backbone(std::string_view name) {
  return !name.starts_with("pretrain.") && !name.starts_with("task.");
}

namespace {

// Feeds a model's id: name, shape, then the values as f32.
class IdHash {
 public:
  void tensor(std::string_view name, const Shape& shape) {
    hash_.update(name);
    hash_.update(std::as_bytes(shape.dims()));
  }
  void values(Dtype dtype, std::span<const std::byte> bytes, int64_t count) {
    if (dtype == Dtype::f32) return hash_.update(bytes);
    values_.resize(static_cast<size_t>(count));
    to_f32(dtype, bytes.data(), values_.data(), count);
    hash_.update(std::as_bytes(std::span(values_)));
  }
  std::string digest() const { return hash_.digest(); }

 private:
  Xxh3 hash_;
  std::vector<float> values_;
};

constexpr int64_t kPiece = 1 << 16;  // elements read at a time; whole blocks of q8_0

}  // namespace

std::string model_id(const TensorMap& tensors) {
  IdHash hash;
  for (const auto& [name, tensor] : tensors.tensors) {  // in name order
    if (!is_backbone(name)) continue;
    hash.tensor(name, tensor.shape);
    hash.values(tensor.dtype,
                {static_cast<const std::byte*>(tensor.data), static_cast<size_t>(tensor.bytes())},
                tensor.count());
  }
  return hash.digest();
}

std::string model_id(const StoredModel& model) {
  IdHash hash;
  std::vector<std::byte> buffer(static_cast<size_t>(bytes_of(Dtype::f64, kPiece)));
  for (const auto& [name, tensor] : model.tensors) {
    if (!is_backbone(name)) continue;
    hash.tensor(name, tensor.shape);
    for (int64_t first = 0; first < tensor.count(); first += kPiece) {
      const int64_t n = std::min(kPiece, tensor.count() - first);
      const auto piece = std::span(buffer).first(static_cast<size_t>(bytes_of(tensor.dtype, n)));
      tensor.read(piece, static_cast<uint64_t>(bytes_of(tensor.dtype, first)));
      hash.values(tensor.dtype, piece, n);
    }
  }
  return hash.digest();
}

std::string format_of_name(std::string_view path) {
  if (path.ends_with(".gguf")) return "gguf";
  if (path.ends_with(".safetensors")) return "safetensors";
  return "hf";
}

ModelWriter::ModelWriter(const std::string& path, std::string_view format, const Config& config,
                         std::vector<TensorSpec> tensors, Existing existing) {
  if (format == "hf") {
    HuggingFaceFolder hf = create_huggingface(path, config, tensors, existing);
    folder_ = std::move(hf.folder);
    writer_ = std::make_unique<TensorWriter>(std::move(hf.writer));
    tensors_ = std::move(hf.tensors);
    dropped_ = std::move(hf.dropped);
    return;
  }
  const Metadata metadata = metadata_from_config(config);
  writer_ = std::make_unique<TensorWriter>(
      format == "gguf"
          ? create_gguf(path, metadata, std::move(tensors), existing)
          : create_safetensors(path, metadata_to_strings(metadata), std::move(tensors), existing));
  tensors_ = writer_->tensors();
}

void ModelWriter::write(const TensorMap& tensors) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorSpec& stored = writer_->tensors()[i];
    Tensor tensor = tensors.find(tensors_[i].name);
    tensor.shape = stored.shape;
    writer_->write(stored.name, tensor);
  }
}

void ModelWriter::finish() {
  writer_->finish();
  if (folder_) folder_->commit();
}

std::vector<std::string> save_model(const std::string& path, std::string_view format,
                                    const Config& config, const TensorMap& tensors,
                                    Existing existing) {
  std::vector<TensorSpec> specs = backbone_tensors(config);  // q, k and v behind each other
  for (const auto& [name, tensor] : tensors.tensors)
    if (!is_backbone(name)) specs.push_back({name, tensor.shape, Dtype::f32});
  ModelWriter writer(path, format, config, std::move(specs), existing);
  writer.write(tensors);
  writer.finish();
  return writer.dropped();
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
