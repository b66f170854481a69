#include "models/extract.h"

#include <algorithm>
#include <charconv>
#include <numeric>

#include "engine/transfer.h"

namespace sft {
namespace {

int parse_state(std::string_view text, int64_t states) {
  int state = -1;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), state);
  if (error != std::errc() || end != text.data() + text.size() || state < 0 || state >= states)
    fail(Kind::usage, "--states: '{}' (expected all, last, or numbers from 0 to {})",
         printable(text), states - 1);
  return state;
}

}  // namespace

std::vector<int> parse_states(std::string_view text, const Config& config) {
  if (text == "last") return {static_cast<int>(config.layers)};
  std::vector<int> states;
  if (text == "all") {
    states.resize(static_cast<size_t>(config.states()));
    std::iota(states.begin(), states.end(), 0);
    return states;
  }
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    states.push_back(parse_state(text.substr(begin, end - begin), config.states()));
    begin = end + 1;
  }
  std::sort(states.begin(), states.end());
  states.erase(std::unique(states.begin(), states.end()), states.end());
  return states;
}

Extractor::Extractor(const ModelFile& model, std::vector<int> states, const ExtractOptions& options)
    : states_(std::move(states)),
      encoder_(model.config),
      options_(options),
      store_(options.gpu),
      prepared_(options.once ? &none_ : &store_.prepared()),
      memory_(options.gpu) {
  store_.bind(param_requests(encoder_), model.tensors, model.path);
}

void Extractor::assign(std::span<const int32_t> lengths) {
  utterances_.resize(lengths.size());
  std::iota(utterances_.begin(), utterances_.end(), 0);
  pack_.assign(encoder_.config, lengths, utterances_);
}

void Extractor::encode(Context& ctx, std::span<const std::span<const float>> waves) {
  Tape tape(ctx, /*recording=*/false);
  const Tensor wave = pack_.wave(ctx);
  for (size_t b = 0; b < waves.size(); ++b) pack_.place(ctx, wave, static_cast<int>(b), waves[b]);
  EncodeOptions options;
  for (int state : states_)  // state 64 can only be the last, which is always kept
    if (state < 64) options.keep |= uint64_t{1} << state;
  const Var frames = encoder_.features(tape, wave, pack_);
  const HiddenStates hidden = encoder_.encode(tape, frames, pack_.frames(), options);
  if (!ctx.dry) keep(ctx, hidden);
}

// The states as f32 in host memory: where they are, or copied from the device.
void Extractor::keep(const Context& ctx, const HiddenStates& hidden) {
  host_.rewind();
  kept_.clear();
  for (int state : states_) kept_.push_back(on_host(ctx, hidden.states[state], host_));
}

int64_t Extractor::bytes(std::span<const int32_t> lengths) {
  assign(lengths);
  memory_.forget_peak();
  Context dry = memory_.context(*prepared_, options_.math, true);
  encode(dry, {});
  return memory_.peak() + store_.bytes();
}

int64_t Extractor::longest(int64_t most, int64_t available) {
  constexpr int64_t kTenth = 1600;
  return kTenth * largest_that_fits(most / kTenth, available, [&](int64_t tenths) {
           const auto length = static_cast<int32_t>(
               std::max<int64_t>(tenths * kTenth, encoder_.config.min_samples()));
           return bytes({&length, 1});
         });
}

void Extractor::run(std::span<const std::span<const float>> waves) {
  lengths_.clear();
  for (const auto& wave : waves) lengths_.push_back(static_cast<int32_t>(wave.size()));
  assign(lengths_);
  memory_.step(*prepared_, options_.math, [&](Context& ctx) { encode(ctx, waves); });
}

Tensor Extractor::state(size_t i, int b) const {
  const Segments segments = pack_.frames();
  return kept_[i].slice(segments.starts[b], segments.length(b));
}

}  // namespace sft
