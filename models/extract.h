// Hidden states of a frozen encoder: packed batches in, one [T_b, C] per utterance and state out.
// Every utterance is computed as if alone (docs/contract.md section 1).
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "engine/step_memory.h"
#include "models/checkpoint.h"
#include "models/encoder.h"

namespace sft {

// "all", "last" (the output), or numbers ("0,6,12"): which of a model's states, in order.
// Kind::usage.
std::vector<int> parse_states(std::string_view text, const Config& config);

struct ExtractOptions {
  // run() will be called once, so derived weights are made in scratch and not kept. At first use
  // this is faster (no fresh memory of the size of the model), and it needs less of it.
  bool once = false;
  cuda::Runtime* gpu = nullptr;  // null: on the CPU
  Math math = Math::exact;
};

class Extractor {
 public:
  // `model` must outlive this object; `states` as parse_states gives them.
  Extractor(const ModelFile& model, std::vector<int> states, const ExtractOptions& options = {});

  const std::vector<int>& states() const { return states_; }
  // Bytes that a batch of these lengths (samples) takes, our copies of weights included: a dry run.
  int64_t bytes(std::span<const int32_t> lengths);

  // Samples of the longest file, of at most `most`, that needs no more than `available` bytes; to a
  // tenth of a second; 0: not even that.
  int64_t longest(int64_t most, int64_t available);

  // Computes the states of a batch; each wave has at least config.min_samples() samples.
  void run(std::span<const std::span<const float>> waves);
  int32_t frames(int b) const { return pack_.frames().length(b); }
  // Of utterance b, the i-th of states(): [frames(b), C] f32 on the host, good until the next run.
  Tensor state(size_t i, int b) const;

 private:
  void encode(Context& ctx, std::span<const std::span<const float>> waves);
  void keep(const Context& ctx, const HiddenStates& hidden);
  void assign(std::span<const int32_t> lengths);

  std::vector<int> states_;
  Encoder encoder_;
  ExtractOptions options_;
  ParamStore store_;
  Prepared none_;       // knows no parameters: keeps nothing
  Prepared* prepared_;  // one of the two
  StepMemory memory_;
  Arena host_;
  WavePack pack_;
  std::vector<int32_t> lengths_, utterances_;
  std::vector<Tensor> kept_;  // as states()
};

}  // namespace sft
