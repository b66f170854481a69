#include "models/checkpoint.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <set>

#include "engine/formats/gguf.h"
#include "engine/formats/numbers.h"
#include "engine/formats/safetensors.h"
#include "engine/nearest.h"
#include "models/encoder.h"
#include "models/huggingface.h"
#include "models/pytorch.h"
#include "models/task_head.h"

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

void check_tensor(StoredModel& model, std::string_view name, const Shape& shape) {
  const auto it = model.tensors.find(name);
  if (it == model.tensors.end())
    fail(Kind::input, "{}: tensor {} is missing (expected {})", printable(model.path), name, shape);
  StoredTensor& tensor = it->second;
  if (!is_real(tensor.dtype))
    fail(Kind::input, "{}: tensor {} holds {} (expected real numbers)", printable(model.path), name,
         tensor.dtype);
  if (model.format == "gguf" && same_but_for_ones(tensor.shape, shape)) tensor.shape = shape;
  if (tensor.shape != shape)
    fail(Kind::input, "{}: tensor {} is {} (expected {})", printable(model.path), name,
         tensor.shape, shape);
}

// The task head that the configuration tells of; learnt layer weights stand beside some heads.
std::vector<TensorSpec> task_tensors(const StoredModel& model) {
  if (model.config.task.kind.empty()) return {};
  const bool weighted = model.tensors.contains("task.layer_weights");
  NamedTaskHead head{TaskHead(model.config.task, model.config.width,
                              weighted ? static_cast<int>(model.config.states()) : 0)};
  return tensor_specs(head);
}

constexpr int64_t kAny = -1;
struct PretrainTensor {
  std::string_view name;
  std::vector<int64_t> dims;  // kAny: not told by the configuration
};

std::vector<PretrainTensor> pretrain_tensors(const Config& c) {
  const int64_t codes = c.pretrain.vq_groups * c.pretrain.vq_vars;
  return {{"pretrain.proj.weight", {c.pretrain.dim, c.width}},
          {"pretrain.proj.bias", {c.pretrain.dim}},
          {"pretrain.label_emb", {kAny, c.pretrain.dim}},
          {"pretrain.vq.codebook", {codes, kAny}},
          {"pretrain.vq.proj.weight", {codes, c.frame_width()}},
          {"pretrain.vq.proj.bias", {codes}},
          {"pretrain.vq_out.weight", {c.pretrain.dim, kAny}},
          {"pretrain.vq_out.bias", {c.pretrain.dim}}};
}

// Shapes of the pre-training tensors there are: none of them is required.
std::vector<TensorSpec> pretrain_tensors_of(const StoredModel& model) {
  std::vector<TensorSpec> specs;
  for (PretrainTensor& wanted : pretrain_tensors(model.config)) {
    const auto it = model.tensors.find(wanted.name);
    if (it == model.tensors.end()) continue;
    const Shape& shape = it->second.shape;
    for (size_t i = 0; i < wanted.dims.size(); ++i)
      if (wanted.dims[i] == kAny && static_cast<int>(i) < shape.rank())
        wanted.dims[i] = shape[static_cast<int>(i)];
    specs.push_back({std::string(wanted.name), Shape(std::span<const int64_t>(wanted.dims))});
  }
  return specs;
}

// Every tensor that is asked for is there with its shape, and none that nobody knows.
void check_tensors(StoredModel& model) {
  std::vector<std::string> known;
  std::vector<TensorSpec> backbone;
  if (!is_head_alone(model.config)) backbone = backbone_tensors(model.config);
  for (const auto& specs : {backbone, task_tensors(model), pretrain_tensors_of(model)})
    for (const TensorSpec& spec : specs) {
      check_tensor(model, spec.name, spec.shape);
      known.push_back(spec.name);
    }
  const std::set<std::string_view> names(known.begin(), known.end());
  for (const auto& [name, tensor] : model.tensors)
    if (!names.contains(name))
      fail(Kind::input, Hint{did_you_mean(name, known)},
           "{}: tensor {} {} is not one that its configuration ({}) asks for",
           printable(model.path), printable(name), tensor.shape, model.config.arch);
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
  model.in_file = static_cast<int64_t>(file->tensors().size());
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

// Norm of each tap of a fused positional convolution [C, C/G, K].
std::vector<float> tap_norms(const StoredTensor& fused) {
  std::vector<std::byte> bytes(static_cast<size_t>(bytes_of(fused.dtype, fused.count())));
  fused.read(bytes, 0);
  std::vector<float> values(static_cast<size_t>(fused.count()));
  to_f32(fused.dtype, bytes.data(), values.data(), fused.count());
  const auto taps = static_cast<size_t>(fused.shape.back());
  std::vector<double> squares(taps);
  for (size_t i = 0; i < values.size(); ++i)
    squares[i % taps] += static_cast<double>(values[i]) * values[i];
  std::vector<float> norms;
  for (double sum : squares) norms.push_back(static_cast<float>(std::sqrt(sum)));
  return norms;
}

// What other programs leave out, or keep in another form.
void complete(StoredModel& model) {
  if (model.config.mask_emb &&
      !model.tensors.contains("mask_emb")) {  // absent where both mask probabilities were 0
    model.tensors["mask_emb"] = {nullptr, {}, {model.config.width}, Dtype::f32};
    model.remarks.push_back(
        "mask_emb: not in the file, made as zeros (only pre-training reads it)");
  }
  if (model.config.stacked_positions()) return;  // without weight norm
  const auto fused = model.tensors.find("pos_conv.0.weight");
  if (fused == model.tensors.end() || model.tensors.contains("pos_conv.0.weight_v")) return;
  const StoredTensor kernel = fused->second;
  if (kernel.shape.rank() != 3 || !is_real(kernel.dtype) || kernel.count() == 0) return;
  model.tensors.erase(fused);
  const auto norms = std::make_shared<std::vector<float>>(tap_norms(kernel));
  model.tensors["pos_conv.0.weight_g"] = {nullptr, {}, {kernel.shape.back()}, Dtype::f32, norms};
  model.tensors["pos_conv.0.weight_v"] = kernel;
  model.remarks.push_back(
      "pos_conv.0.weight: kept as weight_v, and weight_g made as the norm of its taps");
}

// Leaves the rest out, and says what.
void keep_part(StoredModel& model, Part part) {
  const bool alone = is_head_alone(model.config), encoder = part == Part::encoder;
  if (alone && (part == Part::model || encoder))
    fail(Kind::input, Hint{"sft-merge --head-from puts it on a model"},
         "{}: is a head alone (expected a model)", printable(model.path));
  if (part == Part::head && model.config.task.kind.empty())
    fail(Kind::input, "{}: has no task head", printable(model.path));
  if (part == Part::model || part == Part::any) return;
  size_t encoders = 0;
  for (auto it = model.tensors.begin(); it != model.tensors.end();) {
    const std::string& name = it->first;
    if (encoder ? is_backbone(name) : name.starts_with("task.")) {
      ++it;
      continue;
    }
    if (is_backbone(name))
      ++encoders;
    else
      model.remarks.push_back(fmt::format("{} {}: not part of the {}, left out", name,
                                          it->second.shape, encoder ? "encoder" : "head"));
    it = model.tensors.erase(it);
  }
  if (encoders)
    model.remarks.push_back(fmt::format("the encoder ({} tensors): left out", encoders));
  if (encoder)
    model.config.task = {}, model.config.pretrain.distill.clear();
  else
    model.config.provenance.set(std::string(kPartKey), std::string("head"));
}

}  // namespace

bool is_head_alone(const Config& config) {
  const MetadataValue* part = config.provenance.find(kPartKey);
  const auto* name = part ? std::get_if<std::string>(part) : nullptr;
  return name && *name == "head";
}

void StoredTensor::read(std::span<std::byte> to, uint64_t first) const {
  if (file)
    file->read(info, to, first);
  else if (made)
    std::memcpy(to.data(), reinterpret_cast<const std::byte*>(made->data()) + first, to.size());
  else
    std::fill(to.begin(), to.end(), std::byte{0});
}

StoredModel open_stored_model(const std::string& path, Part part) {
  std::vector<std::string> remarks;
  std::string at = path;
  if (fs::is_directory(at) && fs::exists(at + "/run.toml")) at = best_checkpoint(at, remarks);
  if (fs::is_directory(at) && fs::exists(at + "/model.gguf")) at += "/model.gguf";
  StoredModel model;
  if (is_huggingface_folder(at)) {
    model = open_huggingface(at, part != Part::encoder);
  } else if (fs::is_directory(at)) {
    fail(Kind::input, "{}: this folder is no model (expected config.json, or a run)", path);
  } else {
    model = is_torch_file(at) ? open_torch_model(at, part != Part::encoder) : open_file(at);
  }
  model.path = path;
  model.remarks.insert(model.remarks.begin(), remarks.begin(), remarks.end());
  if (model.format != "gguf" && model.format != "safetensors") complete(model);
  check_tensors(model);
  keep_part(model, part);
  std::set<std::string> files;
  for (const auto& [name, tensor] : model.tensors)
    if (tensor.file) files.insert(tensor.file->path());
  model.files.assign(files.begin(), files.end());
  return model;
}

ModelFile open_model(const std::string& path, Part part) {
  const StoredModel stored = open_stored_model(path, part);
  ModelFile model{.path = path, .format = stored.format, .config = stored.config};
  model.in_file = stored.in_file;
  model.files = stored.files, model.remarks = stored.remarks;
  for (const auto& [name, tensor] : stored.tensors) {
    if (tensor.file) model.tensors.keep.push_back(tensor.file);
    if (!tensor.file) ++model.made;
    model.tensors.tensors[name] = mapped(tensor, model.tensors);
  }
  return model;
}

int64_t parameter_count(const TensorMap& tensors) {
  int64_t count = 0;
  for (const auto& [name, tensor] : tensors.tensors)
    if (is_backbone(name)) count += tensor.count();
  return count;
}

std::string size_label(int64_t parameters) {
  const auto n = static_cast<double>(parameters);
  if (n >= 1e9) return fmt::format("{:.1f}B", n / 1e9);
  return n >= 1e6 ? fmt::format("{:.0f}M", n / 1e6) : fmt::format("{:.0f}K", n / 1e3);
}

std::string loaded_text(const ModelFile& model, std::string_view id) {
  const Config& c = model.config;
  if (is_head_alone(c))
    return fmt::format("loaded {}/{} tensors, a {} {} head of {} units on {}, {} wide",
                       model.tensors.tensors.size(), model.in_file, c.task.head, c.task.kind,
                       c.task.units.size(), c.arch, c.width);
  return fmt::format("loaded {}/{} tensors, {}, {} layers of {}, {} parameters, id {}",
                     static_cast<int64_t>(model.tensors.tensors.size()) - model.made, model.in_file,
                     c.arch, c.layers, c.width, size_label(parameter_count(model.tensors)), id);
}

std::vector<TensorSpec> backbone_tensors(const Config& config, Dtype products) {
  Encoder encoder(config);
  return tensor_specs(encoder, products);
}

bool is_backbone(std::string_view name) {
  return !name.starts_with("pretrain.") && !name.starts_with("task.");
}

namespace {

constexpr int64_t kPiece = 1 << 16;  // elements read or converted at a time; whole blocks of q8_0

// f(first, values): all values as f32, piece by piece from element `first`.
template <class F>
void for_pieces(Dtype dtype, std::span<const std::byte> bytes, int64_t count, F&& f) {
  const bool widened = dtype != Dtype::f32;
  std::vector<float> values(static_cast<size_t>(widened ? std::min(count, kPiece) : 0));
  for (int64_t first = 0; first < count; first += kPiece) {
    const std::byte* from = bytes.data() + bytes_of(dtype, first);
    const int64_t n = std::min(kPiece, count - first);
    if (widened) to_f32(dtype, from, values.data(), n);
    f(first, std::span(widened ? values.data() : reinterpret_cast<const float*>(from), n));
  }
}

std::span<const std::byte> stored(const Tensor& tensor) {
  return {static_cast<const std::byte*>(tensor.data), static_cast<size_t>(tensor.bytes())};
}

}  // namespace

void ModelHash::tensor(std::string_view name, const Shape& shape) {
  hash_.update(name);
  hash_.update(std::as_bytes(shape.dims()));
}

void ModelHash::values(Dtype dtype, std::span<const std::byte> bytes, int64_t count) {
  for_pieces(dtype, bytes, count, [&](int64_t, std::span<const float> piece) { values(piece); });
}

std::string model_id(const TensorMap& tensors) {
  ModelHash hash;
  for (const auto& [name, tensor] : tensors.tensors) {  // in name order
    if (!is_backbone(name)) continue;
    hash.tensor(name, tensor.shape);
    hash.values(tensor.dtype, stored(tensor), tensor.count());
  }
  return hash.digest();
}

std::string model_id(const StoredModel& model) {
  ModelHash hash;
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
  if (path.ends_with(".pt")) return "fairseq";
  return "hf";
}

void check_model_destination(const std::string& path, std::string_view format, Existing existing) {
  if (format != "hf") return check_destination(path, existing);
  if (!fs::exists(path) || (fs::is_directory(path) && fs::is_empty(path))) return;
  if (existing == Existing::refuse)
    fail(Kind::usage, Hint{"--force replaces it"}, "{}: exists already", printable(path));
  if (!is_huggingface_folder(path))
    fail(Kind::usage, Hint{"name another folder, or remove this one"},
         "{}: is not a model's folder, so it is not replaced", printable(path));
}

namespace {

// What most of a file's values are, as ggml numbers it.
int64_t file_type(const std::vector<TensorSpec>& tensors) {
  const auto most = std::max_element(
      tensors.begin(), tensors.end(),
      [](const TensorSpec& a, const TensorSpec& b) { return a.shape.count() < b.shape.count(); });
  if (most == tensors.end() || most->dtype == Dtype::f32) return 0;
  return most->dtype == Dtype::f16 ? 1 : most->dtype == Dtype::q8_0 ? 7 : 32;
}

Config with_size_label(const Config& config, const std::vector<TensorSpec>& tensors) {
  int64_t parameters = 0;
  for (const TensorSpec& tensor : tensors)
    if (is_backbone(tensor.name)) parameters += tensor.shape.count();
  Config labelled = config;
  if (parameters) labelled.provenance.set("general.size_label", size_label(parameters));
  return labelled;
}

}  // namespace

ModelWriter::ModelWriter(const std::string& path, std::string_view format, const Config& config,
                         std::vector<TensorSpec> tensors, Existing existing)
    : path_(path), format_(format) {
  if (is_head_alone(config) && format != "gguf" && format != "safetensors")
    fail(Kind::usage, Hint{"name the output .gguf or .safetensors"},
         "{}: only GGUF and safetensors hold a head alone", printable(path));
  check_model_destination(path, format, existing);
  const Config labelled = with_size_label(config, tensors);
  if (format == "hf") {
    HuggingFaceFolder hf = create_huggingface(path, labelled, tensors, existing);
    folder_ = std::move(hf.folder);
    writer_ = std::make_unique<TensorWriter>(std::move(hf.writer));
    tensors_ = std::move(hf.tensors);
    dropped_ = std::move(hf.dropped);
    return;
  }
  if (format == "fairseq" || format == "s3prl") {
    TorchCheckpoint torch = create_torch_model(path, format, labelled, tensors, existing);
    writer_ = std::make_unique<TensorWriter>(std::move(torch.writer));
    tensors_ = std::move(torch.tensors);
    dropped_ = std::move(torch.remarks);
    for (const std::string& name : torch.made_names)
      made_.emplace_back(name, torch.made.find(name));
    keep_ = std::move(torch.made.keep);
    if (!torch.dictionary.empty()) add_beside(path, torch.dictionary, existing);
    return;
  }
  file_type_ = file_type(tensors);
  const Metadata head = head_of(labelled);
  writer_ = std::make_unique<TensorWriter>(
      format == "gguf" ? create_gguf(path, head, std::move(tensors), existing)
                       : create_safetensors(path, head, std::move(tensors), existing));
  tensors_ = writer_->tensors();
}

Metadata ModelWriter::head_of(const Config& labelled) const {
  Metadata metadata = metadata_from_config(labelled);
  metadata.set("general.file_type", file_type_);
  return format_ == "gguf" ? metadata : metadata_to_strings(metadata);
}

void ModelWriter::describe(const Config& config) {
  CHECK(format_ == "gguf" || format_ == "safetensors", "{}: a {} model has no head", path_,
        format_);
  const Metadata head = head_of(with_size_label(config, tensors_));
  writer_->replace_head(format_ == "gguf" ? gguf_head(path_, head, tensors_)
                                          : safetensors_head(path_, head, tensors_));
}

// A text that other programs look for in the same folder, and that several models may share.
void ModelWriter::add_beside(const std::string& path, const std::string& text, Existing existing) {
  const std::string file = parent_directory(path) + "/dict.ltr.txt";
  dropped_.push_back(fmt::format("{}: the units of its head, for fairseq", file));
  if (fs::exists(file) && read_text(file) == text) return;
  check_destination(file, existing);
  beside_ = {file, text};
}

void ModelWriter::write(const TensorMap& tensors) {
  written_ = true;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    const TensorSpec& stored = writer_->tensors()[i];
    writer_->write(stored.name, tensors.find(tensors_[i].name).reshaped(stored.shape));
  }
}

void ModelWriter::finish() {
  for (size_t i = 0; i < made_.size(); ++i) {
    const std::span<const std::byte> bytes = stored(made_[i].second);
    if (written_)
      writer_->append(bytes);
    else
      writer_->place(tensors_.size() + i, 0, bytes);
  }
  if (!beside_.first.empty()) write_text(beside_.first, beside_.second, Existing::replace);
  writer_->finish();
  if (folder_) folder_->commit();
}

std::vector<std::string> save_model(const std::string& path, std::string_view format,
                                    const Config& config, const TensorMap& tensors,
                                    Existing existing, Dtype products) {
  // q, k and v behind each other
  std::vector<TensorSpec> specs;
  if (!is_head_alone(config)) specs = backbone_tensors(config, products);
  std::erase_if(specs, [](const TensorSpec& spec) { return !is_backbone(spec.name); });
  for (const auto& [name, tensor] : tensors.tensors)
    if (!is_backbone(name)) specs.push_back({name, tensor.shape, Dtype::f32});
  ModelWriter writer(path, format, config, std::move(specs), existing);
  writer.write(tensors);
  writer.finish();
  return writer.dropped();
}

namespace {

void check_piece(const ModelFile& model, std::string_view tensor, int64_t first,
                 std::span<const float> values) {
  const int64_t at = first_not_finite(values.data(), std::ssize(values));
  if (at < std::ssize(values))
    fail(Kind::input, "{}: tensor {}: element {} is {} (expected finite numbers)",
         printable(model.path), tensor, first + at, values[at]);
}

}  // namespace

void check_finite(const ModelFile& model) {
  for (const auto& [name, tensor] : model.tensors.tensors)
    for_pieces(tensor.dtype, stored(tensor), tensor.count(),
               [&, &name = name](int64_t first, std::span<const float> values) {
                 check_piece(model, name, first, values);
               });
}

std::string checked_id(const ModelFile& model) {
  ModelHash hash;
  for (const auto& [name, tensor] : model.tensors.tensors) {
    const bool hashed = is_backbone(name);
    if (hashed) hash.tensor(name, tensor.shape);
    for_pieces(tensor.dtype, stored(tensor), tensor.count(),
               [&, &name = name](int64_t first, std::span<const float> values) {
                 check_piece(model, name, first, values);
                 if (hashed) hash.values(values);
               });
  }
  return hash.digest();
}

}  // namespace sft
