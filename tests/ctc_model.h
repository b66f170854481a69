// A model with a linear CTC head, everything in it trainable or nothing, on any device and in any
// arithmetic: hidden states of waveforms, gradients of the loss.
#pragma once

#include <string>
#include <vector>

#include "engine/transfer.h"
#include "models/checkpoint.h"
#include "tests/op_spec.h"
#include "train/tasks/finetune.h"

namespace sft::test {

struct CtcUtterances {
  std::vector<std::vector<float>> waves;
  std::vector<std::vector<int32_t>> labels;
};

struct CtcModel {
  FineTuneModel model;
  OpRun run;
  ParamStore store;
  Context ctx;
  Arena host;  // copies of what a device computed

  // tensors hold the head too. device_bytes as OpRun's.
  CtcModel(Config config, int classes, const TensorMap& tensors, bool trainable, Where where,
           int64_t device_bytes = int64_t{1} << 28)
      : model(with_head(config, classes)),
        run(/*poison=*/true, 0, 0, where, device_bytes),
        store(run.ctx.gpu),
        ctx{.device = where.device,
            .acts = run.acts,
            .scratch = run.scratch,
            .prepared = store.prepared(),
            .gpu = run.ctx.gpu,
            .math = where.math} {
    store.bind(
        param_requests(model), tensors, "test",
        [&](std::string_view) { return trainable ? 0 : -1; },
        trainable ? std::vector<std::string>{"all"} : std::vector<std::string>{});
  }
  CtcModel(const CtcModel&) = delete;

  static FineTuneModel with_head(Config& config, int classes) {
    config.task = {
        .kind = "ctc", .head = "linear", .units = std::vector<std::string>(classes, "u")};
    return {Encoder(config), {TaskHead(config.task, config.width)}};
  }

  HiddenStates states(Tape& t, WavePack& pack, const std::vector<std::vector<float>>& waves,
                      const EncodeOptions& options = {.keep_all = true}) {
    std::vector<int32_t> lengths, utterances;
    for (const auto& wave : waves) {
      lengths.push_back(static_cast<int32_t>(wave.size()));
      utterances.push_back(static_cast<int32_t>(utterances.size()));
    }
    pack.assign(model.encoder.config, lengths, utterances);
    const Tensor wave = pack.wave(ctx);
    for (size_t b = 0; b < waves.size(); ++b) pack.place(ctx, wave, static_cast<int>(b), waves[b]);
    const Var frames = model.encoder.features(t, wave, pack);
    return model.encoder.encode(t, frames, pack.frames(), options);
  }

  // The gradient of sum_b loss_b / (B max(1, labels_b)) is in the store afterwards; -> the losses.
  std::vector<float> backward(const CtcUtterances& batch, bool recompute = false) {
    std::vector<int32_t> labels, starts{0};
    std::vector<float> weights;
    const auto B = static_cast<float>(batch.waves.size());
    for (const std::vector<int32_t>& own : batch.labels) {
      labels.insert(labels.end(), own.begin(), own.end());
      starts.push_back(static_cast<int32_t>(labels.size()));
      weights.push_back(1.0f / (B * static_cast<float>(std::max<size_t>(1, own.size()))));
    }
    store.forget_gradients();
    Tape tape(ctx);
    WavePack pack;
    const Var last = states(tape, pack, batch.waves, {.recompute = recompute}).last();
    const Var logits = model.task.head(tape, last, pack.frames());
    const Var losses = ctc(tape, logits, pack.frames(), {labels, starts}, weights, 0).losses;
    tape.loss(losses);
    tape.backward();
    store.zero_unwritten();
    const Tensor loss = on_host(ctx, losses, host);
    return {loss.f32(), loss.f32() + loss.count()};
  }

  // All gradients on the host; of one parameter.
  Tensor gradients() { return store.on_host(store.grad(), host); }
  const float* gradient_of(const ParamStore::Named& named, Tensor gradients) const {
    return gradients.f32() + (named.value.f32() - store.master().f32());
  }
};

inline double cosine(const float* a, const float* b, int64_t count) {
  double dot = 0, aa = 0, bb = 0;
  for (int64_t i = 0; i < count; ++i)
    dot += double{a[i]} * b[i], aa += double{a[i]} * a[i], bb += double{b[i]} * b[i];
  return dot / std::sqrt(aa * bb);
}

}  // namespace sft::test
