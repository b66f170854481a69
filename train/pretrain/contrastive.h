// Contrastive pre-training (wav2vec 2.0, Baevski et al. 2020, arXiv:2006.11477): spans of frames
// are replaced by mask_emb, and the encoder tells the quantised features of each hidden frame from
// those of other hidden frames of the same utterance.
//
//   u_t = dropout(feat_norm(features_t)),  q_t = vq_out quantise(vq.proj u_t),  y_t = proj h_t
//   loss = sum_t -log softmax(cos(y_t, [q_t; K others]) / temperature)_0 / n
//        + diversity (G V - perplexity) / (G V) + sum_b penalty n_b / n mean(features_b^2)
//
// t runs over the n masked frames of the whole update (n_b of utterance b). The quantiser reads the
// features that were not masked, at the masked frames alone. The perplexity is that of a
// micro-batch, and counts with its share of the masked frames. The gradient that enters the
// convolutions is multiplied by feature_grad_mult. All as fairseq computes it; docs/method.md.
#pragma once

#include <memory>

#include "train/pretrain/masked_objective.h"

namespace sft {

// What pre-training adds to an encoder: pretrain.*
struct ContrastiveHead {
  Linear proj;     // C -> config.pretrain.dim
  Linear vq_proj;  // conv width -> G V
  Param codebook;  // [G V, code width / G]
  Linear vq_out;   // code width -> dim

  ContrastiveHead() = default;
  // code_width: of the concatenated codes; a multiple of config.pretrain.vq_groups.
  ContrastiveHead(const Config& config, int64_t code_width);

  template <class V>
  void visit(V&& v) {
    v("proj", proj), v("vq.proj", vq_proj), v("vq.codebook", codebook), v("vq_out", vq_out);
  }
};

struct ContrastiveModel {
  Encoder encoder;
  ContrastiveHead pretrain;

  template <class V>
  void visit(V&& v) {
    encoder.visit(v), v("pretrain", pretrain);
  }
};

// What is hidden in a batch and what it is told from. Views outlive the backward.
struct ContrastiveBatch {
  HiddenFrames hidden;
  Segments masked;                     // the hidden frames [M], by utterance
  Negatives negatives;                 // rows of [M]
  std::span<const int32_t> positives;  // [M] zeros: the own target is the first candidate
  std::span<const float> diversity;    // [1] its weight
};

// How it is computed: in training, or (the defaults) in evaluation, where codes are the most likely
// ones and nothing is dropped.
struct ContrastiveOptions {
  EncodeOptions encode;  // .masked is ignored
  float feature_dropout = 0;
  GumbelNoise noise;
};

struct ContrastiveLosses {
  Var targets, predictions;   // q, y [M, dim]
  Var logits;                 // [M, 1 + K]
  Var contrastive, penalty;   // [M], [B], without weights
  CodeDiversity diversity;    // [1], without weight
  Tensor picks, temperature;  // [M, G] i32, [1]
};

// features [T, conv width].
ContrastiveLosses contrastive(Tape& t, const ContrastiveModel& model, Var features,
                              const ContrastiveBatch& batch, ContrastiveOptions options,
                              const RunConfig& config);

// The temperature of a run's Gumbel noise.
GumbelNoise gumbel_noise(const RunConfig& config);

// Negatives of one utterance's M >= 2 masked frames, `each` for every one: uniform over the M - 1
// others, with replacement. Row r of them is `first` + r. Draws (site "negatives"): draw m each + k
// is negative k of frame m, below(M - 1), and one more from m on.
void draw_negatives(Draws& draws, int32_t M, int64_t each, int32_t first,
                    std::vector<int32_t>& rows);

// Dev scores: loss (contrastive, nats a masked frame), accuracy (the own target has the largest
// logit), chance (the same by guessing among the candidates that are not the same code), perplexity
// (soft, as the loss has it) and code_perplexity (of the codes that were picked), both in [G, G V];
// with the masks and negatives of update 0. An utterance of which fewer than two frames would be
// hidden has none hidden. The arguments outlive the objective.
std::unique_ptr<Objective> contrastive_objective(const RunConfig& config,
                                                 const ContrastiveModel& model, const Split& train,
                                                 const Split& dev, const FrameBudget& frames);

}  // namespace sft
