#include "models/extract.h"

#include <algorithm>
#include <charconv>
#include <numeric>

namespace sft {
namespace {

int parse_state(std::string_view text, int64_t layers) {
  int state = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), state);
  if (error != std::errc() || end != text.data() + text.size() || state < 0 || state > layers)
    fail(Kind::usage, "--states: '{}' (expected all, last, or numbers from 0 to {})",
         printable(text), layers);
  return state;
}

}  // namespace

std::vector<int> parse_states(std::string_view text, int64_t layers) {
  if (text == "last") return {static_cast<int>(layers)};
  std::vector<int> states;
  if (text == "all") {
    states.resize(static_cast<size_t>(layers) + 1);
    std::iota(states.begin(), states.end(), 0);
    return states;
  }
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    states.push_back(parse_state(text.substr(begin, end - begin), layers));
    begin = end + 1;
  }
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  return states;
}

Extractor::Extractor(const ModelFile& model, std::vector<int> states, bool once)
    : states_(std::move(states)),
      encoder_(model.config),
      prepared_(once ? &none_ : &store_.prepared()) {
  store_.bind(param_requests(encoder_), model.tensors, model.path);
}

void Extractor::assign(std::span<const int32_t> lengths) {
  utterances_.resize(lengths.size());
  std::iota(utterances_.begin(), utterances_.end(), 0);
  pack_.assign(encoder_.config, lengths, utterances_);
}

HiddenStates Extractor::encode(bool dry, std::span<const std::span<const float>> waves) {
  acts_.rewind(0), scratch_.rewind(0);
  Context ctx{.acts = acts_, .scratch = scratch_, .prepared = *prepared_, .dry = dry};
  Tape tape(ctx, /*recording=*/false);
  const Tensor wave = pack_.wave(ctx);
  for (size_t b = 0; b < waves.size(); ++b) pack_.place(wave, static_cast<int>(b), waves[b]);
  EncodeOptions options;
  for (int state : states_)  // state 64 can only be the last, which is always kept
    if (state < 64) options.keep |= uint64_t{1} << state;
  const Var frames = encoder_.features(tape, wave, pack_);
  return encoder_.encode(tape, frames, pack_.frames(), options);
}

int64_t Extractor::bytes(std::span<const int32_t> lengths) {
  assign(lengths);
  acts_.forget_peak(), scratch_.forget_peak();
  encode(true, {});
  return acts_.peak() + scratch_.peak() + store_.bytes();
}

void Extractor::run(std::span<const std::span<const float>> waves) {
  lengths_.clear();
  for (const auto& wave : waves) lengths_.push_back(static_cast<int32_t>(wave.size()));
  assign(lengths_);
  hidden_ = encode(false, waves);
}

Tensor Extractor::state(size_t i, int b) const {
  const Segments segments = pack_.frames();
  return hidden_.states[states_[i]].value.slice(segments.starts[b], segments.length(b));
}

}  // namespace sft
