// Config: what kind of encoder a model is, and what head it carries. One plain struct, whatever the
// container it came from; the keys of a GGUF file (docs/contract.md section 2) are its schema.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/metadata.h"

namespace sft {

struct Config {
  // hubert, wav2vec2, unispeechsat, wavlm, data2vecaudio, distilhubert, decoar2
  std::string arch = "hubert";
  int64_t layers = 12;     // block_count
  int64_t width = 768;     // embedding_length, C
  int64_t ffn = 3072;      // feed_forward_length, F
  int64_t heads = 12;      // attention.head_count, H
  double norm_eps = 1e-5;  // attention.layer_norm_epsilon
  bool pre_norm = false;   // attention.pre_norm
  // Of WavLM's relative position bias: attention.rel_buckets, attention.rel_max_distance.
  int64_t rel_buckets = 320, rel_max_distance = 800;

  // The convolutions; none of this where log_mel().
  std::vector<int64_t> conv_dims = {512, 512, 512, 512, 512, 512, 512};
  std::vector<int64_t> conv_kernels = {10, 3, 3, 3, 3, 2, 2};
  std::vector<int64_t> conv_strides = {5, 2, 2, 2, 2, 2, 2};
  bool conv_bias = false;
  std::string conv_norm = "group";  // group: after the first one, over time; layer: after each
  bool feat_norm = true;
  bool mask_emb = true;  // there is one
  int64_t pos_kernel = 128, pos_groups = 16;
  int64_t pos_depth = 1;   // convolutions that stacked_positions() has
  bool normalize = false;  // waveforms to mean 0, variance 1
  double normalize_eps = 1e-5;

  struct Training {
    double dropout = 0.1, attention_dropout = 0.1, activation_dropout = 0, input_dropout = 0.1;
    double feature_dropout = 0.1, layerdrop = 0.05, feature_grad_mult = 0.1;
    double mask_prob = 0.8;
    int64_t mask_length = 10;
  } train;

  struct Pretraining {
    int64_t dim = 256;  // final_dim
    double temp = 0.1;
    int64_t vq_groups = 2, vq_vars = 320;
    std::vector<int64_t> distill;  // states of its teacher that a DistilHuBERT predicts
  } pretrain;

  // The task head, if the model has one: kind is empty if not.
  struct Task {
    std::string kind;  // ctc, classify
    std::string head;  // linear, projector, blstm, mean
    int64_t width = 256, layers = 3, blank = 0;
    std::vector<std::string> units;  // symbols, or names of classes
  } task;

  // Everything else a model file says of itself: general.*, sft.base.id, sft.merge.*, sft.train.*,
  // sft.source.*. Kept through every conversion, except what describes the container alone
  // (general.file_type, general.alignment, general.quantization_version).
  Metadata provenance = Metadata("metadata");

  bool relative_bias() const { return arch == "wavlm"; }
  int64_t head_width() const { return width / heads; }
  // Frames are log-mel energies, computed before anything that learns (DeCoAR 2.0).
  bool log_mel() const { return arch == "decoar2"; }
  // Positions come from several plain convolutions, each with norm and GELU (data2vec).
  bool stacked_positions() const { return arch == "data2vecaudio"; }
  int64_t states() const { return layers + 1 + static_cast<int64_t>(pretrain.distill.size()); }
  int64_t frame_width() const;  // of what the feature projection reads
  int64_t hop() const;          // samples from frame to frame: the product of the strides
  int64_t receptive() const;    // samples that one frame sees
  int64_t min_samples() const;  // that an utterance must have
  // Frames of an utterance of `samples` samples; 0 if it is too short.
  int64_t frames(int64_t samples) const;
};

// Throws Kind::input (`where` names the file) if values contradict each other or are out of range.
void check_config(const Config& config, std::string_view where);

Config config_from_metadata(const Metadata& metadata, std::string_view where);
Metadata metadata_from_config(const Config& config);

// A value as JSON text, and back: a list without elements comes back as one of strings.
std::string value_to_json(const MetadataValue& value);
// Kind::input naming `key` if the text is no JSON, or of a type that metadata do not have.
MetadataValue value_from_json(std::string_view json, std::string_view where, std::string_view key);

// For containers whose metadata are strings (safetensors): every value as JSON, and a note that
// says so under kFormatNote.
constexpr std::string_view kFormatNote = "sft.format";
Metadata metadata_to_strings(const Metadata& metadata);
Metadata metadata_from_strings(const Metadata& strings, std::string_view where);

// "hubert-base", ...; Kind::usage with the nearest name if there is none such.
Config preset(std::string_view name);
std::vector<std::string> preset_names();

}  // namespace sft
