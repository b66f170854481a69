#include "train/probe_states.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include "engine/audio/decode.h"
#include "engine/cuda/runtime.h"
#include "engine/step_memory.h"
#include "engine/transfer.h"
#include "models/pack.h"
#include "train/batch_plan.h"
#include "train/job.h"
#include "train/loader.h"

namespace sft {
namespace {

constexpr int64_t kKeepAudio = int64_t{64} << 20;  // bytes of audio decoded ahead

StateCache empty_cache(const Config& config, std::span<const int64_t> samples,
                       const StateOptions& options) {
  StateCache cache{.width = config.width};
  for (int64_t n : samples)
    cache.starts.push_back(cache.starts.back() + (options.pooled ? 1 : config.frames(n)));
  cache.states.resize(options.states.size());
  for (std::vector<float>& state : cache.states) state.resize(cache.starts.back() * config.width);
  return cache;
}

// Utterances of like length together, longest first: the largest pack comes first.
std::vector<Batch> packs_of(const Config& config, std::span<const int64_t> samples,
                            int64_t pack_frames) {
  Batch order(samples.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return samples[a] > samples[b]; });
  std::vector<int64_t> frames;
  for (int64_t n : samples) frames.push_back(config.frames(n));
  return micro_batches(order, frames, pack_frames);
}

class StateComputer {
 public:
  StateComputer(const Encoder& encoder, ParamStore& store, const Manifest& manifest,
                std::span<const int64_t> samples, const StateOptions& options)
      : encoder_(encoder),
        samples_(samples),
        options_(options),
        loader_(manifest, kDecodeThreads, kKeepAudio),
        store_(store),
        memory_(store.gpu()) {
    for (int state : options.states) encode_.keep |= uint64_t{1} << state;
  }

  void prefetch(const Batch& batch) { loader_.prefetch(batch); }

  void compute(const Batch& batch, StateCache& cache) {
    assign(batch);
    memory_.step(store_.prepared(), options_.math,
                 [&](Context& ctx) { compute(ctx, batch, cache); });
  }

  // What that takes, by a dry step.
  int64_t bytes(const Batch& batch, StateCache& cache) {
    assign(batch);
    memory_.forget_peak();
    Context dry = memory_.context(store_.prepared(), options_.math, true);
    compute(dry, batch, cache);
    return memory_.peak();
  }

 private:
  void assign(const Batch& batch) {
    std::vector<int32_t> lengths;
    for (uint32_t row : batch) lengths.push_back(static_cast<int32_t>(samples_[row]));
    // indices seed dropout only, and nothing drops here
    pack_.assign(encoder_.config, lengths, std::vector<int32_t>(batch.size()));
  }

  void compute(Context& ctx, const Batch& batch, StateCache& cache) {
    Tape tape(ctx, /*recording=*/false);
    const Tensor wave = load(ctx, batch);
    const Segments segments = pack_.frames();
    const Var frames = encoder_.features(tape, wave, pack_);
    const HiddenStates hidden = encoder_.encode(tape, frames, segments, encode_);
    for (size_t s = 0; s < cache.states.size(); ++s) {
      const Var state = hidden.states[options_.states[s]];
      const Tensor rows = options_.pooled ? Tensor(segment_mean(tape, state, segments)) : state;
      ScratchScope host(host_);
      if (!ctx.dry)
        keep(batch, on_host(ctx, rows, host_), options_.pooled ? Segments() : segments, cache, s);
    }
  }

  Tensor load(Context& ctx, const Batch& batch) {
    const Tensor wave = pack_.wave(ctx);
    for (size_t b = 0; !ctx.dry && b < batch.size(); ++b) {
      pack_.place(ctx, wave, static_cast<int>(b), loader_.get(batch[b]));
      loader_.release(batch[b]);
    }
    return wave;
  }

  // segments empty: `rows` has one row an utterance.
  void keep(const Batch& batch, Tensor rows, Segments segments, StateCache& cache, size_t s) {
    for (size_t b = 0; b < batch.size(); ++b) {
      const int64_t first = options_.pooled ? static_cast<int64_t>(b) : segments.starts[b];
      std::memcpy(cache.states[s].data() + cache.starts[batch[b]] * cache.width, rows.row(first),
                  cache.length(batch[b]) * cache.width * sizeof(float));
    }
  }

  const Encoder& encoder_;
  std::span<const int64_t> samples_;
  const StateOptions& options_;
  AudioLoader loader_;
  ParamStore& store_;
  StepMemory memory_;
  Arena host_;  // copies of what a device computed
  EncodeOptions encode_;
  WavePack pack_;
};

// Packs cut until the device's memory is enough for each.
std::vector<Batch> packs_that_fit(StateComputer& computer, const cuda::Runtime& gpu,
                                  StateCache& cache, const Config& config,
                                  std::span<const int64_t> samples, int64_t pack_frames) {
  const int64_t available = gpu.free_bytes();
  const auto seconds = [](int64_t n) { return static_cast<double>(n) / kSampleRate; };
  int64_t needed = 0, most = 0;
  for (int64_t frames = pack_frames; frames > 0; frames /= 2) {
    const std::vector<Batch> packs = packs_of(config, samples, frames);
    needed = most = 0;
    for (const Batch& pack : packs) {
      int64_t total = 0;
      for (uint32_t row : pack) total += samples[row];
      if (total <= most) continue;
      most = total;
      needed = std::max(needed, computer.bytes(pack, cache));
    }
    if (needed <= available) return packs;
  }
  const Batch longest_first = packs_of(config, samples, std::numeric_limits<int64_t>::max()).at(0);
  const auto count = static_cast<int64_t>(longest_first.size());
  const int64_t fit = largest_that_fits(count, available, [&](int64_t n) {
    return computer.bytes({longest_first[count - n]}, cache);
  });
  fail(Kind::resource, Hint{"shorter utterances, or --device cpu"},
       "{:.1f} s of audio at once need {} MiB of device memory, {} MiB are free: {}", seconds(most),
       needed >> 20, available >> 20,
       fit ? fmt::format("enough for {:.1f} s", seconds(samples[longest_first[count - fit]]))
           : "not enough for any utterance");
}

}  // namespace

int64_t cache_bytes(const Config& config, std::span<const int64_t> samples,
                    const StateOptions& options) {
  int64_t rows = 0;
  for (int64_t n : samples) rows += options.pooled ? 1 : config.frames(n);
  return rows * config.width * static_cast<int64_t>(options.states.size() * sizeof(float));
}

StateCache compute_states(const Encoder& encoder, ParamStore& store, const Manifest& manifest,
                          std::span<const int64_t> samples, const StateOptions& options,
                          const std::function<void(int64_t done)>& progress) {
  StateCache cache = empty_cache(encoder.config, samples, options);
  StateComputer computer(encoder, store, manifest, samples, options);
  const std::vector<Batch> packs =
      store.gpu() ? packs_that_fit(computer, *store.gpu(), cache, encoder.config, samples,
                                   options.pack_frames)
                  : packs_of(encoder.config, samples, options.pack_frames);
  int64_t done = 0;
  if (!packs.empty()) computer.prefetch(packs[0]);
  for (size_t p = 0; p < packs.size(); ++p) {
    if (p + 1 < packs.size()) computer.prefetch(packs[p + 1]);
    computer.compute(packs[p], cache);
    done += static_cast<int64_t>(packs[p].size());
    progress(done);
  }
  return cache;
}

}  // namespace sft
