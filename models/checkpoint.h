// Model files of every container: GGUF, a Hugging Face folder, safetensors, PyTorch's checkpoints,
// or a run. Reading is strict: every tensor the configuration asks for, with its shape, and none
// that nobody knows.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/tensor_file.h"
#include "engine/io/directory.h"
#include "engine/io/hash.h"
#include "engine/params.h"
#include "models/config.h"

namespace sft {

// Where a tensor of a model lies.
struct StoredTensor {
  std::shared_ptr<const TensorFile> file;  // null: it is in no file
  TensorInfo info;                         // as the file names it
  Shape shape;                             // ours
  Dtype dtype = Dtype::f32;
  std::shared_ptr<const std::vector<float>> made;  // where it is in no file; null: zeros

  int64_t count() const { return shape.count(); }
  // By pread, without mapping: bytes as stored, from byte `first`.
  void read(std::span<std::byte> to, uint64_t first) const;
};

// A model of which nothing is read but its head: for programs that go through the tensors once,
// piece by piece.
struct StoredModel {
  std::string path;    // as it was given
  std::string format;  // gguf, hf, safetensors, fairseq, s3prl, ... (docs/model-files.md)
  Config config;
  std::map<std::string, StoredTensor, std::less<>> tensors;  // docs/contract.md section 3
  int64_t in_file = 0;               // tensors in the file, those that are not kept included
  std::vector<std::string> files;    // that hold them; of a model in shards, its index
  std::vector<std::string> remarks;  // what was dropped or made, or is not as one might expect
};

// What is read of a model.
enum class Part {
  model,    // all of it; a file that holds a head alone is Kind::input
  encoder,  // the backbone; heads are left out, and their vocabularies not looked at
  head,     // task.* alone; Kind::input if there is none
  any,      // what there is, a head alone too
};
// A file that holds a head alone (sft-convert --part head): its configuration is that of the model
// it is from, and says so under this key.
constexpr std::string_view kPartKey = "sft.part";
bool is_head_alone(const Config& config);

// A run stands for its best checkpoint; an unfinished run gives a remark.
StoredModel open_stored_model(const std::string& path, Part part = Part::model);

struct ModelFile {
  std::string path;    // as it was given
  std::string format;  // as StoredModel's
  Config config;
  TensorMap tensors;    // names of docs/contract.md section 3; views into the file
  int64_t in_file = 0;  // tensors in the file, those that are not kept included
  int64_t made = 0;     // tensors that are not in the file
  std::vector<std::string> files;
  std::vector<std::string> remarks;
};

// The same, with its tensors mapped.
ModelFile open_model(const std::string& path, Part part = Part::model);

// "loaded 211/211 tensors, hubert, 12 layers of 768, 94M parameters, id 8c1f...": what a program
// that read a model says of it. Of a head alone: "loaded 2/213 tensors, a linear ctc head of 32
// units on hubert, 768 wide".
std::string loaded_text(const ModelFile& model, std::string_view id);
int64_t parameter_count(const TensorMap& tensors);  // of the backbone
std::string size_label(int64_t parameters);         // "94M", as in general.size_label

// Names and shapes that a configuration asks for: the backbone, and the prediction heads of a
// DistilHuBERT, in the order in which we write.
// Products in the type given, where it fits.
std::vector<TensorSpec> backbone_tensors(const Config& config, Dtype products = Dtype::f32);
bool is_backbone(std::string_view name);  // neither pretrain.* nor task.*

// XXH3-128 over (name, shape, f32 bytes) of all backbone tensors in name order: the same for every
// container of the same weights.
std::string model_id(const TensorMap& tensors);
std::string model_id(const StoredModel& model);

// The same from values that come piece by piece: each tensor's name and shape, then its values as
// stored, in whole blocks.
class ModelHash {
 public:
  void tensor(std::string_view name, const Shape& shape);
  void values(Dtype dtype, std::span<const std::byte> bytes, int64_t count);
  void values(std::span<const float> values) { hash_.update(std::as_bytes(values)); }
  std::string digest() const { return hash_.digest(); }

 private:
  Xxh3 hash_;
};

// "gguf", "hf", "safetensors" or "fairseq" (.pt), by the name of the output: a folder or a name
// without a known ending is a Hugging Face folder.
std::string format_of_name(std::string_view path);

// Throws Kind::usage if something is at `path` that a model may not replace: so that this is said
// before any work. A folder is replaced only if it is a model's.
void check_model_destination(const std::string& path, std::string_view format, Existing existing);

// A model file of any container as it is being written; without finish() nothing is left of it.
class ModelWriter {
 public:
  // `tensors` under our names. A Hugging Face folder and safetensors hold no q8_0.
  ModelWriter(const std::string& path, std::string_view format, const Config& config,
              std::vector<TensorSpec> tensors, Existing existing = Existing::refuse);

  // Those that the container can hold, under our names, in the order of the file.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }
  // What it cannot hold, holds in its own way, or had to be made for it, one line each.
  const std::vector<std::string>& dropped() const { return dropped_; }

  // Bytes as stored of tensors()[tensor], from byte `first`; from several threads at once.
  void place(size_t tensor, uint64_t first, std::span<const std::byte> piece) {
    writer_->place(tensor, first, piece);
  }
  // All tensors, converted to their declared types.
  void write(const TensorMap& tensors);
  // Another configuration in the place of the one given, whose texts are as long: for what is known
  // only when the values are. GGUF and safetensors alone, which say it in a head.
  void describe(const Config& config);
  void finish();

 private:
  Metadata head_of(const Config& labelled) const;
  void add_beside(const std::string& path, const std::string& text, Existing existing);

  std::string path_, format_;
  std::vector<TensorSpec> tensors_;
  int64_t file_type_ = 0;
  std::vector<std::string> dropped_;
  std::pair<std::string, std::string> beside_;  // a small file of the same folder, and its text
  std::unique_ptr<OutputDirectory> folder_;     // of a Hugging Face folder
  std::unique_ptr<TensorWriter> writer_;
  std::vector<std::pair<std::string, Tensor>> made_;  // of the container alone, behind tensors_
  std::vector<std::shared_ptr<const void>> keep_;     // what made_ views
  bool written_ = false;                              // by write()
};

// Writes all tensors (backbone, pretrain.*, task.* where the container can hold them; of a head
// alone task.*, which only GGUF and safetensors hold: else Kind::usage) as f32, but matrices of the
// backbone that only products read as `products` (q8_0: those of whole blocks; GGUF alone holds
// it). What the container cannot hold is returned, one line each.
std::vector<std::string> save_model(const std::string& path, std::string_view format,
                                    const Config& config, const TensorMap& tensors,
                                    Existing existing = Existing::refuse,
                                    Dtype products = Dtype::f32);

// Throws Kind::input naming the first tensor with a value that is not finite.
void check_finite(const ModelFile& model);
// The same and model_id in one pass over the file.
std::string checked_id(const ModelFile& model);

}  // namespace sft
