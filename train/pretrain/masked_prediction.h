// Masked prediction (HuBERT, Hsu et al. 2021, arXiv:2106.07447): spans of frames are replaced by
// mask_emb, and the encoder tells from the rest which cluster each hidden frame belongs to.
//
//   y_t = pretrain.proj h_t,   logits_tk = cos(y_t, e_k) / temperature,   e = pretrain.label_emb
//   loss = sum_t -log softmax(logits_t)_label(t) / n + sum_b penalty n_b / n mean(features_b^2)
//
// t runs over the n masked frames of the whole update (n_b of utterance b), label = cluster + 4
// (fairseq's four special symbols come first). The gradient that enters the convolutions, penalty
// included, is multiplied by feature_grad_mult.
#pragma once

#include <memory>

#include "models/encoder.h"
#include "train/pretrain/targets.h"

namespace sft {

constexpr int32_t kSpecialLabels = 4;

// What pre-training adds to an encoder: pretrain.*
struct PretrainHead {
  Linear proj;      // C -> config.pretrain.dim
  Param label_emb;  // [clusters + 4, dim]

  PretrainHead() = default;
  PretrainHead(const Config& config, int64_t clusters);

  template <class V>
  void visit(V&& v) {
    v("proj", proj), v("label_emb", label_emb);
  }
};

struct PretrainModel {
  Encoder encoder;
  PretrainHead pretrain;

  template <class V>
  void visit(V&& v) {
    encoder.visit(v), v("pretrain", pretrain);
  }
};

// What is hidden in a batch, and how much each loss counts. Views outlive the backward.
struct MaskedBatch {
  Segments segments;
  std::span<const int32_t> masked;         // [M] frames of the pack, ascending
  std::span<const int32_t> labels;         // [M] with the four specials
  std::span<const float> weights;          // [M]
  std::span<const float> penalty_weights;  // [B]
};

struct MaskedLosses {
  Var logits;         // [M, clusters + 4]
  Var cross_entropy;  // [M], without the weights
  Var penalty;        // [B] mean squares, without the weights
};

// features [T, conv width]; options.masked is ignored.
MaskedLosses masked_prediction(Tape& t, const PretrainModel& model, Var features,
                               const MaskedBatch& batch, EncodeOptions options,
                               const RunConfig& config);

// Dev scores: loss (nats a masked frame, without the penalty) and accuracy, with the masks of
// update 0. The arguments outlive the objective.
std::unique_ptr<Objective> masked_prediction_objective(const RunConfig& config,
                                                       const PretrainModel& model,
                                                       const Targets& targets, const Split& train,
                                                       const Split& dev, const FrameBudget& frames);

}  // namespace sft
